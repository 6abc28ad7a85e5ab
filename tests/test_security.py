"""What SECURITY.md promises, read from the source itself; `test_hostile` tries it from outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewarm

ROOT = Path(rewarm.__file__).parents[1]
SOURCES = sorted([*ROOT.glob("rewarm/**/*.py"), *ROOT.glob("plugins/*/*.py")])

# Modules that run what they read, or start other programs.
RUNNING = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "runpy", "subprocess", "pty"}
# Calls that do; `load` of yaml and torch is looked at more closely.
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp"),
    *("os.spawnv", "os.posix_spawn", "importlib.import_module", "yaml.load", "yaml.load_all"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.safe_load", "numpy.load", "np.load"),
    *("pandas.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
}
# Who may read JSON without the limits of rewarm.untrusted, and what it is that they read.
JSON = {
    "untrusted": "the limits themselves",
    "quickstart": "texts that come with rewarm",
    "recipe": "what pydantic has just written",
    "testing": "what pydantic has just written",
    "run": "the metrics of the person's own run",
    "sharding": "notes of an interrupted `rewarm shard`",
    "texts": "the person's texts, a line at a time",
    "tokenizer": "what tokenizers has just written",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file by its dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported(path: Path) -> Iterator[str]:
    """The top-level packages, and the names taken out of them, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_runs_what_it_reads(path):
    names = set(imported(path))
    if path.stem in ("verify_resume", "compare", "measure"):
        names.remove("subprocess")  # starts rewarm itself, in processes of their own
    assert not names & (RUNNING | CALLS | {"torch.load", "torch.serialization.load"})
    assert "yaml" not in names or path.stem == "document"
    assert "json" not in names or not {"json.load", "json.loads"} & names
    for name, call in calls(path):
        keywords = {one.arg: ast.unparse(one.value) for one in call.keywords}
        assert name not in CALLS, f"line {call.lineno}"
        assert name != "torch.load" or keywords.get("weights_only") == "True", call.lineno
        assert name not in ("json.load", "json.loads") or path.stem in JSON, call.lineno
        assert not keywords.keys() & {"trust_remote_code", "allow_pickle", "shell"}, call.lineno
        assert not name.endswith((".extractall", ".extract")), call.lineno


def test_only_plugins_are_loaded_by_name():
    loading = {path.stem for path in SOURCES for name, _ in calls(path) if "entry.load" in name}
    assert loading == {"schedules"}


def test_the_yaml_reader_knows_safe_nodes_only():
    from yaml import SafeLoader
    from yaml.constructor import SafeConstructor

    from rewarm.recipe.yaml_document import _Loader

    assert issubclass(_Loader, SafeLoader)
    assert _Loader.yaml_constructors == SafeConstructor.yaml_constructors
    assert not _Loader.yaml_multi_constructors


def test_everyone_who_may_read_plain_json_still_does():
    reading = {
        path.stem for path in SOURCES for name, _ in calls(path) if name.startswith("json.load")
    }
    assert reading == JSON.keys()
