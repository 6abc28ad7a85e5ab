"""What a study expects, as inequalities between measured figures, and whether the runs bear it out.

```
claim  = sum ("<" | ">") sum  |  overtakes(ARM, ARM, SET) ("after" | "before") PERCENT
sum    = product (("+" | "-") product)*
product= value (("*" | "/") value)*
value  = NUMBER | PERCENT | "abs(" sum ")" | "(" sum ")" | FIGURE(SET, ARM)
```

Figures are in nats: `start` and `final` loss; `forgetting`, the rise from one to the other, and
`adaptation`, the fall; `bump`, the highest rise on the way; `area`, the mean loss over the run's
tokens. `overtakes(A, B, SET)` is the share of the run from which A's loss stays below B's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from rewarm.errors import did_you_mean
from rewarm.study.intervals import Estimate, estimate_mean

FIGURES = ("start", "final", "forgetting", "adaptation", "bump", "area")


class FigureRequest(NamedTuple):
    """A figure that a claim asks for."""

    figure: str
    on: str
    """The validation set."""
    arms: tuple[str, ...]
    """One, or for `overtakes` two."""


FigureLookup = Callable[[FigureRequest, int], float | None]
"""Says a figure for a seed; None where it is not known, or, of `overtakes`, where it never is."""

Value = Callable[[FigureLookup, int], float | None]


class Verdict(NamedTuple):
    """What the runs say of a claim."""

    verdict: Literal["held", "not held", "undecided"]
    effect: Estimate | None
    """By how much the left side is above the right one, seed by seed on the same batches."""
    why: str


class Claim(NamedTuple):
    """A parsed claim."""

    text: str
    difference: Value
    """Left side less right side."""
    above: bool
    """Whether it should be above 0, and not below."""
    asked: frozenset[FigureRequest]

    def judge(self, known: FigureLookup, seeds: Iterable[int]) -> Verdict:
        """Returns whether it holds over the seeds, with effect and interval."""
        tried = list(seeds)
        differences = [self.difference(known, seed) for seed in tried]
        there = [one for one in differences if one is not None]
        effect = estimate_mean(there)
        if effect is None:
            return Verdict(*self._never(known, tried))
        if len(there) < len(tried):
            missing = len(tried) - len(there)
            return Verdict("undecided", effect, f"{missing} of {len(tried)} seeds have no value")
        if effect.interval is None:
            return Verdict("undecided", effect, "one seed has no interval")
        low, high = effect.interval
        if low <= 0 <= high:
            return Verdict("undecided", effect, "the 95 % interval has 0 in it")
        return Verdict("held" if (low > 0) is self.above else "not held", effect, "")

    def _never(
        self, known: FigureLookup, seeds: list[int]
    ) -> tuple[Literal["not held", "undecided"], None, str]:
        """Returns the verdict where the difference is known for no seed."""
        crossings = [one for one in self.asked if one.figure == "overtakes"]
        measured = [
            all(known(FigureRequest("final", one.on, (arm,)), seed) is not None for arm in one.arms)
            for one in crossings
            for seed in seeds
        ]
        if measured and all(measured):
            return "not held", None, "it is never overtaken"
        return "undecided", None, "not measured"


_TOKEN = re.compile(
    r"\s*(?:(?P<call>(?!abs\b)[a-z]+)\s*\((?P<args>[^()]*)\)|(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)(?P<percent>\s*%)?"
    r"|(?P<sign><|>|after\b|before\b|abs\s*\(|[-+*/()]))"
)


def parse_claim(text: str, *, arms: list[str], sets: list[str]) -> Claim:
    """Returns a claim.

    Args:
        text: as it is written.
        arms: those of the study.
        sets: the names of its validation sets.

    Raises:
        ValueError: it is not written as above, or names what there is not.
    """
    return _Parser(text, arms, sets).claim()


class _Parser:
    def __init__(self, text: str, arms: list[str], sets: list[str]) -> None:
        self._text, self._arms, self._sets = text, arms, sets
        self._asked: set[FigureRequest] = set()
        self._tokens: list[re.Match[str]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self._wrong(f"cannot read {text[place:].strip()[:30]!r}")
            self._tokens.append(match)
            place = match.end()
        self._next = 0

    def claim(self) -> Claim:
        left = self._sum()
        sign = self._sign("<", ">", "after", "before")
        if sign is None:
            raise self._wrong("should compare two sides with < or >")
        right = self._sum()
        if self._next < len(self._tokens):
            raise self._wrong(
                f"cannot read {self._tokens[self._next][0].strip()!r} where it stands"
            )
        crossing = any(one.figure == "overtakes" for one in self._asked)
        if sign in ("after", "before") and not crossing:
            raise self._wrong(f"{sign} goes with overtakes(ARM, ARM, SET)")
        return Claim(
            self._text,
            lambda known, seed: _both(left(known, seed), right(known, seed), lambda a, b: a - b),
            sign in (">", "after"),
            frozenset(self._asked),
        )

    def _sum(self) -> Value:
        value = self._product()
        while sign := self._sign("+", "-"):
            value = _joined(value, self._product(), sign)
        return value

    def _product(self) -> Value:
        value = self._value()
        while sign := self._sign("*", "/"):
            value = _joined(value, self._value(), sign)
        return value

    def _value(self) -> Value:
        if self._sign("-"):
            return _joined(lambda *_: 0.0, self._value(), "-")
        if self._sign("("):
            return self._closed(self._sum())
        if self._sign("abs("):
            inner = self._closed(self._sum())

            def absolute(known: FigureLookup, seed: int) -> float | None:
                value = inner(known, seed)
                return None if value is None else abs(value)

            return absolute
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or not (token["call"] or token["number"]):
            raise self._wrong("should have a figure or a number on each side")
        self._next += 1
        if token["number"]:
            try:
                number = float(token["number"]) / (100 if token["percent"] else 1)
            except ValueError:
                raise self._wrong(f"{token['number']} is not a number") from None
            return lambda *_: number
        asked = self._figure(token["call"], [one.strip() for one in token["args"].split(",")])
        self._asked.add(asked)
        return lambda known, seed: known(asked, seed)

    def _figure(self, name: str, given: list[str]) -> FigureRequest:
        if name == "overtakes":
            *arms, on = given
            wanted = "overtakes(ARM, ARM, SET)"
        elif name in FIGURES:
            on, *arms = given
            wanted = f"{name}(SET, ARM)"
        else:
            near = did_you_mean(name, [*FIGURES, "overtakes"])
            raise self._wrong(
                f"no figure named {name!r}{near} (figures: {', '.join(FIGURES)}, overtakes)"
            )
        if len(given) != wanted.count(",") + 1:
            raise self._wrong(f"{name} should be written {wanted}")
        for arm in arms:
            if arm not in self._arms:
                near = did_you_mean(arm, self._arms)
                raise self._wrong(f"no arm named {arm!r}{near} (arms: {', '.join(self._arms)})")
        if on not in self._sets:
            near = did_you_mean(on, self._sets)
            raise self._wrong(
                f"no validation set named {on!r}{near} (sets: {', '.join(self._sets) or 'none'})"
            )
        return FigureRequest(name, on, tuple(arms))

    def _closed(self, inner: Value) -> Value:
        if not self._sign(")"):
            raise self._wrong("a bracket is not closed")
        return inner

    def _sign(self, *wanted: str) -> str | None:
        if self._next < len(self._tokens):
            sign = re.sub(r"\s", "", self._tokens[self._next]["sign"] or "")
            if sign in wanted:
                self._next += 1
                return sign
        return None

    def _wrong(self, how: str) -> ValueError:
        return ValueError(
            f"{how}; a claim is written such as `final(upstream, a) < final(upstream, b)` or "
            "`overtakes(a, b, downstream) after 30%`"
        )


def _both(
    one: float | None, other: float | None, joined: Callable[[float, float], float]
) -> float | None:
    return None if one is None or other is None else joined(one, other)


def _joined(left: Value, right: Value, sign: str) -> Value:
    how: dict[str, Callable[[float, float], float]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b if b else math.inf,
    }
    return lambda known, seed: _both(left(known, seed), right(known, seed), how[sign])
