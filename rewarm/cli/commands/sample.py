"""`rewarm sample`: how checkpoints continue prompts."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from rewarm.cli.options import Json
from rewarm.cli.standard_streams import print_json


def sample(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint, a run (its last one; another as RUN@STEP), or any NeoX base.",
        ),
    ],
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", metavar="TEXT", help="Text to continue; may be repeated."),
    ],
    tokens: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of tokens to add.", min=1)
    ] = 64,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="T", help="0: the most probable token each time; above: drawn.", min=0
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draws.", min=0)] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="By default that of the checkpoint."),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16|fp16", help="Of the forward pass.")
    ] = "fp32",
    as_json: Json = False,
) -> None:
    """Print how checkpoints continue prompts: the same text each time.

    Example: rewarm sample runs/rewarm --prompt "Once upon a time"
    """
    from rewarm.training.sample_checkpoint import sample_checkpoint

    if precision not in ("fp32", "bf16", "fp16"):
        raise typer.BadParameter(f"--precision {precision}: should be fp32, bf16 or fp16")
    entries = []
    for name in checkpoints:
        samples = sample_checkpoint(
            name,
            prompts,
            tokens=tokens,
            temperature=temperature,
            seed=seed,
            tokenizer=tokenizer,
            precision=precision,
        )
        if len(checkpoints) > 1 and not as_json:
            print(f"{name}:\n")
        for prompt, text in samples:
            entries.append({"checkpoint": name, "prompt": prompt, "text": text})
            if not as_json:
                _print_sample(prompt, text)
    if as_json:
        print_json(json.dumps(entries, indent=1))


def _print_sample(prompt: str, text: str) -> None:
    """Prints a prompt, in bold on a terminal, and its continuation."""
    from rewarm.errors import escape_unprintable

    def shown(part: str) -> str:  # a model may write anything, such as terminal commands
        return "\n".join(map(escape_unprintable, part.split("\n")))

    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold}{shown(prompt)}{plain}{shown(text)}\n")
