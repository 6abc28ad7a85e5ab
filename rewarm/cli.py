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
from rewarm import recipe as recipes
from rewarm import shelf, tables
from rewarm.errors import (
    CheckpointError,
    DataError,
    RecipeError,
    RewarmError,
)

if TYPE_CHECKING:
    from rewarm.evaluate import Measured
    from rewarm.shards import Index

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

app.add_typer(shelf.app, name="schedules", rich_help_panel=AHEAD)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


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


def _base_lr(model: recipes.Model) -> float:
    from rewarm.lineage import base_lr

    return base_lr(model)


def _load(path: Path, overrides: list[str] | None) -> recipes.Recipe:
    return recipes.load(path, overrides, base_lr=_base_lr)


@app.command(rich_help_panel=AHEAD)
def check(recipe: RecipeFile, overrides: Set = None, as_json: Json = False) -> None:
    """Print what a recipe will do, as arithmetic, without doing it."""
    from rewarm.check import in_text, plan

    found, problem = plan(_load(recipe, overrides))
    print(found.model_dump_json(indent=1) if as_json else in_text(found))
    if problem:
        problem.args = ("\n".join(found.problems),)
        raise problem


@app.command("plot-schedule", rich_help_panel=AHEAD)
def plot_schedule(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="RECIPE", help="Recipes to overlay.")
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A schedule without a recipe, with its settings by --set, or as "
            "'{name: wsd, decay: 10%}'; may be repeated.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="How long --schedule runs: 10B; in batches of 2,097,152 unless "
            "--set batch.tokens says otherwise.",
        ),
    ] = None,
    overrides: Set = None,
    zoom: Annotated[
        str,
        typer.Option(
            metavar="FROM:TO",
            show_default=False,
            help="Draw only this part of each run, every step of it: 0:2%, :500, 98%:, 1B:2B.",
        ),
    ] = ":",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE,...",
            help="Print the exact rates at the steps nearest to these places instead: "
            "1,656,1%,240B (step, step, share, tokens).",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORM", help="Print --at as table (if not said), csv or json."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the curves to a .png, .svg, .csv or .json instead of the terminal.",
        ),
    ] = None,
) -> None:
    """Draw the learning rate of recipes, by the function that trains."""
    from rewarm import curve, plot

    if at is not None and (out is not None or zoom != ":"):
        raise typer.BadParameter("--at prints values at places; it goes without --out and --zoom")
    if form is not None and at is None:
        raise typer.BadParameter(
            "--format goes with --at; write curves with --out FILE.csv or .json"
        )
    if form not in (None, "table", "csv", "json"):
        raise typer.BadParameter(f"--format {form}: should be table, csv or json")
    runs = _to_draw(files or [], schedule or [], tokens, overrides or [])
    if at is not None:
        _print_values(runs, at, form or "table")
        return
    most = 1000
    if out:
        every = zoom != ":" and out.suffix in (".csv", ".json")
        most = curve.MOST_STEPS if every else curve.MOST_POINTS
    for name, run in runs.items():
        try:
            curve.stretch(zoom, run)
        except ValueError as error:
            where = f"{name}: " if len(runs) > 1 else ""
            raise typer.BadParameter(f"--zoom {zoom}: {where}{error}") from None
    curves = [curve.curve(name, run, most, zoom) for name, run in runs.items()]
    if out:
        plot.save(curves, out)
        print(f"{out}: {len(curves)} {'curve' if len(curves) == 1 else 'curves'}")
    else:
        console = Console()
        color = console.color_system is not None and not console.no_color
        print(plot.in_terminal(curves, color=color))


def _to_draw(
    files: list[Path], schedules: list[str], tokens: str | None, overrides: list[str]
) -> dict[str, recipes.Recipe]:
    """Returns the recipes by names that tell them apart."""
    from rewarm.curve import bare

    if not (files or schedules):
        raise typer.BadParameter("name a RECIPE to draw, or --schedule NAME --tokens COUNT")
    if tokens is not None and not schedules:
        raise typer.BadParameter("--tokens goes with --schedule; for a recipe, --set tokens=COUNT")
    stems = [path.stem for path in files]
    names = stems if len({*stems, *schedules}) == len(stems + schedules) else map(str, files)
    runs: dict[str, recipes.Recipe] = {}
    drawn = [(name, _load(path, overrides)) for name, path in zip(names, files, strict=True)]
    drawn += [(one, bare(one, tokens, overrides, base_lr=_base_lr)) for one in schedules]
    for name, run in drawn:
        again = sum(name == other for other, _ in drawn[: len(runs)])
        runs[f"{name} ({again + 1})" if again else name] = run
    return runs


