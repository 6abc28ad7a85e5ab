"""The command line: registers all commands; turns errors into one message and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from rewarm import exit_codes
from rewarm.cli.commands.check import check
from rewarm.cli.commands.compare import compare
from rewarm.cli.commands.eval import evaluate
from rewarm.cli.commands.lineage import lineage
from rewarm.cli.commands.new import new
from rewarm.cli.commands.plan import plan
from rewarm.cli.commands.plot_schedule import plot_schedule
from rewarm.cli.commands.quickstart import quickstart
from rewarm.cli.commands.report import report
from rewarm.cli.commands.schedules import schedules
from rewarm.cli.commands.schema import schema
from rewarm.cli.commands.shard import shard
from rewarm.cli.commands.train import train_command
from rewarm.cli.commands.verify import verify
from rewarm.cli.commands.verify_resume import verify_resume_command
from rewarm.cli.process_setup import exit_process, let_threads_sleep
from rewarm.errors import RecipeError, RewarmError

# ClickException of click, or of the copy of click that newer versions of typer contain.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="rewarm",
    help="Continual pre-training of GPT-NeoX / Pythia models: re-warm, decay, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# The panels of `rewarm --help`.
_PLANNING, _PREPARATION = "Before training", "Prepare"
_TRAINING, _RESULTS = "Train and measure", "Results"

app.command(rich_help_panel=_PLANNING)(check)
app.command(rich_help_panel=_PLANNING)(plan)
app.command(rich_help_panel=_PLANNING)(plot_schedule)
app.add_typer(schedules, name="schedules", rich_help_panel=_PLANNING)
app.command(rich_help_panel=_PLANNING)(schema)
app.command(rich_help_panel=_PREPARATION)(new)
app.command(rich_help_panel=_PREPARATION)(shard)
app.command(rich_help_panel=_PREPARATION)(verify)
app.command(rich_help_panel=_TRAINING)(quickstart)
app.command("train", rich_help_panel=_TRAINING)(train_command)
app.command(rich_help_panel=_TRAINING)(compare)
app.command("eval", rich_help_panel=_TRAINING)(evaluate)
app.command(rich_help_panel=_RESULTS)(report)
app.command(rich_help_panel=_RESULTS)(lineage)
app.command("verify-resume", rich_help_panel=_RESULTS)(verify_resume_command)


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
    let_threads_sleep()
    try:
        code = app(standalone_mode=False)
    except RewarmError as error:
        _fail(error, error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail(
            "interrupted; the shards that `rewarm shard` has finished are kept",
            exit_codes.INTERRUPTED,
        )
    except BrokenPipeError:  # `rewarm schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_codes.BROKEN_PIPE)
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            error.show()
            sys.exit(error.exit_code)
        if "REWARM_TRACEBACK" in os.environ:
            raise
        text = str(error).strip() or "no message"
        if type(error).__name__ == "OutOfMemoryError":
            _fail(
                f"out of memory on the device: {text}; try batch.microbatch: auto",
                exit_codes.UNEXPECTED,
            )
        _fail(
            f"{type(error).__name__}: {text}\nrewarm does not expect this error; to see where it "
            "occurred, set REWARM_TRACEBACK=1 and run the command again",
            exit_codes.UNEXPECTED,
        )
    exit_process(code or exit_codes.DONE)


def _fail(error: object, code: int) -> None:
    sys.stdout.flush()
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    with contextlib.suppress(OSError):  # stderr on a full disk must not change the exit code
        if isinstance(error, RecipeError):
            # A line may start with file:line:column, as a compiler's does: editors jump to it.
            console.print(str(error), markup=False)
        else:
            console.print("[bold red]error:[/] ", end="")
            console.print(str(error), markup=False)
    exit_process(code)
