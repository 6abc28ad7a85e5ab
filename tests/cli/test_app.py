import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from rewarm.cli.app import main

REWARM = Path(sys.executable).with_name("rewarm")


@pytest.fixture
def recipe(thousand_steps, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(thousand_steps)
    return path


def test_version(command):
    assert command("--version") == (0, f"rewarm {version('rewarm')}\n", "")


def test_the_module_is_the_command():
    said = subprocess.run(
        [sys.executable, "-m", "rewarm", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"rewarm {version('rewarm')}\n"


def test_help_names_every_command_with_a_line(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in ("check", "plot-schedule", "schedules", "schema", "shard", "train", "eval"):
        assert f" {name} " in out


def test_nothing_to_do_is_help_and_a_usage_error(command):
    code, out, err = command()
    assert code == 2
    assert "plot-schedule" in out + err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chekc"], "No such command 'chekc'"),
        (["check"], "Missing argument 'RECIPE'"),
        (["check", "r.yaml", "--sett", "a=b"], "No such option: --sett"),
        (["check", "r.yaml", "--set"], "Option '--set' requires an argument"),
        (["check", "a.yaml", "b.yaml"], "(b.yaml)"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--validation", "1.5"], "to below 1"),
        (["eval", "x", "--data", "folder"], "--data folder: should be NAME=DIR, each name once"),
        (["eval", "x", "--data", "a=x", "--data", "a=y"], "--data a=y: should be NAME=DIR"),
        (["eval", "x", "--data", "a=x", "--tokens", "many"], "--tokens many: should be a count"),
        (["eval", "x", "--data", "a=x", "--precision", "fp8"], "should be fp32, bf16 or fp16"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--shard-size", "big"], "be a count"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--shard-size", "0"], "be above 0"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--validation", "1"], "to below 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage(command, words, said):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "not an error that rewarm expects" not in err


def test_a_recipes_problems_are_lines_that_editors_can_jump_to(command, recipe):
    recipe.write_text(recipe.read_text().replace("peak_lr", "peek_lr").replace("seed", "sede"))
    for name in ("check", "plot-schedule", "train"):
        code, out, err = command(name, recipe, "--set", "batch.tokens=-1")
        assert (code, out) == (2, "")
        assert err.splitlines() == [
            "--set batch.tokens=-1: batch.tokens: should be greater than 0 (got -1)",
            f"{recipe}:10:1: schedule.peak_lr: required, but missing",
            f"{recipe}:10:26: schedule.peek_lr: no such setting; did you mean 'peak_lr'?",
            f"{recipe}:10:55: schedule.warmup: cannot be resolved without a valid budget (`tokens` "
            "and `batch.tokens`) (got '100 steps')",
        ]


@pytest.mark.parametrize("line", [100, 1234])
def test_a_line_number_is_not_an_emoji(command, recipe, line):
    """Rich takes `:100:` for one."""
    recipe.write_text("\n" * (line - 1) + "sede: 1\n" + recipe.read_text())
    _, _, err = command("check", recipe)
    assert f"{recipe}:{line}:1: sede: no such setting; did you mean 'seed'?" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "none.yaml"], 2, "none.yaml: no such file; a recipe is a YAML file"),
        (["schedules", "rewram"], 2, "error: no schedule named 'rewram'; did you mean 'rewarm'?"),
        (["verify", "none"], 3, "error: none: no such folder"),
        (["shard", "none.txt", "--out", "x", "--tokenizer", "none.json"], 3, "none.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_there(command, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    ended, out, err = command(*words)
    assert (ended, out) == (code, "")
    assert err.startswith(said) or f" {said}" in err
    assert list(tmp_path.iterdir()) == []


def test_codes_of_the_real_command(recipe):
    for words, code in ((["check", recipe], 3), (["check", recipe, "--set", "seed=x"], 2)):
        ended = subprocess.run([REWARM, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == code
        assert "Traceback" not in ended.stdout + ended.stderr


def test_a_reader_that_leaves_is_not_an_error():
    with subprocess.Popen([REWARM, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.close()
        assert p.stderr.read() == b""
    assert p.returncode in (1, 141)


def test_what_nobody_expected_is_one_message(command, distribution, monkeypatch):
    source = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Odd(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["odd"] = "odd"
    def __call__(self, progress):
        return 1.0
    @classmethod
    def model_json_schema(cls, *_, **__):
        raise RuntimeError("out of [order] :100:")
"""
    distribution("odd_schedule", source, odd="Odd")
    monkeypatch.delenv("REWARM_TRACEBACK", raising=False)
    code, out, err = command("schedules", "odd")
    assert (code, out) == (1, "")
    assert err.startswith("error: RuntimeError: out of [order] :100:\n")
    assert "set REWARM_TRACEBACK=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("REWARM_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="out of"):
        command("schedules", "odd")


# Schedules and the schema.


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
    listed = {one["name"]: one for one in json.loads(out)}
    assert listed.keys() >= {"constant", "no-warmup", "rewarm", "broken"}
    assert listed["constant"]["help"] == "Keeps one rate throughout."


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


def test_schema(command):
    code, out, _ = command("schema")
    assert code == 0
    assert set(json.loads(out)["required"]) >= {"run", "tokens", "model", "schedule"}


@pytest.mark.parametrize(("said", "found"), [(None, "1000"), ("7", "7")])
def test_threads_of_a_cpu_wait_asleep_unless_someone_says_otherwise(monkeypatch, said, found):
    monkeypatch.setattr("sys.argv", ["rewarm", "--version"])
    monkeypatch.setenv("GOMP_SPINCOUNT", said or "")
    if said is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    with pytest.raises(SystemExit):
        main()
    assert os.environ["GOMP_SPINCOUNT"] == found