def _print_values(runs: dict[str, recipes.Recipe], at: str, form: str) -> None:
    from rewarm import curve, plot

    try:
        values = curve.values(runs, at)
    except ValueError as error:
        raise typer.BadParameter(f"--at {at}: {error}") from None
    if form == "csv":
        plot.write_csv(curve.Value._fields, values, sys.stdout)
        return
    if form == "json":
        print(json.dumps([one._asdict() for one in values], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", overflow="fold")
    for column in ("at", "step", "tokens", "progress", "rate"):
        table.add_column(column, justify="right", no_wrap=True)
    above = None
    for one in values:
        name = "" if one.recipe == above else one.recipe
        progress, rate = f"{one.progress:.4%}", plot.rate_in_words(one.lr, 7)
        table.add_row(name, one.at, f"{one.step:,}", f"{one.tokens:,}", progress, rate)
        above = one.recipe
    tables.show(table)


@app.command(rich_help_panel=AHEAD)
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from rewarm import shipped

    print(shipped.schema(), end="")


@app.command(rich_help_panel=PREPARE)
def new(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A shipped recipe; without it, a list.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write into.")] = Path(),
) -> None:
    """Write a recipe to begin from, with comments, and the schema that editors check it by."""
    from rewarm import shipped

    if name is not None:
        print("\n".join(str(path) for path in shipped.write(name, out)))
        return
    table = tables.table("recipe", "what it does")
    for shipped_name, what in shipped.names().items():
        table.add_row(shipped_name, what)
    tables.show(table)


@app.command(rich_help_panel=PREPARE)
def shard(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="jsonl (.zst, .gz), txt, parquet, tars of text, datasets saved to disk, "
            "Megatron's .bin + .idx, and folders of them.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="T", help="A tokenizer.json, a local folder, or a hub name.")
    ],
    field: Annotated[str, typer.Option(help="The field or column that holds the text.")] = "text",
    shard_size: Annotated[
        str, typer.Option(metavar="TOKENS", help="Tokens in one tar, about.")
    ] = "16M",
    validation: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Hold out this share, by content: DIR/train, DIR/val."),
    ] = "0%",
    eos: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="The end-of-text token, if not the usual.")
    ] = None,
) -> None:
    """Turn text into token shards."""
    from rewarm import sharding
    from rewarm import tokenizer as tokenizers
    from rewarm.quantities import parse_count, parse_share

    try:
        size, held_out = parse_count(shard_size), parse_share(validation)
        if not (size > 0 and 0 <= held_out < 1):
            raise ValueError("--shard-size should be above 0, and --validation from 0 to below 1")
    except ValueError as error:
        raise typer.BadParameter(
            f"--shard-size {shard_size}, --validation {validation}: {error}"
        ) from None
    said = tokenizers.load(tokenizer, eos)
    with _ShardBar(inputs) as bar:
        indices = sharding.shard(
            inputs,
            out,
            said,
            field=field,
            shard_tokens=size,
            validation=held_out,
            progress=bar.show,
        )
    _print_shards(out, indices)
    print(bar.summary())


@app.command(rich_help_panel=PREPARE)
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of shards, a run, or a checkpoint.")
    ],
    overlap: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="Also look for documents that stand in OTHER too."),
    ] = None,
) -> None:
    """Read every shard, or every checkpoint, whole, and compare it with its index."""
    from rewarm import bases, manifest, shards

    saved = list(bases.checkpoints(folder).values())
    if saved or (folder / manifest.MANIFEST).is_file():
        _verify_checkpoints(folder, saved or [folder])
        return
    found = shards.verify(folder)
    for one in found:
        whole = len(one.held.shards) - len(one.bad)
        print(f"{one.folder}: {whole:,} of {len(one.held.shards):,} shards are whole")
    bad = [line for one in found for line in one.bad]
    if bad:
        raise DataError("\n".join(bad))
    if overlap is not None:
        pairs = [
            pair
            for one in found
            for other in shards.verify(overlap)
            for pair in shards.overlap(one.folder, other.folder)
        ]
        for one_place, other_place in pairs[:10]:
            print(f"{one_place} = {other_place}")
        if pairs:
            raise DataError(
                f"{len(pairs):,} documents stand in both {folder} and {overlap}; take them out of "
                "one, or what is measured has been trained on"
            )
        print(f"no document stands in both {folder} and {overlap}")


