"""The command line: each command parses, calls, prints; an error is one message and a code."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import rewarm
from rewarm import options, plans, prepare, preview, report, shelf, tables
from rewarm.errors import CheckpointError, RecipeError, RewarmError
from rewarm.options import Json, RecipeFile, Set
from rewarm.quantities import perplexity

if TYPE_CHECKING:
    from rewarm.evaluate import Measured

# ClickException: of click, or of the copy that typer brings itself from some version on.
_USAGE: Any = typer.BadParameter.__mro__[2]

AHEAD, PREPARE, TRAIN, BACK = "Look ahead", "Prepare", "Train and measure", "Look back"

_STARTED = time.monotonic()  # a time limit counts from here, imports of seconds included

app = typer.Typer(
    name="rewarm",
    help="Continual pre-training of GPT-NeoX / Pythia models: re-warm, decay, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rewarm {rewarm.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=AHEAD)
def check(recipe: RecipeFile, overrides: Set = None, as_json: Json = False) -> None:
    """Print what a recipe, or a study, will do, as arithmetic, without doing it."""
    from rewarm import study
    from rewarm.check import in_text, plan

    if study.is_study(recipe):
        from rewarm import studies

        studies.check(study.load(recipe, overrides))
        return
    found, problem = plan(options.load(recipe, overrides))
    print(found.model_dump_json(indent=1) if as_json else in_text(found))
    if problem:
        problem.args = ("\n".join(found.problems),)
        raise problem


app.command(rich_help_panel=AHEAD)(plans.plan)
app.command("plot-schedule", rich_help_panel=AHEAD)(preview.plot_schedule)
app.add_typer(shelf.app, name="schedules", rich_help_panel=AHEAD)


@app.command(rich_help_panel=AHEAD)
def schema(
    of_study: Annotated[bool, typer.Option("--study", help="That of a study instead.")] = False,
) -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from rewarm import shipped
    from rewarm.recipe import Recipe
    from rewarm.study import Study

    print(shipped.schema(Study if of_study else Recipe), end="")


@app.command(rich_help_panel=PREPARE)
def new(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="What to write; without it, a list."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write into.")] = Path(),
) -> None:
    """Write a recipe or study to begin from, and the schema that editors check it by."""
    from rewarm import shipped

    if name is not None:
        print("\n".join(str(path) for path in shipped.write(name, out)))
        return
    table = tables.table("name", "what it does")
    for shipped_name, what in shipped.names().items():
        table.add_row(shipped_name, what)
    tables.show(table)


app.command(rich_help_panel=PREPARE)(prepare.shard)
app.command(rich_help_panel=PREPARE)(prepare.verify)


@app.command(rich_help_panel=TRAIN)
def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path(
        "rewarm-quickstart"
    ),
) -> None:
    """Try it all on this machine: a small model, real text, no GPU, no download, some minutes."""
    from rewarm.quickstart import quickstart as begin

    begin(out)


@app.command(rich_help_panel=TRAIN)
def train(
    recipe: RecipeFile,
    overrides: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on behind the run's last checkpoint, if any.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although the recipe now says otherwise."),
    ] = False,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="3h55m", help="Be saved and gone by then, with exit code 75."),
    ] = None,
) -> None:
    """Run a recipe."""
    from rewarm.quantities import parse_duration

    try:
        deadline = _STARTED + parse_duration(time_limit) if time_limit else math.inf
    except ValueError as error:
        raise typer.BadParameter(f"--time-limit {time_limit}: {error}") from None
    checked = options.load(recipe, overrides)
    from rewarm.train import train as run

    print(run(checked, resume=resume, accept_changes=accept_changes, deadline=deadline))


@app.command(rich_help_panel=TRAIN)
def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study, in YAML.")],
    overrides: Set = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Runs at once; each takes a GPU.", min=1, max=64)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Run every arm of a study with every seed, and say what came of it."""
    from rewarm import studies
    from rewarm.study import load

    studies.compare(load(study, overrides), workers, as_json=as_json)


