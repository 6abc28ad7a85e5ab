"""`rewarm lineage`: which model was trained from which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rewarm.cli.options import Json


def lineage(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A checkpoint, a run, or a folder of runs.")
    ],
    as_json: Json = False,
) -> None:
    """Draw which model descends from which, with rates and losses."""
    from rich.tree import Tree

    from rewarm.checkpoints.lineage import LineageNode, lineage_chains, lineage_forest

    found = lineage_chains(path)
    if as_json:
        print(json.dumps([[one.model_dump() for one in chain] for chain in found], indent=1))
        return

    def drawn(node: LineageNode) -> Tree:
        tree = Tree(node.model.in_words())
        tree.children += map(drawn, node.children)
        return tree

    console = Console(highlight=False, emoji=False, markup=False)
    console.width = max(console.width, 120) if console.is_terminal else 1000
    for root in lineage_forest(found):
        console.print(drawn(root))
