"""The README.md of a checkpoint: a model card, as the Hugging Face Hub shows it.

It is for people: nothing reads it, and it may be edited, which is how a license gets into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rewarm.checkpoints.training_state import Ancestor, TrainingState
from rewarm.errors import escape_unprintable
from rewarm.markdown import escape_markdown, markdown_row
from rewarm.model.architecture import Architecture
from rewarm.quantities import parse_count
from rewarm.recipe.yaml_document import YamlDocument, write_yaml
from rewarm.remote_storage import is_url

_LICENSE = """\
Not stated. Which licenses are possible depends on those of the base model and of the data: choose
one, and set `license:` at the top of this file. rewarm does not check this file, so editing it
leaves the checkpoint intact."""


def model_card(architecture: Architecture, state: TrainingState, recipe_yaml: str) -> str:
    """Returns the model card of a checkpoint.

    It depends on nothing but the arguments, and has no local paths. Losses are in nats per token.

    Args:
        architecture: architecture of the model.
        state: the training state in the checkpoint.
        recipe_yaml: the recipe of the run, with all defaults written out.
    """
    recipe = YamlDocument(recipe_yaml, "recipe.yaml").data
    steps = parse_count(recipe["tokens"]) // parse_count(recipe["batch"]["tokens"])
    sections = {
        "Base": _base(state.lineage),
        "Data": _data(state, recipe),
        "Schedule": _schedule(state, recipe["schedule"]),
        "Losses": _losses(state, recipe["data"]["validation"]),
        "License": _LICENSE,
    }
    introduction = (
        f"A GPT-NeoX model of {architecture.parameters:,} parameters after step {state.step:,} of "
        f"{steps:,} of continual pre-training with rewarm {escape_markdown(state.rewarm)}. "
        "`recipe.yaml` has all settings."
    )
    if state.averaging:
        introduction += f" The weights are averaged: {state.averaging.one_line()}."
    if not state.lineage:
        introduction = introduction.replace("continual pre-training", "pre-training")
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_metadata(state.lineage)}\n# Model card\n\n{introduction}\n\n{body}\n"


def _metadata(lineage: list[Ancestor]) -> str:
    """Returns what the hub reads, which accepts only its own models as `base_model`."""
    hub_models = [
        model.name
        for model in lineage
        if model.commit and re.fullmatch(r"[\w.-]+/[\w.-]+", model.name, re.ASCII)
    ]
    base = f"base_model: {hub_models[-1]}\n" if hub_models else ""
    return (
        "---\n# license: (yours to choose, see below)\nlibrary_name: transformers\n"
        f"pipeline_tag: text-generation\n{base}tags:\n- gpt_neox\n- rewarm\n---\n"
    )


def _base(lineage: list[Ancestor]) -> str:
    if not lineage:
        return "None: the weights were newly initialized."
    columns = ["model", "revision", "step", "tokens", "last learning rate", "sha256 of its weights"]
    rows = [
        [
            _local_name(model.name),
            model.revision or "",
            "" if model.step is None else f"{model.step:,}",
            "" if model.tokens is None else f"{model.tokens:,}",
            f"{model.lrs[-1]:.3g}" if model.lrs else "",
            model.sha256 or "",
        ]
        for model in lineage
    ]
    return f"The models that the weights descend from, the oldest first:\n\n{_table(columns, rows)}"


def _data(state: TrainingState, recipe: dict[str, Any]) -> str:
    rows = []
    for name, corpus in recipe["data"]["train"].items():
        source = corpus["shards"] if is_url(corpus["shards"]) else "a local folder"
        rows.append([name, _weight(corpus["weight"]), source])
    context = parse_count(recipe["data"]["context"])
    table = _table(["corpus", "weight", "shards"], rows)
    return f"{state.tokens:,} tokens, in sequences of {context:,}:\n\n{table}"


def _weight(weight: Any) -> str:
    """Returns the weight of a corpus; of one that changes during the run, all of them."""
    if not isinstance(weight, list):
        return str(weight)
    return ", ".join(f"{piece['weight']} from {piece['from']}" for piece in weight)


def _schedule(state: TrainingState, settings: dict[str, Any]) -> str:
    plugin = " ".join(state.schedule.get(key, "?") for key in ("distribution", "version"))
    lines = [f"The settings, of the package {escape_markdown(plugin)}:", ""]
    lines += [f"    {escape_unprintable(line)}" for line in write_yaml(settings).splitlines()]
    if state.lrs:
        first, highest, last = (f"{lr:.3g}" for lr in state.lrs)
        lines += ["", f"Learning rates so far: {first} first, {highest} at most, {last} last."]
    return "\n".join(lines)


def _losses(state: TrainingState, validation: dict[str, Any]) -> str:
    if not state.losses:
        return "Not measured."
    step = "last" if state.losses_step is None else f"after step {state.losses_step:,}"
    columns = ["validation set", "role", "before step 1", step, "change"]
    rows = []
    for name, loss in state.losses.items():
        baseline = state.baseline.get(name)
        # A baseline that was measured later is not that before step 1.
        is_first = baseline is not None and name not in state.baseline_steps
        rows.append(
            [
                name,
                (validation.get(name) or {}).get("role") or "",
                f"{baseline:.4f}" if is_first else "",
                f"{loss:.4f}",
                f"{loss - baseline:+.4f}" if is_first and baseline is not None else "",
            ]
        )
    return f"In nats per token:\n\n{_table(columns, rows)}"


def _table(columns: list[str], rows: Iterable[list[str]]) -> str:
    lines = [markdown_row(columns), f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *map(markdown_row, rows)])


def _local_name(name: str) -> str:
    """Returns a model's name; of a path, only its last part."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