def _verify_checkpoints(folder: Path, saved: list[Path]) -> None:
    from rewarm import lineage, manifest
    from rewarm.progress import read_progress
    from rewarm.run import read_metrics

    bad = []
    for one in saved:
        try:
            manifest.verify(one)
            lineage.made_by(one)
            done = read_progress(one)
            print(f"{one}: whole: step {done.step:,}, {done.tokens:,} tokens")
        except RewarmError as error:
            bad.append(str(error))
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        try:
            print(f"{metrics}: {len(read_metrics(metrics)):,} lines")
        except RewarmError as error:
            bad.append(str(error))
    if bad:
        raise CheckpointError("\n".join(bad))


def _print_shards(out: Path, indices: dict[str, Index]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("folder", no_wrap=True)
    for column in ("shards", "documents", "tokens", "bytes/token"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, index in indices.items():
        size = sum(one.bytes for one in index.shards)
        table.add_row(
            str(out / name),
            str(len(index.shards)),
            f"{index.documents:,}",
            f"{index.tokens:,}",
            f"{size / index.tokens:.2f}",
        )
    tables.show(table)


class _ShardBar:
    """Progress of `shard`: a bar on a terminal, nothing elsewhere; the figures at the end."""

    def __init__(self, inputs: list[Path]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from rewarm import texts

        total = sum(path.stat().st_size for path in texts.files(inputs))
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("sharding"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, said="")

    def __enter__(self) -> _ShardBar:
        import time

        self._clock = time.perf_counter
        self._started = self._clock()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = self._clock() - self._started
        self._bar.stop()

    def show(self, so_far: Any) -> None:
        self._last = so_far
        speed = so_far.tokens / max(1e-9, self._clock() - self._started)
        said = f"{so_far.documents:,} documents  {speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=so_far.read, said=said)

    def summary(self) -> str:
        last = self._last
        more = f"; {last.empty:,} empty texts left out" if last.empty else ""
        more += f"; {last.finished:,} documents were finished before" if last.finished else ""
        return f"{last.tokens / self._seconds:,.0f} tokens/s over {self._seconds:.1f} s{more}"


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
    checked = _load(recipe, overrides)
    from rewarm.train import train as run

    print(run(checked, resume=resume, accept_changes=accept_changes, deadline=deadline))


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
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
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
    if precision not in ("fp32", "bf16"):
        raise typer.BadParameter(f"--precision {precision}: should be fp32 or bf16")
    from rewarm.evaluate import measure_checkpoint, perplexity
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
    from rewarm.evaluate import perplexity

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


@app.command(rich_help_panel=BACK)
def lineage(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A checkpoint, a run, or a folder of runs.")
    ],
    as_json: Json = False,
) -> None:
    """Draw which model descends from which, with rates and losses."""
    from rich.tree import Tree

    from rewarm.lineage import chains

    found = chains(path)
    if as_json:
        print(json.dumps([[one.model_dump() for one in chain] for chain in found], indent=1))
        return
    roots: list[Tree] = []
    drawn: dict[str, Tree] = {}
    for chain in found:
        above = None
        for one in chain:
            # What is the same weights is one node, whatever its children called it.
            key = one.sha256 or one.name
            if key not in drawn:
                drawn[key] = above.add(one.in_words()) if above else Tree(one.in_words())
                if above is None:
                    roots.append(drawn[key])
            above = drawn[key]
    console = Console(highlight=False, emoji=False, markup=False)
    console.width = max(console.width, 120) if console.is_terminal else 1000
    for root in roots:
        console.print(root)


@app.command("verify-resume", rich_help_panel=BACK)
def verify_resume(
    recipe: RecipeFile,
    overrides: Set = None,
    steps: Annotated[int, typer.Option(help="Steps to run, interrupted half-way.", min=2)] = 40,
) -> None:
    """Prove on this machine that an interrupted run ends, bit for bit, as one that was not."""
    import tempfile

    checked = _load(recipe, overrides)
    from rewarm.verify_resume import verify_resume as differences

    with tempfile.TemporaryDirectory(prefix="rewarm-verify-resume-") as work:
        differ = differences(checked, steps, Path(work))
    if differ:
        raise CheckpointError("the resumed run differs:\n  " + "\n  ".join(differ))
    print(
        f"{min(steps, checked.steps)} steps, straight and interrupted: weights, moments, stream "
        "and metrics are the same, bit for bit"
    )


def main() -> None:
    """Runs the command line; every error that a person can act on ends as a message and a code."""
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
            _fail(f"out of memory on the device: {text}; try a smaller batch.microbatch", 1)
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
