"""Checks `keep.best` against the validation sets, and against when the run evaluates and saves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic_core import InitErrorDetails

from rewarm.errors import did_you_mean
from rewarm.recipe.fields import field_problem
from rewarm.recipe.periodic_work import EverySettings
from rewarm.recipe.training_settings import KeepSettings


def best_problems(
    keep: KeepSettings, validation: Iterable[str], every: EverySettings, steps: int
) -> Iterator[InitErrorDetails]:
    """Yields what is wrong with `keep.best`: unknown names, or no checkpoints to compare.

    Args:
        keep: the section `keep`.
        validation: the names of the validation sets.
        every: when the run evaluates and saves.
        steps: steps of the run.
    """
    known = list(validation)
    for name in keep.best_sets:
        if name not in known:
            yield field_problem(
                ("keep", "best"),
                f"no validation set named {name!r}{did_you_mean(name, known)} "
                f"(data.validation: {', '.join(known) or 'none'})",
                keep.best,
            )
            return
    if len(set(keep.best_sets)) < len(keep.best_sets):
        yield field_problem(
            ("keep", "best"), "names a validation set twice; give each once", keep.best
        )
    saves = range(every.save, steps, every.save) if every.save else range(0)
    evaluations = every.evaluations(steps)
    if keep.best and saves and not any(step in due for due in evaluations for step in saves):
        yield field_problem(
            ("keep", "best"),
            f"no step before the last one, {steps:,}, is both evaluated and saved (every.save: "
            f"{every.save:,}), so there would be nothing to compare; save more often, at a "
            "multiple of every.evaluate",
            keep.best,
        )
