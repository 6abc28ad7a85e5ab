import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewarm

ROOT = Path(rewarm.__file__).parent
# By the name behind `rewarm.`; a folder's own file has the folder's name.
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# Imports point down only: a module may import those above it in this list, and no others.
TRITON = (
    *("kernels.round8", "kernels.rotary", "kernels.norms", "kernels.gelu"),
    "kernels.cross_entropy",
)
TORCH = (
    *("fp8", "kernels.plain", "kernels.launch", "kernels.plain_fp8", *TRITON, "kernels.fp8"),
    "kernels",
    *("device", "metrics", "lean", "neox", "weights", "optim", "checkpoint", "evaluate", "scaling"),
    *("guard", "saving", "trial", "start", "train", "verify_resume"),
)
ORDER = [
    *("errors", "untrusted", "quantities", "document", "architecture", "schedules", "pythia"),
    *("sections", "reading", "recipe", "speeds", "__init__"),
    *("mix", "shards", "places", "megatron", "texts", "tokenizer", "sharding", "stream"),
    *("manifest", "neoxlib", "bases", "progress", "lineage", "contract", "run"),
    *("memory", "curve", "ruler", "plot", "terminal", "check"),
    *("claims", "outcomes", "study", "results", "compare", "plan", "measure"),
    *("gather", "cells", "findings", "columns", "markup", "scatter", "page", "sheets"),
    *("testing", "author", "shipped", "tables", "shelf", "options"),
    *("preview", "prepare", "report"),
    *("plans", "studies", "interruptions"),
    *TORCH,
    *("quickstart", "cli", "__main__"),
]


def imports(module: str, *, deferred: bool) -> Iterator[str]:
    """The modules that a module names in its imports: top-level packages, or those of rewarm."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield "rewarm.__init__" if name.name == "rewarm" else name.name
        elif isinstance(node, ast.ImportFrom) and node.module == "rewarm":
            for name in node.names:
                yield f"rewarm.{name.name if name.name in SOURCES else '__init__'}"
        elif isinstance(node, ast.ImportFrom) and node.module == "rewarm.model.kernels.selection":
            for name in node.names:
                inner = f"kernels.{name.name}"
                yield f"rewarm.{inner if inner in SOURCES else 'kernels'}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide what they name"
            yield node.module


def test_every_module_has_a_place_in_the_order():
    assert sorted(ORDER) == sorted(SOURCES)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_down_only(module):
    below = ORDER[: ORDER.index(module)]
    for named in imports(module, deferred=True):
        if named.startswith("rewarm."):
            assert named.removeprefix("rewarm.") in below


@pytest.mark.parametrize("module", ORDER)
def test_torch_is_imported_behind_the_line_only(module):
    named = {name.partition(".")[0] for name in imports(module, deferred=False)}
    assert ("torch" in named) == (module in TORCH)
    assert ("triton" in named) == (module in TRITON)
    assert not named & {"transformers", "webdataset", "huggingface_hub", "matplotlib"}
    if module not in TORCH:
        own = {name.removeprefix("rewarm.") for name in imports(module, deferred=False)}
        assert not own & set(TORCH)


SPY = """
import json, sys
from rewarm.cli.app import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["rewarm", *words]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code)
heavy = {"torch", "transformers", "webdataset"} & set(sys.modules)
print("\\n" + json.dumps([codes, sorted(heavy)]))
"""


def test_looking_ahead_never_waits_for_torch(thousand_steps, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(thousand_steps)
    commands = {
        ("--help",): 0,
        ("--version",): 0,
        ("schedules",): 0,
        ("schedules", "rewarm"): 0,
        ("schema",): 0,
        ("plot-schedule", str(path)): 0,
        ("plot-schedule", str(path), "--out", str(tmp_path / "r.svg")): 0,
        ("plot-schedule", str(path), "--at", "1%"): 0,
        ("plot-schedule", "--schedule", "{name: constant, lr: 1}", "--tokens", "10B"): 0,
        ("check", str(path)): 3,  # its data are not here
        ("check", str(path), "--json"): 3,
        ("plan", str(path)): 0,
        ("plan", str(path), "--gpu", "h100", "--gpus", "8", "--price", "2.5"): 0,
        ("check", str(path), "--set", "model={base: EleutherAI/pythia-410m}"): 3,
        ("train", str(path), "--set", "sede=1"): 2,
        ("report", str(tmp_path)): 3,  # no run is there
    }
    ended = subprocess.run(
        [sys.executable, "-c", SPY, json.dumps(list(commands))],
        capture_output=True,
        text=True,
        check=True,
    )
    codes, heavy = json.loads(ended.stdout.splitlines()[-1])
    assert codes == list(commands.values()), ended.stderr
    assert heavy == []