@app.command("eval", rich_help_panel=TRAIN)
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...", help="A checkpoint, a run (its last one), or any NeoX base."
        ),
    ],
    data: Annotated[
        list[str], typer.Option(metavar="NAME=DIR", help="Shards to measure on; may be repeated.")
    ],
    tokens: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Measure on the first so many of each.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in a sequence; the model's own if not given.", min=1)
    ] = None,
    microbatch: Annotated[int, typer.Option(help="Sequences at once.", min=1)] = 8,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    as_json: Json = False,
) -> None:
    """Measure loss and perplexity of checkpoints on shards."""
    from rewarm.quantities import parse_count

    sets: dict[str, str] = {}
    for one in data:
        name, equals, folder = one.partition("=")
        if not (name and equals and folder) or name in sets:
            raise typer.BadParameter(f"--data {one}: should be NAME=DIR, each name once")
        sets[name] = folder
    try:
        limit = parse_count(tokens) if tokens else None
    except ValueError as error:
        raise typer.BadParameter(f"--tokens {tokens}: {error}") from None
    if precision not in ("fp32", "bf16", "fp16"):
        raise typer.BadParameter(f"--precision {precision}: should be fp32, bf16 or fp16")
    from rewarm.evaluate import measure_checkpoint
    from rewarm.places import Place

    places = {name: Place(folder) for name, folder in sets.items()}
    measured = [
        measure_checkpoint(
            name, places, context=context, microbatch=microbatch, tokens=limit, precision=precision
        )
        for name in checkpoints
    ]
    if as_json:
        lines = [
            {"checkpoint": name}
            | {
                f"{on}/{key}": value
                for on, one in losses.items()
                for key, value in (
                    ("loss", one.loss),
                    ("perplexity", perplexity(one.loss)),
                    ("tokens", one.tokens),
                )
            }
            for name, losses in zip(checkpoints, measured, strict=True)
        ]
        print(json.dumps(lines, indent=1))
        return
    tables.show(_losses(checkpoints, measured))


def _losses(checkpoints: list[str], measured: list[dict[str, Measured]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("set", no_wrap=True)
    for column in ("loss", "perplexity", "tokens", "vs first"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, losses in zip(checkpoints, measured, strict=True):
        for row, (on, one) in enumerate(losses.items()):
            difference = "" if losses is measured[0] else f"{one.loss - measured[0][on].loss:+.4f}"
            table.add_row(
                name if row == 0 else "",
                on,
                f"{one.loss:.4f}",
                f"{perplexity(one.loss):,.2f}",
                f"{one.tokens:,}",
                difference,
            )
    return table


app.command(rich_help_panel=BACK)(report.report)


@app.command(rich_help_panel=BACK)
def lineage(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A checkpoint, a run, or a folder of runs.")
    ],
    as_json: Json = False,
) -> None:
    """Draw which model descends from which, with rates and losses."""
    from rich.tree import Tree

    from rewarm.lineage import Node, chains, forest

    found = chains(path)
    if as_json:
        print(json.dumps([[one.model_dump() for one in chain] for chain in found], indent=1))
        return

    def drawn(node: Node) -> Tree:
        tree = Tree(node.model.in_words())
        tree.children += map(drawn, node.children)
        return tree

    console = Console(highlight=False, emoji=False, markup=False)
    console.width = max(console.width, 120) if console.is_terminal else 1000
    for root in forest(found):
        console.print(drawn(root))


@app.command("verify-resume", rich_help_panel=BACK)
def verify_resume(
    recipe: RecipeFile,
    overrides: Set = None,
    steps: Annotated[int, typer.Option(help="Steps to run, interrupted half-way.", min=2)] = 40,
) -> None:
    """Prove on this machine that an interrupted run ends, bit for bit, as one that was not."""
    import tempfile

    checked = options.load(recipe, overrides)
    from rewarm.device import find_device
    from rewarm.verify_resume import verify_resume as differences

    how = " with deterministic: true" if find_device().type == "cuda" else ""
    with tempfile.TemporaryDirectory(prefix="rewarm-verify-resume-") as work:
        differ = differences(checked, steps, Path(work))
    if differ:
        raise CheckpointError("the resumed run differs:\n  " + "\n  ".join(differ))
    print(
        f"{min(steps, checked.steps)} steps, straight and interrupted: weights, moments, stream "
        f"and metrics are the same, bit for bit{how}"
    )


def _yield_to_others() -> None:
    """Has a CPU's threads wait for each other asleep, but for a moment.

    PyTorch's libgomp reads this when it is loaded. By its default they wait at work for a while,
    and beside other work it is then the one that is waited for which gets no core.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main() -> None:
    """Runs the command line; every error that a person can act on ends as a message and a code."""
    _yield_to_others()
    try:
        code = app(standalone_mode=False)
    except RewarmError as error:
        _fail(error, error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; what `rewarm shard` had finished is kept", 128 + signal.SIGINT)
    except BrokenPipeError:  # `rewarm schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, _USAGE):
            error.show()
            sys.exit(error.exit_code)
        if "REWARM_TRACEBACK" in os.environ:
            raise
        text = str(error).strip() or "no message"
        if type(error).__name__ == "OutOfMemoryError":
            _fail(f"out of memory on the device: {text}; try batch.microbatch: auto", 1)
        _fail(
            f"{type(error).__name__}: {text}\nthis is not an error that rewarm expects; to see "
            "where it was, set REWARM_TRACEBACK=1 and run it again",
            1,
        )
    sys.exit(code or 0)


def _fail(error: object, code: int) -> None:
    sys.stdout.flush()
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    with contextlib.suppress(OSError):  # a log on a full disk: the code still has to come out
        if isinstance(error, RecipeError):
            # A located line starts with its place, as a compiler's does: editors can jump to it.
            console.print(str(error), markup=False)
        else:
            console.print("[bold red]error:[/] ", end="")
            console.print(str(error), markup=False)
    sys.exit(code)
