"""The quickstart, whole, once; then every command of the README, in the folder that it left."""

import re
import shlex
import subprocess
import sys
import time

import pytest
from repository import ROOT

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.cli.quickstart_steps import _split
from rewarm.runs.metrics_file import read_metrics

README = ROOT / "README.md"


def shell(command, folder):
    words = shlex.split(command)
    assert words[0] == "rewarm", command
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder in which `rewarm quickstart` ran, what it said, and its seconds."""
    folder = tmp_path_factory.mktemp("quickstart")
    started = time.monotonic()
    ended = shell("rewarm quickstart", folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout, time.monotonic() - started


def test_it_shows_adaptation_and_forgetting_of_every_arm(played):
    folder, said, _ = played
    for arm in ("rewarm", "no-warmup", "constant"):
        run = folder / "rewarm-quickstart" / "runs" / arm
        first, *_, last = [
            line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "evaluate"
        ]
        forgetting = last["upstream/loss"] - first["upstream/loss"]
        adaptation = first["downstream/loss"] - last["downstream/loss"]
        (row,) = [line for line in said.splitlines() if line.startswith(f"{arm} ")]
        assert f"{forgetting:+.3f}" in row
        assert f"{adaptation:+.3f}" in row
        assert adaptation > 0.5  # it learns the new text
    assert "the same tokens for every arm" in said


def test_it_leaves_a_picture_recipes_and_checkpoints(played):
    folder = played[0] / "rewarm-quickstart"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("base", "rewarm", "no-warmup", "constant"):
        assert (folder / "recipes" / f"{name}.yaml").is_file()
        assert last_checkpoint(folder / "runs" / name) is not None


def test_a_second_start_takes_seconds_and_says_the_same(played):
    folder, said, first = played
    started = time.monotonic()
    again = shell("rewarm quickstart", folder)
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started < max(20, first / 8)
    assert again.stdout.splitlines()[-12:] == said.splitlines()[-12:]


def blocks():
    """Each console block of the README's tour, as (command, output) pairs."""
    for block in re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL):
        yield from re.findall(r"^\$ (rewarm .+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


EXACT = ("rewarm schedules", "rewarm plot-schedule", "rewarm check")


def test_every_command_of_the_readme_runs_and_says_what_the_readme_says(played):
    commands = [
        (command, said) for command, said in blocks() if "quickstart" not in command.split()[1]
    ]
    assert len(commands) >= 6
    for command, said in commands:
        ended = shell(command, played[0])
        expected = 2 if said.startswith("--set ") else 0  # the README shows one mistake
        assert ended.returncode == expected, (command, ended.stdout, ended.stderr)
        if command.startswith(EXACT):
            shown = ended.stdout + ended.stderr
            assert digitless(shown) == digitless(said), command


def digitless(text):
    """Counts of the standard library differ between Pythons; the words around them do not."""
    text = re.sub(r"sha256 [0-9a-f]{12}", "sha256 #", text)  # no two kinds of CPU train alike
    return re.sub(r"[\d.,]+[kMB]?", "#", re.sub(r"[ \t]+", " ", text).replace(" \n", "\n")).strip()


def test_docstrings_and_code_are_told_apart():
    import ast

    source = '"""Said."""\n\ndef f():\n    """Said\n    too."""\n    return 1\n'
    assert _split(source, ast.parse(source)) == (
        "Said.\n\nSaid\ntoo.",
        "\ndef f():\n    return 1\n",
    )
