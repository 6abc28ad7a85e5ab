"""The command line as a whole: help, usage errors, exit codes, located problems."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

REWARM = Path(sys.executable).with_name("rewarm")


@pytest.fixture
def recipe(thousand_steps, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(thousand_steps)
    return path


def test_version(command):
    assert command("--version") == (0, f"rewarm {version('rewarm')}\n", "")


def test_python_m_rewarm_is_the_same_command():
    ended = subprocess.run(
        [sys.executable, "-m", "rewarm", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"rewarm {version('rewarm')}\n"


def test_help_names_every_command_with_a_line(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in ("check", "plot-schedule", "schedules", "schema", "shard", "train", "eval"):
        assert f" {name} " in out


def test_without_a_command_help_is_printed_and_the_code_is_2(command):
    code, out, err = command()
    assert code == 2
    assert "plot-schedule" in out + err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chekc"], "No such command 'chekc'"),
        (["check"], "Missing argument 'RECIPE'"),
        (["check", "r.yaml", "--sett", "a=b"], "No such option: --sett"),
        (["check", "r.yaml", "--set"], "Option '--set' requires an argument"),
        (["check", "a.yaml", "b.yaml"], "(b.yaml)"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--validation", "1.5"], "below 100%"),
        (["eval", "x", "--data", "folder"], "--data folder: should be NAME=DIR, each name once"),
        (["eval", "x", "--data", "a=x", "--data", "a=y"], "--data a=y: should be NAME=DIR"),
        (["eval", "x", "--data", "a=x", "--tokens", "many"], "--tokens many: should be a count"),
        (["eval", "x", "--data", "a=x", "--precision", "fp8"], "should be fp32, bf16 or fp16"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--shard-size", "big"], "be a count"),
        (
            ["shard", "x", "--out", "y", "--tokenizer", "z", "--shard-size", "16MB"],
            "--shard-size 16MB: should be a count, such as 2_097_152, 20M, 10B or 1e9 (M is",
        ),
        (["eval", "x", "--data", "a=x", "--tokens", "0"], "--tokens 0: should be above 0"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--shard-size", "0"], "be above 0"),
        (["shard", "x", "--out", "y", "--tokenizer", "z", "--validation", "1"], "below 100%"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(command, words, message):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "not an error that rewarm expects" not in err


def test_problems_of_a_recipe_start_with_file_line_and_column(command, recipe):
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


def test_a_terminal_shows_whole_words_of_errors(command, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    words = ["check", "none.yaml"], ["verify", "none"], ["schedules", "x", "--sett", "y" * 70]
    for usage in words:
        monkeypatch.setenv("COLUMNS", "1000")
        message = command(*usage)[2]
        for width in (40, 80, 120):
            monkeypatch.setenv("COLUMNS", str(width))
            shown = command(*usage)[2]
            assert shown.split() == message.split()
            for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines():
                assert len(line) <= width or len(line.split()) == 1


@pytest.mark.parametrize("line", [100, 1234])
def test_a_line_number_is_not_an_emoji(command, recipe, line):
    """Rich would print one for `:100:`."""
    recipe.write_text("\n" * (line - 1) + "sede: 1\n" + recipe.read_text())
    _, _, err = command("check", recipe)
    assert f"{recipe}:{line}:1: sede: no such setting; did you mean 'seed'?" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check", "none.yaml"], 2, "none.yaml: no such file; a recipe is a YAML file"),
        (["schedules", "rewram"], 2, "error: no schedule named 'rewram'; did you mean 'rewarm'?"),
        (["verify", "none"], 3, "error: none: no such folder"),
        (["shard", "none.txt", "--out", "x", "--tokenizer", "none.json"], 3, "none.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_missing_files_and_names(command, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    exit_code, out, err = command(*words)
    assert (exit_code, out) == (code, "")
    assert err.startswith(message) or f" {message}" in err
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_of_the_installed_command(recipe):
    for words, code in ((["check", recipe], 3), (["check", recipe, "--set", "seed=x"], 2)):
        ended = subprocess.run([REWARM, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == code
        assert "Traceback" not in ended.stdout + ended.stderr


def test_a_closed_pipe_is_not_an_error():
    with subprocess.Popen([REWARM, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.close()
        assert p.stderr.read() == b""
    assert p.returncode in (1, 141)


def test_an_unexpected_error_is_one_message_without_a_traceback(command, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of [order] :100: at https://me:secret@host")

    monkeypatch.setattr("rewarm.cli.recipe_templates.schema_json", fail)
    monkeypatch.delenv("REWARM_TRACEBACK", raising=False)
    code, out, err = command("schema")
    assert (code, out) == (1, "")
    assert err.startswith("error: RuntimeError: out of [order] :100: at https://***@host\n")
    assert "set REWARM_TRACEBACK=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("REWARM_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="out of"):
        command("schema")


@pytest.mark.parametrize(
    "name", ["check", "plan", "plot-schedule", "compare", "train", "verify-resume"]
)
def test_ctrl_c_outside_the_training_loop_is_one_line(tmp_path, name):
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)  # reading it waits for a writer
    with subprocess.Popen(
        [sys.executable, "-m", "rewarm", name, recipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        writing = _open_when_it_is_read(recipe)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        os.close(writing)
    assert (out, err) == (
        "",
        "interrupted; finished shards and saved checkpoints are kept\n",
    )
    # Python ends by the signal itself if it was raised in `exec`; a shell reports 130 for both.
    assert process.returncode in (130, -signal.SIGINT)


def _open_when_it_is_read(fifo):
    descriptor = None
    while descriptor is None:
        with contextlib.suppress(OSError):  # ENXIO: nothing reads it yet
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    return descriptor


def test_sys_exit_in_third_party_code_is_not_success(command, monkeypatch):
    monkeypatch.setattr("rewarm.cli.recipe_templates.schema_json", lambda *_: sys.exit(0))
    monkeypatch.delenv("REWARM_TRACEBACK", raising=False)
    code, _, err = command("schema")
    assert (code, err.splitlines()[0]) == (1, "error: SystemExit: 0")


def test_credentials_are_not_in_errors_of_usage(command):
    code, _, err = command("eval", "x", "--data", "https://me:secret@host/a")
    assert code == 2
    assert "secret" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{long}"],
        ["verify", "{long}"],
        ["lineage", "{long}"],
        ["report", "{long}"],
    ],
    ids=lambda words: words[0],
)
def test_a_path_that_the_system_refuses_is_a_clear_error(command, words):
    code, out, err = command(*(word.format(long="x" * 5000) for word in words))
    assert (code in (2, 3), out) == (True, "")
    assert "File name too long" in err
    assert "does not expect" not in err
