"""`rewarm schedules`: the list, the settings of each, `new` and `test`, and slow imports."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest


def test_schedules_are_listed(command, distribution):
    distribution("broken_list", "raise RuntimeError('no [red]markup[/] here')", broken="Broken")
    code, out, err = command("schedules")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["name"].split() == ["name", "distribution", "version", "help"]
    assert rows["rewarm"].split()[1:3] == ["rewarm", version("rewarm")]
    assert "Rises linearly to the peak" in rows["rewarm"]
    assert "cannot be used: schedule 'broken' of broken_list 1.0" in rows["broken"]
    assert "RuntimeError: no [red]markup[/] here" in rows["broken"]
    _, out, _ = command("schedules", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert listed.keys() >= {"constant", "no-warmup", "rewarm", "broken"}
    assert listed["constant"]["help"] == "Keeps the learning rate constant."


def test_the_settings_of_one_schedule(command):
    code, out, _ = command("schedules", "rewarm")
    assert code == 0
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line}
    assert rows.items() >= {
        ("setting", "default"),
        ("peak_lr", "required"),
        ("min_lr", "null"),
        ("start_lr", "0.0"),
        ("warmup", "1%"),
        ("decay", "cosine"),
    }
    assert "One of: cosine, clipped-cosine, linear, 1-sqrt, inverse-sqrt, none." in out
    _, out, _ = command("schedules", "rewarm", "--json")
    assert set(json.loads(out)["required"]) == {"peak_lr"}


@pytest.fixture
def new_plugin(command, tmp_path, monkeypatch):
    """The folder of a distribution that `rewarm schedules new` wrote."""
    monkeypatch.chdir(tmp_path)
    code, out, err = command("schedules", "new", "my-stairs")
    assert (code, err) == (0, "")
    assert "next: pip install -e rewarm-my-stairs" in out
    return tmp_path / "rewarm-my-stairs"


@pytest.fixture
def installed_plugin(new_plugin, monkeypatch):
    """The same on the path, with the entry point of its pyproject.toml, as pip installs it."""
    import tomllib

    project = tomllib.loads((new_plugin / "pyproject.toml").read_text())["project"]
    info = new_plugin / "rewarm_my_stairs-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    ((group, entry_points),) = project["entry-points"].items()
    entries = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}")
    monkeypatch.syspath_prepend(new_plugin)
    monkeypatch.setenv("PYTHONPATH", str(new_plugin))
    return new_plugin


@pytest.mark.slow
def test_a_new_plugin_passes_its_own_tests_and_the_linters(installed_plugin):
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(installed_plugin)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout
    assert "6 passed" in tests.stdout
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy", "--strict"]):
        linter = subprocess.run(
            [sys.executable, "-m", *tool, str(installed_plugin / "rewarm_my_stairs.py")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert linter.returncode == 0, linter.stdout


def test_test_prints_a_line_for_each_promise(installed_plugin, command):
    code, out, _ = command("schedules", "test", "my-stairs")
    assert code == 0
    assert out.count("kept") == 10
    code, out, _ = command("schedules", "test", "my-stairs", "--set", "warmup=5%", "--json")
    assert code == 0
    assert set(json.loads(out).values()) == {None}
    module = installed_plugin / "rewarm_my_stairs.py"
    module.write_text(module.read_text().replace("min(progress, 1)", "progress"))
    sys.modules.pop("rewarm_my_stairs")
    code, out, err = command("schedules", "test", "my-stairs")
    assert code == 2
    assert "gave -" in out
    assert "error: schedule 'my-stairs' breaks 2 of 10 promises; fix it, or report it" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Stairs", "'My-Stairs' cannot be a schedule's name; use lower-case letters"),
        ("../x", "'../x' cannot be a schedule's name"),
        ("rewarm", "already offers a schedule named 'rewarm'; choose another"),
        ("my-stairs", "rewarm-my-stairs: already exists; choose another name, or remove it"),
    ],
)
def test_new_refuses_invalid_and_existing_names(new_plugin, command, name, message):
    code, out, err = command("schedules", "new", name)
    assert (code, out) == (2, "")
    assert message in err
    folders = [path.name for path in new_plugin.parent.iterdir() if path.is_dir()]
    assert folders == [new_plugin.name]


def test_the_time_of_a_slow_import_is_printed_and_a_hanging_one_is_stopped(
    command, distribution, monkeypatch
):
    from rewarm.cli.commands import schedules

    monkeypatch.setattr(schedules, "_SLOW_IMPORT", 0.1)
    monkeypatch.setattr(schedules, "_IMPORT_TIMEOUT", 0.9)
    distribution("slow_import", "import time; time.sleep(0.2)", slow="Slow")
    distribution("hanging_import", "import time; time.sleep(30)", hanging="Hanging")
    _, out, _ = command("schedules")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert re.search(r"\(its import took 0\.[2-9] s\)", rows["slow"])
    assert "cannot be imported: it takes longer than 0.9 s" in rows["hanging"]
    assert rows["rewarm"].endswith("(arXiv:2308.04014).")
