"""Help pages: no types of flags, an example in each that can be parsed; completion in a shell."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import typer

from rewarm.cli.app import app

REWARM = typer.main.get_command(app)


def pages():
    """Yields the words of every command that `rewarm --help` leads to."""
    for name, command in REWARM.commands.items():
        yield (name,)
        if hasattr(command, "commands"):
            yield from ((name, child) for child, sub in command.commands.items() if not sub.hidden)


def help_page(command, *words, columns=80):
    code, out, err = command(*words, "--help")
    assert (code, err) == (0, "")
    assert all(len(line) <= columns for line in out.splitlines())
    return out


@pytest.mark.parametrize("words", [(), *pages()], ids=" ".join)
def test_a_page_has_no_types_and_no_doubled_brackets(command, monkeypatch, words):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
        page = help_page(command, *words, columns=columns)
        assert not re.search(r"<\w|\[\[|\.\.\.}|\(report\.html\)", page), page


@pytest.mark.parametrize("words", [*pages()], ids=" ".join)
def test_the_example_of_a_page_is_a_command_line_that_is_accepted(command, words):
    (example,) = re.findall(
        r"^ *Example: (rewarm .*?) *$", help_page(command, *words), re.MULTILINE
    )
    _, *typed = shlex.split(example)
    assert tuple(typed[: len(words)]) == words
    context, page = REWARM.make_context("rewarm", list(typed)), REWARM
    for word in words:
        page = page.commands[word]
    with context:
        page.make_context(words[-1], typed[len(words) :], parent=context)  # else it raises


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        ("rewarm verify", {"verify", "verify-resume"}),
        ("rewarm train --res", {"--resume", "--resume-from"}),
        ("rewarm schedules te", {"test"}),
    ],
)
def test_bash_completes_commands_and_options(tmp_path, typed, proposed):
    home = os.environ | {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (tmp_path / "rewarm").write_text(f'#!/bin/sh\nexec {sys.executable} -m rewarm "$@"\n')
    (tmp_path / "rewarm").chmod(0o755)
    words = typed.split()
    script = (
        "rewarm --install-completion >&2 || exit; source ~/.bashrc\n"
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        '_rewarm_completion rewarm; echo "${COMPREPLY[@]}"\n'
    )
    ended = subprocess.run(
        ["bash", "-c", script], env=home, capture_output=True, text=True, check=True, timeout=60
    )
    assert set(ended.stdout.split()) == proposed, ended.stderr
    assert "bash completion installed" in ended.stderr


def test_completion_imports_neither_numpy_nor_torch():
    code = (
        "import sys, rewarm.cli.app as cli\n"
        "try: cli.run([])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    )
    variables = {"_REWARM_COMPLETE": "complete_bash", "COMP_WORDS": "rewarm tra", "COMP_CWORD": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == ["train", "[]"]
