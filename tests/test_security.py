"""What SECURITY.md promises, checked in the source code; `test_untrusted_files.py` tries it out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewarm

ROOT = Path(rewarm.__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted([*ROOT.glob("rewarm/**/*.py"), *ROOT.glob("plugins/*/*.py")])
}

# Modules that run what they read, or start other programs.
MODULES_THAT_RUN_CODE = {
    *("pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "runpy", "subprocess", "pty"),
}
# These start rewarm itself, or its tracker, in another process; the doctor also asks the driver.
MAY_START_PROCESSES = {
    "rewarm/estimates/measure_step_time.py",
    "rewarm/study/job.py",
    "rewarm/diagnostics/finding.py",
    "rewarm/training/verify_resume.py",
    "rewarm/trackers/process.py",
    "rewarm/trackers/run_trackers.py",
}
# This imports modules of rewarm itself, when one of their names is first used. Other files
# may import by name only what they name in their own text.
MAY_IMPORT_BY_NAME = "rewarm/__init__.py"
# Calls that run what they read; `torch.load` and `json.load` have tests of their own below.
CALLS_THAT_RUN_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp"),
    *("os.spawnv", "os.posix_spawn", "importlib.import_module", "yaml.load", "yaml.load_all"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.safe_load", "numpy.load", "np.load"),
    *("pandas.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
}
# Files that may read JSON without the limits of rewarm.safe_loading, and what they read.
MAY_READ_JSON = {
    "rewarm/safe_loading.py": "it implements the limits",
    "rewarm/data/quickstart_text.py": "text that this module has written",
    "rewarm/recipe/recipe.py": "what pydantic has just written",
    "rewarm/testing.py": "what pydantic has just written",
    "rewarm/runs/metrics_file.py": "the metrics of the user's own run",
    "rewarm/data/inputs/input_records.py": "the user's texts, a line at a time",
    "rewarm/data/inputs/archive_readers.py": "the user's texts, a member of an archive at a time",
    "rewarm/data/tokenizer.py": "what tokenizers has just written",
}
MAY_READ_YAML = "rewarm/recipe/yaml_document.py"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with its dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported_names(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, and the dotted names imported from packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files_that_call(prefix: str) -> set[str]:
    return {
        file for file, path in SOURCES.items() for name, _ in calls(path) if name.startswith(prefix)
    }


@pytest.mark.parametrize("file", SOURCES)
def test_no_source_file_runs_what_it_reads(file):
    path = SOURCES[file]
    names = set(imported_names(path))
    if file in MAY_START_PROCESSES:
        names.remove("subprocess")
    names.discard("importlib.import_module")  # its calls have a test of their own below
    assert not names & (MODULES_THAT_RUN_CODE | CALLS_THAT_RUN_CODE)
    assert not names & {"torch.load", "torch.serialization.load"}
    assert "yaml" not in names or file == MAY_READ_YAML
    assert "json" not in names or not {"json.load", "json.loads"} & names
    for name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in CALLS_THAT_RUN_CODE, f"line {call.lineno}"
        assert name != "torch.load" or keywords.get("weights_only") == "True", call.lineno
        assert name not in ("json.load", "json.loads") or file in MAY_READ_JSON, call.lineno
        assert not keywords.keys() & {"trust_remote_code", "allow_pickle", "shell"}, call.lineno
        assert not name.endswith((".extractall", ".extract")), call.lineno


def test_only_plugins_are_loaded_by_name():
    loading = {
        file for file, path in SOURCES.items() for name, _ in calls(path) if "entry.load" in name
    }
    assert loading == {"rewarm/schedules/registry.py", "rewarm/trackers/registry.py"}


def imports_by_name(file: str) -> list[ast.expr]:
    """What a file gives to `import_module`."""
    return [call.args[0] for name, call in calls(SOURCES[file]) if name == "import_module"]


@pytest.mark.parametrize("file", [file for file in SOURCES if file != MAY_IMPORT_BY_NAME])
def test_imports_by_name_are_of_fixed_names(file):
    for name in imports_by_name(file):
        assert isinstance(name, ast.Constant)
        assert name.value.partition(".")[0] not in MODULES_THAT_RUN_CODE


def test_lazy_imports_are_of_rewarm_itself():
    assert [ast.unparse(name) for name in imports_by_name(MAY_IMPORT_BY_NAME)] == ["_EXPORTS[name]"]
    assert all(module.startswith("rewarm.") for module in rewarm._EXPORTS.values())


def test_the_yaml_reader_knows_safe_nodes_only():
    from yaml import SafeLoader
    from yaml.constructor import SafeConstructor

    from rewarm.recipe.yaml_document import _Loader

    assert issubclass(_Loader, SafeLoader)
    assert _Loader.yaml_constructors == SafeConstructor.yaml_constructors
    assert not _Loader.yaml_multi_constructors


def test_the_list_of_files_that_read_plain_json_is_current():
    assert files_that_call("json.load") == MAY_READ_JSON.keys()
