"""Constraints of a search: `upstream rise <= 0.03`, `downstream fall >= 0.5`, `upstream <= 3.2`.

```
constraint = SET ["rise" | "fall"] ("<=" | "<" | ">=" | ">") NUMBER
```
SET is a validation set, or `upstream` or `downstream` for the mean over the sets of that role.
`rise` and `fall` count from before step 1; without them it is the last loss; all in nats. The names
`forgetting` and `adaptation` of a study's claims are accepted for `rise` and `fall`. Claims
themselves compare arms over seeds, and would allow what no bound of one loss decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from rewarm.errors import RecipeError, did_you_mean
from rewarm.predict.arms import StudiedArms
from rewarm.recipe.fields import Role

_CONSTRAINT = re.compile(
    r"\s*(?P<set>\S+?)(?:\s+(?P<metric>[A-Za-z]+))?\s*(?P<sign>[<>]=?)\s*(?P<number>\S+)\s*"
)
_SIGNS = {"rise": 1.0, "forgetting": 1.0, "fall": -1.0, "adaptation": -1.0}
_EXAMPLE = "a constraint is written such as 'upstream rise <= 0.03' or 'downstream <= 3.2'"

_Value = TypeVar("_Value", float, np.ndarray)


class Constraint(NamedTuple):
    """An upper limit of the mean loss on some validation sets."""

    text: str
    sets: tuple[str, ...]
    role: Role
    highest_loss: float
    """In nats: also a limit of a rise or fall counts from the loss before step 1."""
    describe: Callable[[float], str]
    """Writes a loss as the constraint does: `rise 0.031`."""

    def excess(self, losses: Mapping[str, _Value]) -> _Value:
        """Returns how far losses are above the limit, in nats; at most 0 if it holds."""
        return mean_loss(losses, self.sets) - self.highest_loss


def mean_loss(losses: Mapping[str, _Value], sets: tuple[str, ...]) -> _Value:
    """Returns the mean of the losses on some validation sets."""
    total = losses[sets[0]]
    for name in sets[1:]:
        total = total + losses[name]
    return total / len(sets)


def parse_constraint(text: str, arms: StudiedArms) -> Constraint:
    """Returns the constraint that a text expresses.

    Raises:
        RecipeError: it is not of the form above, names an unknown set, or limits a loss from below.
    """
    match = _CONSTRAINT.fullmatch(text)
    number = _number(match["number"]) if match else None
    if match is None or number is None:
        raise _error(text, "cannot be read")
    metric = match["metric"]
    if metric is not None and metric not in _SIGNS:
        hint = did_you_mean(metric, list(_SIGNS))
        raise _error(text, f"no metric named {metric!r}{hint} (metrics: rise, fall)")
    sets, role = _sets(text, match["set"], arms)
    start = mean_loss(arms.starts, sets)
    sign = _SIGNS.get(metric, 0.0) if metric else 0.0
    upper = match["sign"].startswith("<")
    if upper is (sign < 0):
        raise _error(
            text, "it asks for a higher loss; use <= for a loss or its rise, and >= for its fall"
        )
    highest = start + sign * number if sign else number

    def describe(loss: float) -> str:
        value = sign * (loss - start) if sign else loss
        return f"{match['set']} {f'{metric} ' if metric else ''}{value:.3f}"

    return Constraint(text.strip(), sets, role, highest, describe)


def _sets(text: str, name: str, arms: StudiedArms) -> tuple[tuple[str, ...], Role]:
    if name in arms.roles:
        return (name,), arms.roles[name]
    for role in ("upstream", "downstream"):
        if name == role:
            return arms.sets(role), role
    known = list(dict.fromkeys([*arms.roles, "upstream", "downstream"]))
    if name in arms.not_described:
        raise _error(text, f"{name} is neither upstream nor downstream, and is not predicted")
    hint = did_you_mean(name, known)
    raise _error(text, f"no validation set named {name!r}{hint} (sets: {', '.join(known)})")


def _number(written: str) -> float | None:
    try:
        number = float(written)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _error(text: str, problem: str) -> RecipeError:
    return RecipeError([f"--keep {text!r}: {problem}; {_EXAMPLE}"])
