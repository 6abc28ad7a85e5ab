"""Claims of a study: inequalities between metrics of arms, and whether the runs confirm them.

```
claim  = sum ("<" | ">") sum  |  overtakes(ARM, ARM, SET) ("after" | "before") PERCENT
sum    = product (("+" | "-") product)*
product= value (("*" | "/") value)*
value  = NUMBER | PERCENT | "abs(" sum ")" | "(" sum ")" | METRIC(SET, ARM)
```

SET is a validation set, or `upstream` or `downstream` for the sets of that role: for their mean
loss, if there are several. Metrics of an arm on a set are in nats: `start` and `final` loss;
`forgetting`, the rise from start to end, and `adaptation`, the fall; `bump`, the rise to the
highest loss; `area`, the loss averaged over training. `bpb` is the final loss in bits per byte of
text. `overtakes(A, B, SET)` is the share of the run after which A's loss stays below B's.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from rewarm.errors import did_you_mean
from rewarm.study.intervals import Estimate, estimate_mean
from rewarm.study.loss_history import METRICS


class MetricRequest(NamedTuple):
    """A metric that a claim refers to."""

    metric: str
    validation_set: str
    arms: tuple[str, ...]
    """One arm; two for `overtakes`."""


MetricLookup = Callable[[MetricRequest, int], float | None]
"""Returns a metric for a seed; None if it was not measured, or if the arm never overtakes."""

Expression = Callable[[MetricLookup, int], float | None]
"""Returns the value of a part of a claim for a seed; None if any metric in it is None."""


class Verdict(NamedTuple):
    """What the runs show about a claim."""

    verdict: Literal["held", "not held", "undecided"]
    effect: Estimate | None
    """Left side minus right side, paired by seed; None if no seed has a value."""
    reason: str
    """Why the claim did not hold or is undecided; may be empty."""


class Claim(NamedTuple):
    """A parsed claim."""

    text: str
    difference: Expression
    """Left side minus right side."""
    expects_positive: bool
    """Whether the claim is that the difference is above 0; otherwise, that it is below 0."""
    metrics: frozenset[MetricRequest]

    def judge(self, lookup: MetricLookup, seeds: Iterable[int]) -> Verdict:
        """Returns the verdict over the seeds, with the effect and its 95% interval."""
        all_seeds = list(seeds)
        values = [self.difference(lookup, seed) for seed in all_seeds]
        differences = [value for value in values if value is not None]
        effect = estimate_mean(differences)
        if effect is None:
            return self._verdict_without_values(lookup, all_seeds)
        if len(differences) < len(all_seeds):
            missing = len(all_seeds) - len(differences)
            return Verdict(
                "undecided", effect, f"{missing} of {len(all_seeds)} seeds have no value"
            )
        if effect.interval is None:
            return Verdict("undecided", effect, "a single seed gives no interval")
        low, high = effect.interval
        if low <= 0 <= high:
            return Verdict("undecided", effect, "the 95% interval contains 0")
        is_positive = low > 0
        return Verdict("held" if is_positive is self.expects_positive else "not held", effect, "")

    def _verdict_without_values(self, lookup: MetricLookup, seeds: list[int]) -> Verdict:
        """Returns the verdict if no seed has a value.

        If all runs were measured, the reason can only be that no arm ever overtakes the other.
        """
        final_loss_exists = [
            lookup(MetricRequest("final", request.validation_set, (arm,)), seed) is not None
            for request in self.metrics
            if request.metric == "overtakes"
            for arm in request.arms
            for seed in seeds
        ]
        if final_loss_exists and all(final_loss_exists):
            return Verdict("not held", None, "it never overtakes")
        return Verdict("undecided", None, "not measured")


_TOKEN = re.compile(
    r"\s*(?:(?P<call>(?!abs\b)[a-z]+)\s*\((?P<args>[^()]*)\)|(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)(?P<percent>\s*%)?"
    r"|(?P<sign><|>|after\b|before\b|abs\s*\(|[-+*/()]))"
)


def parse_claim(text: str, *, arms: list[str], validation_sets: list[str]) -> Claim:
    """Returns the claim that a text expresses.

    Args:
        text: the claim as written in the study file.
        arms: the names of the study's arms.
        validation_sets: the names of its validation sets.

    Raises:
        ValueError: the text is not of the form above, or names an unknown arm, metric or set.
    """
    return _Parser(text, arms, validation_sets).parse()


class _Parser:
    """A recursive-descent parser of the grammar above: one method for each rule."""

    def __init__(self, text: str, arms: list[str], validation_sets: list[str]) -> None:
        self._text, self._arms, self._validation_sets = text, arms, validation_sets
        self._metrics: set[MetricRequest] = set()
        self._tokens = self._tokenize(text)
        self._next = 0

    def _tokenize(self, text: str) -> list[re.Match[str]]:
        tokens = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"cannot read {text[position:].strip()[:30]!r}")
            tokens.append(match)
            position = match.end()
        return tokens

    def parse(self) -> Claim:
        left = self._sum()
        sign = self._accept("<", ">", "after", "before")
        if sign is None:
            raise self._error("should compare two sides with < or >")
        right = self._sum()
        if self._next < len(self._tokens):
            raise self._error(f"unexpected {self._tokens[self._next][0].strip()!r}")
        has_overtakes = any(request.metric == "overtakes" for request in self._metrics)
        if sign in ("after", "before") and not has_overtakes:
            raise self._error(f"{sign} needs overtakes(ARM, ARM, SET)")
        difference = _combine(left, right, "-")
        return Claim(self._text, difference, sign in (">", "after"), frozenset(self._metrics))

    def _sum(self) -> Expression:
        value = self._product()
        while sign := self._accept("+", "-"):
            value = _combine(value, self._product(), sign)
        return value

    def _product(self) -> Expression:
        value = self._value()
        while sign := self._accept("*", "/"):
            value = _combine(value, self._value(), sign)
        return value

    def _value(self) -> Expression:
        if self._accept("-"):
            return _combine(_constant(0.0), self._value(), "-")
        if self._accept("("):
            return self._closed(self._sum())
        if self._accept("abs("):
            return _absolute(self._closed(self._sum()))
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or not (token["call"] or token["number"]):
            raise self._error("should have a metric or a number on each side")
        self._next += 1
        if token["number"]:
            try:
                return _constant(float(token["number"]) / (100 if token["percent"] else 1))
            except ValueError:
                raise self._error(f"{token['number']} is not a number") from None
        arguments = [argument.strip() for argument in token["args"].split(",")]
        request = self._metric_request(token["call"], arguments)
        self._metrics.add(request)
        return lambda lookup, seed: lookup(request, seed)

    def _metric_request(self, name: str, arguments: list[str]) -> MetricRequest:
        if name == "overtakes":
            *arms, validation_set = arguments
            usage = "overtakes(ARM, ARM, SET)"
        elif name in METRICS:
            validation_set, *arms = arguments
            usage = f"{name}(SET, ARM)"
        else:
            hint = did_you_mean(name, [*METRICS, "overtakes"])
            raise self._error(
                f"no metric named {name!r}{hint} (metrics: {', '.join(METRICS)}, overtakes)"
            )
        if len(arguments) != usage.count(",") + 1:
            raise self._error(f"{name} should be written {usage}")
        for arm in arms:
            if arm not in self._arms:
                hint = did_you_mean(arm, self._arms)
                raise self._error(f"no arm named {arm!r}{hint} (arms: {', '.join(self._arms)})")
        if validation_set not in self._validation_sets:
            hint = did_you_mean(validation_set, self._validation_sets)
            set_names = ", ".join(self._validation_sets) or "none"
            raise self._error(
                f"no validation set named {validation_set!r}{hint} (sets: {set_names})"
            )
        return MetricRequest(name, validation_set, tuple(arms))

    def _closed(self, inner: Expression) -> Expression:
        if not self._accept(")"):
            raise self._error("a parenthesis is not closed")
        return inner

    def _accept(self, *signs: str) -> str | None:
        """Consumes and returns the next token if it is one of these signs."""
        if self._next < len(self._tokens):
            sign = re.sub(r"\s", "", self._tokens[self._next]["sign"] or "")
            if sign in signs:
                self._next += 1
                return sign
        return None

    def _error(self, problem: str) -> ValueError:
        return ValueError(
            f"{problem}; a claim is written such as `final(upstream, a) < final(upstream, b)` or "
            "`overtakes(a, b, downstream) after 30%`"
        )


def _divide(a: float, b: float) -> float:
    return a / b if b else math.inf


_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}


def _combine(left: Expression, right: Expression, sign: str) -> Expression:
    def value(lookup: MetricLookup, seed: int) -> float | None:
        a, b = left(lookup, seed), right(lookup, seed)
        return None if a is None or b is None else _OPERATORS[sign](a, b)

    return value


def _constant(number: float) -> Expression:
    return lambda _lookup, _seed: number


def _absolute(inner: Expression) -> Expression:
    def value(lookup: MetricLookup, seed: int) -> float | None:
        number = inner(lookup, seed)
        return None if number is None else abs(number)

    return value
