"""The command line: registers all commands; turns errors into one message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rewarm import exit_codes
from rewarm.cli.commands.check import check
from rewarm.cli.commands.compare import compare
from rewarm.cli.commands.doctor import doctor
from rewarm.cli.commands.eval import evaluate
from rewarm.cli.commands.lineage import lineage
from rewarm.cli.commands.merge import merge
from rewarm.cli.commands.new import new
from rewarm.cli.commands.plan import plan
from rewarm.cli.commands.plot_schedule import plot_schedule
from rewarm.cli.commands.predict import predict
from rewarm.cli.commands.probe import probe
from rewarm.cli.commands.quickstart import quickstart
from rewarm.cli.commands.report import report
from rewarm.cli.commands.sample import sample
from rewarm.cli.commands.schedules import schedules
from rewarm.cli.commands.schema import schema
from rewarm.cli.commands.shard import shard
from rewarm.cli.commands.train import train_command
from rewarm.cli.commands.verify import verify
from rewarm.cli.commands.verify_resume import verify_resume_command
from rewarm.cli.help_pages import Command, Group
from rewarm.cli.process_setup import INTERRUPTED_MESSAGE, exit_process, let_threads_sleep
from rewarm.cli.standard_streams import (
    flush_stdout,
    is_output_summary,
    set_up_standard_streams,
)
from rewarm.cli.worker_process import has_ended_together, is_first
from rewarm.errors import (
    Preempted,
    RecipeError,
    RewarmError,
    hide_credentials,
    out_of_memory,
    printable,
)
from rewarm.line_wrapping import wrap_line
from rewarm.paths import expand_home

# ClickException of click, or of the copy of click that newer versions of typer contain.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

_COMPLETION_VARIABLE = "_REWARM_COMPLETE"
"""The environment variable by which a shell asks how a command line can go on."""

app = typer.Typer(
    name="rewarm",
    help="Continual pre-training of GPT-NeoX / Pythia models: re-warm, decay, measure.",
    no_args_is_help=True,
    cls=Group,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# The panels of `rewarm --help`.
_PLANNING, _PREPARATION = "Before training", "Prepare"
_TRAINING, _RESULTS = "Train and measure", "Results"

_command = functools.partial(app.command, cls=Command)

_command(rich_help_panel=_PLANNING)(check)
_command(rich_help_panel=_PLANNING)(plan)
_command(rich_help_panel=_PLANNING)(predict)
_command(rich_help_panel=_PLANNING)(probe)
_command(rich_help_panel=_PLANNING)(plot_schedule)
app.add_typer(schedules, name="schedules", rich_help_panel=_PLANNING)
_command(rich_help_panel=_PLANNING)(schema)
_command(rich_help_panel=_PREPARATION)(new)
_command(rich_help_panel=_PREPARATION)(shard)
_command(rich_help_panel=_PREPARATION)(verify)
_command(rich_help_panel=_PREPARATION)(doctor)
_command(rich_help_panel=_TRAINING)(quickstart)
_command("train", rich_help_panel=_TRAINING)(train_command)
_command(rich_help_panel=_TRAINING)(compare)
_command("eval", rich_help_panel=_TRAINING)(evaluate)
_command(rich_help_panel=_TRAINING)(merge)
_command(rich_help_panel=_TRAINING)(sample)
_command(rich_help_panel=_RESULTS)(report)
_command(rich_help_panel=_RESULTS)(lineage)
_command("verify-resume", rich_help_panel=_RESULTS)(verify_resume_command)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from rewarm.version import __version__

        print(f"rewarm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; prints an error as one message and exits with the error's code."""
    exit_process(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line; prints an error as one message, and returns the exit code."""
    set_up_standard_streams()
    let_threads_sleep()
    if _COMPLETION_VARIABLE in os.environ:
        typer.main.get_command(app).main(prog_name="rewarm")  # prints what a shell asks for, exits
    code = _run_command(arguments)
    if output_error := flush_stdout():
        code = _report_output_error(output_error, code)
    return code


def _run_command(arguments: list[str]) -> int:
    """Runs a command, reports its error, and returns the exit code."""
    try:
        command = typer.main.get_command(app)
        words = _expand_homes(arguments)
        # Not through typer's own main function: some versions of it consume KeyboardInterrupt.
        try:
            context = command.make_context("rewarm", words, obj=run)
        except SystemExit as ended:  # after --install-completion or --show-completion
            return int(ended.code or 0)
        with context:
            command.invoke(context)
    except typer.Exit as ended:
        return int(ended.exit_code)
    except RewarmError as error:
        return _report(error, error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends what still runs
        return _report(INTERRUPTED_MESSAGE, exit_codes.INTERRUPTED)
    except _USAGE_ERROR as error:
        error.message = hide_credentials(error.message)
        usage = io.StringIO()
        error.show(file=usage)
        _print_error(usage.getvalue().rstrip())
        return int(error.exit_code)
    except BaseException as error:  # a plug-in may call sys.exit
        if "REWARM_TRACEBACK" in os.environ:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            # Any use of a path may fail: its name may be too long, its folder not readable.
            message = f"{error.filename}: {error.strerror}; check the path"
            return _report(printable(message), exit_codes.UNUSABLE_INPUT)
        return _report(_describe_unexpected(error), exit_codes.UNEXPECTED)
    return exit_codes.DONE


def _expand_homes(arguments: list[str]) -> list[str]:
    """Returns the arguments with `~` expanded.

    Raises:
        RecipeError: a user does not exist.
    """
    try:
        return [expand_home(word) for word in arguments]
    except ValueError as error:
        raise RecipeError([str(error)]) from None


def _describe_unexpected(error: BaseException) -> str:
    if message := out_of_memory(error):
        return message
    text = printable(str(error).strip()) or "no message"
    return (
        f"{type(error).__name__}: {text}\nrewarm does not expect this error; to see where it "
        "occurred, set REWARM_TRACEBACK=1 and run the command again"
    )


def _report_output_error(error: OSError, code: int) -> int:
    """Reports that stdout could not be written, and returns the exit code."""
    is_closed_pipe = error.errno == errno.EPIPE  # `rewarm schema | head`
    if is_output_summary() or code != exit_codes.DONE:
        if not is_closed_pipe:
            _report(f"stdout cannot be written: {error.strerror}; nothing else is lost", code)
        return code
    if is_closed_pipe:
        return exit_codes.BROKEN_PIPE
    return _report(f"stdout cannot be written: {error.strerror}", exit_codes.UNEXPECTED)


def _report(error: object, code: int) -> int:
    """Prints an error to stderr, and returns its exit code.

    One that all processes of a run agree on is printed by the first of them.
    """
    flush_stdout()
    if not is_first() and has_ended_together():
        return code
    if isinstance(error, RecipeError | Preempted) or error == INTERRUPTED_MESSAGE:
        # A line may start with file:line:column, as a compiler's does: editors jump to it. A stop
        # that was asked for is no error.
        _print_error(str(error))
    elif code == exit_codes.DONE:
        _print_error(str(error), label="warning:", style="bold")
    else:
        _print_error(str(error), label="error:", style="bold red")
    return code


def _print_error(message: str, *, label: str = "", style: str = "") -> None:
    """Prints a message to stderr; a terminal shows its long lines in parts."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    lines = f"{label} {message}".lstrip().split("\n")
    if console.is_terminal:
        lines = [wrap_line(line, console.width) for line in lines]
    text = Text("\n".join(lines))
    text.stylize(style, 0, len(label))
    with contextlib.suppress(OSError):  # stderr on a full disk must not change the exit code
        console.print(text)
