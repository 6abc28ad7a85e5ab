"""Imports point down the layers only, and only the layers that compute import torch."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rewarm

ROOT = Path(rewarm.__file__).parent
MODULES = {
    ".".join(("rewarm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

# The lowest layer first: a module may import from its own layer and from those above it here.
LAYERS = {
    "used everywhere": (
        "download_cache errors exit_codes files freed_memory line_wrapping markdown once_per_node "
        "open_files path_contents paths plugins quantities reader_threads remote_storage "
        "safe_loading stop_signals table_cells version"
    ),
    "learning rates": "schedules",
    "where metrics go": "trackers",
    "kernels": "model.kernels",
    "the model": "model",
    "the document": "recipe",
    "the schedule check": "testing",
    "text to batches": "data",
    "model directories": "checkpoints",
    "a run on disk": "runs",
    "several arms": "study",
    "losses of other schedules": "predict",
    "before the run": "estimates",
    "the run": "training",
    "the machine": "diagnostics",
    "pictures": "plots",
    "pages": "report",
    "the command line": "cli __main__",
}
TORCH = ("rewarm.model", "rewarm.checkpoints", "rewarm.training")
NEVER_AT_MODULE_LEVEL = {"transformers", "webdataset", "huggingface_hub", "matplotlib"}


def layer(module: str) -> int:
    """The number of a module's layer; of two that would hold it, the one with the longer name."""
    matching = [
        (len(name), number)
        for number, names in enumerate(LAYERS.values())
        for name in names.split()
        if f"{module}.".startswith(f"rewarm.{name}.")
    ]
    assert matching, f"{module} is in no layer"
    return max(matching)[1]


def is_for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module: str, *, deferred: bool) -> Iterator[str]:
    """What a module imports: its own package's modules by full name, others by top-level name."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide what they import"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in MODULES else node.module


def own(names: Iterator[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] == "rewarm"}


INNER = sorted(MODULES.keys() - {"rewarm"})


@pytest.mark.parametrize("module", INNER)
def test_imports_point_down_the_layers(module):
    above = {name for name in own(imports(module, deferred=True)) if layer(name) > layer(module)}
    assert not above


def test_no_modules_import_each_other():
    graph = {module: own(imports(module, deferred=True)) - {module} for module in INNER}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def reached(module: str) -> set[str]:
    """All that importing a module imports at once."""
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += imports(name, deferred=False) if name in MODULES else []
    return seen


@pytest.mark.parametrize("module", INNER)
def test_only_the_layers_that_compute_import_torch(module):
    names = {name.partition(".")[0] for name in imports(module, deferred=False)}
    assert not names & NEVER_AT_MODULE_LEVEL
    if not module.startswith(TORCH):
        assert "torch" not in reached(module)


def test_each_package_says_in_a_sentence_what_is_in_it():
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module not in (
            "rewarm",
            "rewarm.schedules",
            "rewarm.recipe",
        ):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), module
            assert len(tree.body) == 1, f"{module}: only its docstring belongs there"


def test_help_imports_neither_numpy_nor_pydantic():
    heavy = "{'numpy', 'pydantic', 'torch'}"
    code = f"import sys, rewarm.cli.app; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


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


def test_commands_before_training_do_not_import_torch(thousand_steps, tmp_path):
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
        ("doctor", str(tmp_path)): 0,
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
