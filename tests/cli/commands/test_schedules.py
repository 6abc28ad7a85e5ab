"""`rewarm schedules new` and `test`; the rest of the shelf is in test_cli.py."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def written(command, tmp_path, monkeypatch):
    """A distribution as `rewarm schedules new` leaves it, its module on the path."""
    monkeypatch.chdir(tmp_path)
    code, out, err = command("schedules", "new", "my-stairs")
    assert (code, err) == (0, "")
    assert "next: pip install -e rewarm-my-stairs" in out
    return tmp_path / "rewarm-my-stairs"


@pytest.fixture
def installed(written, monkeypatch):
    """What pip leaves of it: its module and its entry point, read from its pyproject.toml."""
    import tomllib

    project = tomllib.loads((written / "pyproject.toml").read_text())["project"]
    info = written / "rewarm_my_stairs-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    ((group, offered),) = project["entry-points"].items()
    entries = "".join(f"{name} = {value}\n" for name, value in offered.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}")
    monkeypatch.syspath_prepend(written)
    monkeypatch.setenv("PYTHONPATH", str(written))
    return written


def test_what_new_writes_passes_its_own_test_and_the_linters(installed):
    passed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(installed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert passed.returncode == 0, passed.stdout
    assert "6 passed" in passed.stdout
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy", "--strict"]):
        ended = subprocess.run(
            [sys.executable, "-m", *tool, str(installed / "rewarm_my_stairs.py")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout


def test_test_says_promise_by_promise(installed, command):
    code, out, _ = command("schedules", "test", "my-stairs")
    assert code == 0
    assert out.count("kept") == 10
    code, out, _ = command("schedules", "test", "my-stairs", "--set", "warmup=5%", "--json")
    assert code == 0
    assert set(json.loads(out).values()) == {None}
    module = installed / "rewarm_my_stairs.py"
    module.write_text(module.read_text().replace("min(progress, 1)", "progress"))
    sys.modules.pop("rewarm_my_stairs")
    code, out, err = command("schedules", "test", "my-stairs")
    assert code == 2
    assert "gave -" in out
    assert "error: schedule 'my-stairs' breaks 2 of 10 promises" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-Stairs", "'My-Stairs' cannot be a schedule's name; wanted small letters"),
        ("../x", "'../x' cannot be a schedule's name"),
        ("rewarm", "already offers a schedule named 'rewarm'; choose another"),
        ("my-stairs", "rewarm-my-stairs: is there already; choose another name, or remove it"),
    ],
)
def test_names_that_new_refuses(written, command, name, said):
    code, out, err = command("schedules", "new", name)
    assert (code, out) == (2, "")
    assert said in err
    assert [path.name for path in written.parent.iterdir() if path.is_dir()] == [written.name]


def test_a_slow_import_is_remarked_on_and_a_hanging_one_broken_off(
    command, distribution, monkeypatch
):
    from rewarm.cli.commands import schedules

    monkeypatch.setattr(schedules, "_LONG", 0.1)
    monkeypatch.setattr(schedules, "_TOO_LONG", 0.5)
    distribution("slow_import", "import time; time.sleep(0.2)", slow="Slow")
    distribution("hanging_import", "import time; time.sleep(30)", hanging="Hanging")
    _, out, _ = command("schedules")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert "(its import took 0.2 s)" in rows["slow"]
    assert "TimeoutError: not imported within 0.5 s" in rows["hanging"]
    assert rows["rewarm"].endswith("(arXiv:2308.04014).")
