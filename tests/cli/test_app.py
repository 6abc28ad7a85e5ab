import csv
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from rewarm.cli.app import main
from rewarm.recipe.recipe import load_recipe

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
            f"{recipe}:10:55: schedule.warmup: cannot be placed without a valid budget (`tokens` "
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


# plot-schedule.


def test_plot_in_the_terminal(command, recipe):
    code, out, err = command("plot-schedule", recipe)
    assert (code, err) == (0, "")
    assert "\x1b" not in out  # a pipe has no colours
    assert "end of warm-up 3e-4 100 10M" in " ".join(out.split())


@pytest.mark.parametrize("ending", ["png", "svg", "csv", "json"])
def test_plot_to_a_file(command, recipe, tmp_path, ending):
    out = tmp_path / f"curve.{ending}"
    assert command("plot-schedule", recipe, "--out", out) == (0, f"{out}: 1 curve\n", "")
    assert out.stat().st_size > 1000


def test_plot_of_two_recipes_with_one_name(command, recipe, tmp_path):
    other = tmp_path / "other" / "r.yaml"
    other.parent.mkdir()
    other.write_text(recipe.read_text())
    out = tmp_path / "curves.csv"
    code, said, _ = command("plot-schedule", recipe, other, "--out", out, "--set", "tokens=20M")
    assert (code, said) == (0, f"{out}: 2 curves\n")
    named = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
    assert named == [str(recipe)] * 200 + [str(other)] * 200


def test_plot_to_another_ending(command, recipe, tmp_path):
    code, _, err = command("plot-schedule", recipe, "--out", tmp_path / "curve.pdf")
    assert code == 2
    assert err.endswith("curve.pdf: should end in .png, .svg, .csv or .json\n")


def test_plot_of_a_part_holds_every_step_of_it(command, recipe, tmp_path):
    out = tmp_path / "part.csv"
    long = ("--set", "tokens=3B")  # 30,000 steps
    assert command("plot-schedule", recipe, *long, "--zoom", "50%:", "--out", out)[0] == 0
    steps = [int(line.split(",")[1]) for line in out.read_text().splitlines()[1:]]
    assert steps == list(range(15_000, 30_001))


def test_values_at_places(command, recipe):
    said = ("plot-schedule", recipe, "--at", "1,5%,100 steps,100M")
    code, out, err = command(*said)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["recipe", "at", "step", "tokens", "progress", "rate"],
        ["r", "1", "1", "100,000", "0.1000%", "3e-6"],
        ["5%", "50", "5,000,000", "5.0000%", "1.5e-4"],
        ["100", "steps", "100", "10,000,000", "10.0000%", "3e-4"],
        ["100M", "1,000", "100,000,000", "100.0000%", "3e-5"],
    ]
    run = load_recipe(recipe)
    _, out, _ = command(*said, "--format", "csv")
    header, *rows = csv.reader(out.splitlines())
    assert header == ["recipe", "at", "step", "tokens", "progress", "lr"]
    assert [float(row[-1]) for row in rows] == [run.lr(step) for step in (1, 50, 100, 1000)]
    _, out, _ = command(*said, "--format", "json")
    found = json.loads(out)
    assert [list(one.values()) for one in found[:2]] == [
        ["r", "1", 1, 100_000, 0.001, run.lr(1)],
        ["r", "5%", 50, 5_000_000, 0.05, run.lr(50)],
    ]


def test_plot_of_schedules_without_a_recipe(command):
    code, out, err = command(
        *("plot-schedule", "--schedule", "rewarm", "--tokens", "10B"),
        *("--schedule", "{name: rewarm, warmup: 5%}", "--set", "schedule.peak_lr=5x base"),
        *("--set", "schedule.min_lr=base", "--set", "model.base_lr=3e-5"),
    )
    assert (code, err) == (0, "")
    assert "── rewarm\n" in out
    assert "++ {name: rewarm, warmup: 5%}\n" in out
    said = " ".join(out.split())
    assert said.count("last 3e-5 4,768 10B") == 2
    assert said.count("end of warm-up 1.5e-4 ") == 2


def test_a_recipe_twice_has_two_names(command, recipe):
    _, out, _ = command("plot-schedule", recipe, recipe, "--at", "1", "--format", "csv")
    named = [line.split(",")[0] for line in out.splitlines()[1:]]
    assert named == [str(recipe), f"{recipe} (2)"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a RECIPE to draw, or --schedule NAME --tokens COUNT"),
        (["R", "--tokens", "10B"], "--tokens goes with --schedule"),
        (["--schedule", "constant"], "--schedule constant: a length is needed with it"),
        (["--schedule", "constant", "--tokens", "1B"], "schedule.lr: required, but missing"),
        (["--schedule", "x", "--tokens", "1B"], "no schedule named 'x'"),
        (["R", "--at", "1001"], "--at 1001: 1001 is behind the end of the run (1,000 steps"),
        (["R", "--at", "1,,2"], "--at 1,,2: '' should be a step"),
        (["R", "--at", "1", "--format", "xml"], "--format xml: should be table, csv or json"),
        (["R", "--format", "csv"], "--format goes with --at"),
        (["R", "--at", "1", "--out", "x.csv"], "without --out and --zoom"),
        (["R", "--at", "1", "--zoom", ":2%"], "without --out and --zoom"),
        (["R", "--zoom", "5%:2%"], "--zoom 5%:2%: step 20, its end, is before step 50"),
        (["R", "--zoom", ":101%"], "--zoom :101%: 101% is behind the end of the run"),
        (["R", "R2"], "R2: no such file"),
    ],
)
def test_what_plot_schedule_cannot_do_is_one_clear_error(command, recipe, words, said):
    code, out, err = command("plot-schedule", *(recipe if word == "R" else word for word in words))
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_no_color_is_obeyed(command, recipe, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as on a terminal
    assert "\x1b[38;5;33m" in command("plot-schedule", recipe)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("plot-schedule", recipe)[1]


@pytest.mark.parametrize(("said", "found"), [(None, "1000"), ("7", "7")])
def test_threads_of_a_cpu_wait_asleep_unless_someone_says_otherwise(monkeypatch, said, found):
    monkeypatch.setattr("sys.argv", ["rewarm", "--version"])
    monkeypatch.setenv("GOMP_SPINCOUNT", said or "")
    if said is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    with pytest.raises(SystemExit):
        main()
    assert os.environ["GOMP_SPINCOUNT"] == found
