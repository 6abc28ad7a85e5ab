"""stdout and stderr that are closed, full, or not UTF-8: no exception, and no work is lost."""

import json
import os
import subprocess
import sys

import pytest

from rewarm.cli.standard_streams import print_json

# Commands whose whole result is their output, and commands that also write files.
PRINTS = (["schema"], ["check"], ["plot-schedule"], ["lineage"])
WRITES = (["plot-schedule", "--out", "curve.csv"], ["report"])


@pytest.fixture
def run_in_shell(recipe_file, trained_run, tmp_path):
    """Runs a command with redirections in a real shell; returns its exit code and errors."""

    def run(words, redirections, **environment):
        inputs = {"check": recipe_file, "plot-schedule": recipe_file}
        inputs |= {"lineage": trained_run, "report": trained_run, "train": recipe_file}
        command = [sys.executable, "-m", "rewarm", *words, *filter(None, [inputs.get(words[0])])]
        ended = subprocess.run(
            ["bash", "-c", f'"$@" {redirections}', "bash", *map(str, command)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in ended.stderr
        return ended.returncode, ended.stderr

    return run


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
class TestStdoutThatCannotBeWritten:
    @pytest.mark.parametrize("words", PRINTS[:2], ids=" ".join)
    def test_is_an_error_of_a_command_that_only_prints(
        self, run_in_shell, words, redirection, reason
    ):
        assert run_in_shell(words, redirection) == (
            1,
            f"error: stdout cannot be written: {reason}\n",
        )

    @pytest.mark.parametrize("words", WRITES, ids=" ".join)
    def test_is_a_warning_of_a_command_that_wrote_its_files(
        self, run_in_shell, words, redirection, reason
    ):
        expected = f"warning: stdout cannot be written: {reason}; nothing else is lost\n"
        assert run_in_shell(words, redirection) == (0, expected)


@pytest.mark.slow
def test_a_full_stdout_does_not_change_the_exit_code_of_training(run_in_shell, tmp_path):
    code, errors = run_in_shell(["train", "--set", "tokens=2048"], ">/dev/full")
    assert code == 0
    assert errors.endswith(
        "warning: stdout cannot be written: No space left on device; nothing else is lost\n"
    )
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "MANIFEST.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>/dev/full", "<&- >&- 2>&-"])
def test_stderr_that_cannot_be_written_does_not_end_training(run_in_shell, tmp_path, redirection):
    assert run_in_shell(["train", "--set", "tokens=2048"], redirection) == (0, "")
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "MANIFEST.json").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] <= 2 for line in lines)  # nothing else was written into it


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["schema"], 141),
        (["plot-schedule", "--out", "curve.csv"], 0),
        pytest.param(["train", "--set", "tokens=2048"], 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_pipe_that_closes_ends_only_commands_that_only_print(run_in_shell, words, code):
    ended, errors = run_in_shell(words, "| true; exit ${PIPESTATUS[0]}")
    assert ended == code
    assert "stdout" not in errors


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
@pytest.mark.parametrize("words", PRINTS[1:], ids=" ".join)
def test_output_degrades_to_ascii(run_in_shell, tmp_path, words, environment):
    code, errors = run_in_shell(words, ">out.txt", **environment)
    assert (code, errors) == (0, "")
    output = (tmp_path / "out.txt").read_bytes().decode("latin-1")
    assert "\\u" not in output  # each symbol that rewarm prints has a readable replacement
    if words == ["check"]:
        assert "trained on 0 tokens -> 20.48k at the end of this run" in output


def test_json_is_ascii_and_keeps_its_meaning(capsys):
    document = {"run": "läufe/→", "name": "\U0001d11e", "lone": "\ud800"}
    print_json(json.dumps(document, ensure_ascii=False))
    output = capsys.readouterr().out
    assert output.isascii()
    assert json.loads(output) == document
