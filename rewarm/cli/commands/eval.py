"""`rewarm eval`: checkpoints on shards (loss, bits per byte) and on tasks of lm-eval."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewarm.cli.options import Json
from rewarm.cli.standard_streams import print_json
from rewarm.cli.terminal_tables import print_notes, print_result_table
from rewarm.errors import Diverged

if TYPE_CHECKING:
    from rewarm.table_cells import Table
    from rewarm.training.evaluate_checkpoint import MeasuredCheckpoint

    _Measured = tuple[str, MeasuredCheckpoint]  # a checkpoint as the user named it


def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint, a run (its last one), or any NeoX base."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Shards to measure on; may be repeated."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Tasks of the LM Evaluation Harness: lambada_openai,hellaswag."
        ),
    ] = None,
    include_path: Annotated[
        str | None, typer.Option(metavar="DIR", help="Tasks of your own, as YAML files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first questions of a task.", min=1)
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(metavar="N", help="Examples before a question; as the task says.", min=0),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Repeat tasks that were measured before.")
    ] = False,
    tokens: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Measure on the first so many of each.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens in a sequence; by default as in the checkpoint's recipe, or else the "
            "model's positions.",
            min=1,
        ),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(
            metavar="attend-across|separate",
            help="By default as in the checkpoint's recipe, or else attend-across.",
        ),
    ] = None,
    microbatch: Annotated[int, typer.Option(metavar="N", help="Sequences at once.", min=1)] = 8,
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16|fp16", help="Of the forward pass.")
    ] = "fp32",
    as_json: Json = False,
) -> None:
    """Measure loss, perplexity and bits per byte of checkpoints on shards, or tasks.

    Example: rewarm eval runs/base runs/rewarm --data code=shards/code/val
    """
    if not (data or tasks):
        raise typer.BadParameter("nothing to measure: give --data NAME=DIR, or --tasks A,B")
    token_limit = _parse_tokens(tokens)
    if not tasks and (include_path or limit is not None or few_shot is not None or again):
        raise typer.BadParameter(
            "--include-path, --limit, --few-shot and --again are about tasks: name some (--tasks)"
        )
    sets = _parse_sets(data or [])
    if precision not in ("fp32", "bf16", "fp16"):
        raise typer.BadParameter(f"--precision {precision}: should be fp32, bf16 or fp16")
    if documents not in (None, "attend-across", "separate"):
        raise typer.BadParameter(f"--documents {documents}: should be attend-across or separate")
    from rewarm.data.shard_source import ShardSource
    from rewarm.training.evaluate_checkpoint import CheckpointEvaluator

    evaluator = CheckpointEvaluator(
        {name: ShardSource(folder) for name, folder in sets.items()},
        context=context,
        documents=documents,
        microbatch=microbatch,
        tokens=token_limit,
        precision=precision,
    )
    measured = [(name, evaluator.measure(name)) for name in checkpoints] if sets else []
    task_figures = []
    if tasks:
        from rewarm.cli.task_output import measure_tasks, task_table

        task_figures = measure_tasks(
            checkpoints,
            tasks,
            include=include_path,
            limit=limit,
            few_shot=few_shot,
            microbatch=microbatch,
            precision=precision,
            again=again,
        )
    # stdout has the results only
    print_notes([*_settings_lines(measured, precision), *_bytes_lines(measured)], stderr=True)
    if as_json:
        content = [_as_json(name, result) for name, result in measured]
        content = content or [{"checkpoint": name} for name in checkpoints]
        for entry, (_, result) in zip(content, task_figures, strict=False):
            entry |= {k: v if math.isfinite(v) else None for k, v in result.figures.items()}
        print_json(json.dumps(content, indent=1, allow_nan=False))
    else:
        if measured:
            print_result_table(_loss_table(measured), show_title=False, names=2)
        if task_figures:
            print_result_table(task_table(task_figures), show_title=False, names=3)
    _check_finite(measured, precision)


def _parse_tokens(tokens: str | None) -> int | None:
    from rewarm.quantities import parse_positive_count

    try:
        return parse_positive_count(tokens) if tokens else None
    except ValueError as error:
        raise typer.BadParameter(f"--tokens {tokens}: {error}") from None


def _parse_sets(data: list[str]) -> dict[str, str]:
    """Returns the shards of each validation set by its name."""
    sets: dict[str, str] = {}
    for option in data:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder) or name in sets:
            raise typer.BadParameter(f"--data {option}: should be NAME=DIR, each name once")
        sets[name] = folder
    return sets


def _as_json(checkpoint: str, measured: MeasuredCheckpoint) -> dict[str, Any]:
    settings = measured.settings
    entry = {
        "checkpoint": checkpoint,
        "context": settings.context,
        "documents": settings.documents,
    }
    return entry | {
        f"{name}/{key}": value if value is not None and math.isfinite(value) else None
        for name, result in measured.losses.items()
        for key, value in (
            ("loss", result.loss),
            ("perplexity", result.perplexity),
            ("bits_per_byte", result.bits_per_byte),
            ("tokens", result.tokens),
            ("bytes", result.text_bytes and round(result.text_bytes.size)),
        )
    }


def _loss_table(measured: list[_Measured]) -> Table:
    from rewarm.table_cells import Cell, Table, count_cell, number_cell

    columns = ["checkpoint", "set", "loss", "perplexity", "bits/byte", "tokens", "vs first"]
    rows = []
    _, reference = measured[0]
    for checkpoint, result in measured:
        for name, loss in result.losses.items():
            difference = None
            if result is not reference and _are_comparable(result, reference):
                difference = loss.loss - reference.losses[name].loss
            rows.append(
                [
                    Cell(checkpoint),
                    Cell(name),
                    number_cell(loss.loss, ".4f"),
                    number_cell(loss.perplexity, ",.2f"),
                    number_cell(loss.bits_per_byte, ".4f"),
                    count_cell(loss.tokens),
                    number_cell(difference, "+.4f"),
                ]
            )
    return Table("Losses", "", columns, rows)


def _are_comparable(first: MeasuredCheckpoint, second: MeasuredCheckpoint) -> bool:
    """Returns whether two checkpoints predicted the same tokens from the same ones before them."""
    return (first.settings.context, first.settings.documents) == (
        second.settings.context,
        second.settings.documents,
    )


def _settings_lines(measured: list[_Measured], precision: str) -> Iterator[str]:
    """Yields how the checkpoints were measured, a line for all or one for each."""
    if not measured:
        return
    if len({result.settings for _, result in measured}) == 1:
        yield f"measured with {measured[0][1].settings}, {precision}"
        return
    for name, result in measured:
        yield f"measured with {result.settings}, {precision}: {name}"
    if not all(_are_comparable(result, measured[0][1]) for _, result in measured):
        yield (
            "note: measured differently, so their losses do not compare; give --context and "
            "--documents"
        )


def _bytes_lines(measured: list[_Measured]) -> Iterator[str]:
    """Yields which sets have bytes that are no count of exactly the measured tokens."""
    if not measured:
        return
    _, first = measured[0]
    for name, result in first.losses.items():
        if result.text_bytes is None:
            yield (
                f"note: {name}: no bits per byte: its index has no bytes of text, and its "
                "tokenizer is not a byte-level BPE; write its shards again from text"
            )
        elif not result.text_bytes.is_counted:
            yield (
                f"note: {name}: bits per byte with the mean bytes per token of its shards: its "
                "tokenizer is not a byte-level BPE"
            )


def _check_finite(measured: list[_Measured], precision: str) -> None:
    """Makes sure that all losses that were measured are finite.

    Raises:
        Diverged: one is not.
    """
    problems = [
        f"{checkpoint}: its loss is not finite on {', '.join(names)}"
        for checkpoint, result in measured
        if (names := list(result.not_finite()))
    ]
    if problems:
        other = "" if precision == "fp32" else ", or try --precision fp32"
        raise Diverged(f"{'; '.join(problems)}; use an earlier checkpoint{other}")
