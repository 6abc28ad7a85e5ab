"""`rewarm lineage`: shows which model was trained from which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rewarm.cli.options import Json
from rewarm.line_wrapping import wrap_parts

_INDENT = 4
"""Columns by which a tree is indented at each level."""


def lineage(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A checkpoint, a run, or a folder of runs.")
    ],
    as_json: Json = False,
) -> None:
    """Show which model was trained from which, with learning rates and losses.

    Example: rewarm lineage runs
    """
    from rich.tree import Tree

    from rewarm.checkpoints.lineage import LineageNode, lineage_forest, read_lineages

    lineages = read_lineages(path)
    if as_json:
        documents = [[model.model_dump() for model in lineage] for lineage in lineages]
        print(json.dumps(documents, indent=1))
        return

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # a model is one line

    def tree_of(node: LineageNode, width: int) -> Tree:
        tree = Tree(wrap_parts(node.model.facts(), width))
        tree.children += [tree_of(child, width - _INDENT) for child in node.children]
        return tree

    for root in lineage_forest(lineages):
        console.print(tree_of(root, console.width))
