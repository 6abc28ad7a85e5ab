"""Claims of a study: inequalities between metrics of arms, and whether the runs confirm them.

```
claim  = sum ("<" | ">") sum  |  overtakes(ARM, ARM, SET) ("after" | "before") length
sum    = product (("+" | "-") product)*
product= value (("*" | "/") value)*
value  = NUMBER | PERCENT | "abs(" sum ")" | "(" sum ")" | METRIC(SET, ARM) | METRIC(SET, ARM, part)
part   = ("first" | "last" | "after") length
length = PERCENT | COUNT "tokens"
```

SET is a validation set, or `upstream` or `downstream` for the sets of that role: for their mean
loss, if there are several. Metrics of an arm on a set are in nats: `start` and `final` loss;
`forgetting`, the rise from start to end, and `adaptation`, the fall; `bump`, the rise to the
highest loss; `area`, the loss averaged over training; `slope`, the rise of the line through all
losses; `bpb`, the final loss in bits per byte of text.

Those of a part of the run are of the losses in it: `final(downstream, a, first 50B
tokens)`, `slope(upstream, a, last 20%)`; they still count from the start of the run.
`gap(SET, A, B)` is the largest difference of two arms' losses at the same step, `linearity(X, Y,
ARM)` R² of the line through the perplexities on two sets, and `overtakes(A, B, SET)` the share of
the run after which A's loss stays below B's.
"""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from rewarm.errors import did_you_mean
from rewarm.quantities import parse_count, parse_share
from rewarm.study.claimed_metrics import USAGES, WHOLE_RUN, MetricRequest, RunPart
from rewarm.study.intervals import Estimate, estimate_mean

_LARGEST_EFFECT = 1e150  # the squares of larger ones overflow


MetricLookup = Callable[[MetricRequest, int], float | None]
"""Returns a metric for a seed; None if it was not measured, or if the arm never overtakes."""

Expression = Callable[[MetricLookup, int], float | None]
"""Returns the value of a part of a claim for a seed; None if any metric in it is None.

NaN if it divides by zero.
"""


ONE_SEED = "a single seed gives no interval"
NOT_MEASURED = "not measured"


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
        measured = [
            value for seed in all_seeds if (value := self.difference(lookup, seed)) is not None
        ]
        differences = [value for value in measured if abs(value) <= _LARGEST_EFFECT]
        effect = estimate_mean(differences)
        if len(differences) < len(measured):
            undefined = len(measured) - len(differences)
            reason = f"with {undefined} of {len(all_seeds)} seeds it divides by zero or overflows"
            return Verdict("undecided", effect, reason)
        if effect is None:
            return self._verdict_without_values(lookup, all_seeds)
        if len(differences) < len(all_seeds):
            missing = len(all_seeds) - len(differences)
            return Verdict(
                "undecided", effect, f"{missing} of {len(all_seeds)} seeds have no value"
            )
        if effect.interval is None:
            return Verdict("undecided", effect, ONE_SEED)
        low, high = effect.interval
        if low <= 0 <= high:
            return Verdict("undecided", effect, "the 95% interval contains 0")
        is_positive = low > 0
        return Verdict("held" if is_positive is self.expects_positive else "not held", effect, "")

    def _verdict_without_values(self, lookup: MetricLookup, seeds: list[int]) -> Verdict:
        """Returns the verdict if no seed has a value.

        If all runs were measured, the reason can only be that no arm ever overtakes the other. Like
        any other verdict, that takes two seeds.
        """
        final_loss_exists = [
            lookup(MetricRequest("final", request.validation_sets, (arm,)), seed) is not None
            for request in self.metrics
            if request.metric == "overtakes"
            for arm in request.arms
            for seed in seeds
        ]
        if final_loss_exists and all(final_loss_exists):
            if len(seeds) < 2:
                return Verdict("undecided", None, f"{ONE_SEED}; with this one it never overtakes")
            return Verdict("not held", None, "it never overtakes")
        return Verdict("undecided", None, NOT_MEASURED)


_TOKEN = re.compile(
    r"\s*(?:(?P<call>(?!abs\b)[a-z]+)\s*\((?P<args>[^()]*)\)"
    r"|(?P<length>[0-9][0-9_.]*[kKmMbBtT]?\s+tokens)"
    r"|(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)(?P<percent>\s*%)?"
    r"|(?P<sign><|>|after\b|before\b|abs\s*\(|[-+*/()]))"
)


def parse_claim(
    text: str,
    *,
    arms: list[str],
    validation_sets: list[str],
    run_tokens: Mapping[str, int] | None = None,
) -> Claim:
    """Returns the claim that a text expresses.

    Args:
        text: the claim as written in the study file.
        arms: the names of the study's arms.
        validation_sets: the names of its validation sets.
        run_tokens: the tokens that each arm trains on, of which `50B tokens` is a part.

    Raises:
        ValueError: the text is not of the form above, or names an unknown arm, metric or set.
    """
    return _Parser(text, arms, validation_sets, run_tokens or {}).parse()


class _Parser:
    """A recursive-descent parser of the grammar above: one method for each rule."""

    def __init__(
        self, text: str, arms: list[str], validation_sets: list[str], run_tokens: Mapping[str, int]
    ) -> None:
        self._text, self._arms, self._validation_sets = text, arms, validation_sets
        self._run_tokens = run_tokens
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
        overtakes = [request for request in self._metrics if request.metric == "overtakes"]
        if sign in ("after", "before") and len(overtakes) != 1:
            raise self._error(f"{sign} needs overtakes(ARM, ARM, SET)")
        length = self._tokens[self._next]["length"] if self._next < len(self._tokens) else None
        if length and sign in ("after", "before"):
            self._next += 1
            right = _constant(self._share(length, overtakes[0].arms))
        else:
            right = self._sum()
        if self._next < len(self._tokens):
            raise self._error(f"unexpected {self._tokens[self._next][0].strip()!r}")
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
            with contextlib.suppress(ValueError):
                number = float(token["number"])
                if math.isfinite(number):
                    return _constant(number / (100 if token["percent"] else 1))
            raise self._error(f"{token['number']} is not a number")
        arguments = [argument.strip() for argument in token["args"].split(",")]
        request = self._metric_request(token["call"], arguments)
        self._metrics.add(request)
        return lambda lookup, seed: lookup(request, seed)

    def _metric_request(self, name: str, arguments: list[str]) -> MetricRequest:
        if name not in USAGES:
            hint = did_you_mean(name, list(USAGES))
            raise self._error(f"no metric named {name!r}{hint} (metrics: {', '.join(USAGES)})")
        kinds = re.findall(r"SET|ARM", USAGES[name])
        has_part = len(arguments) == len(kinds) + 1 and name != "overtakes"
        if len(arguments) != len(kinds) + has_part:
            raise self._error(f"{name} should be written {name}{USAGES[name]}")
        names = list(zip(kinds, arguments, strict=False))
        arms = tuple(argument for kind, argument in names if kind == "ARM")
        sets = tuple(argument for kind, argument in names if kind == "SET")
        self._check_known("arm", arms, self._arms)
        self._check_known("validation set", sets, self._validation_sets)
        part = self._part(arguments[-1], arms) if has_part else WHOLE_RUN
        return MetricRequest(name, sets, arms, part)

    def _check_known(self, kind: str, names: tuple[str, ...], known: list[str]) -> None:
        for name in names:
            if name not in known:
                known_names = f"{kind.rpartition(' ')[2]}s: {', '.join(known) or 'none'}"
                raise self._error(
                    f"no {kind} named {name!r}{did_you_mean(name, known)} ({known_names})"
                )

    def _part(self, written: str, arms: tuple[str, ...]) -> RunPart:
        """Returns the part of the run that `first 1%`, `last 20%` or `after 50B tokens` names."""
        where, _, length = written.partition(" ")
        if where not in ("first", "last", "after"):
            raise self._error(
                f"{written!r} is not a part of a run: first 1%, last 20%, after 50B tokens"
            )
        share = self._share(length, arms)
        if where == "first":
            return RunPart(end=share)
        return RunPart(start=share if where == "after" else 1 - share)

    def _share(self, length: str, arms: tuple[str, ...]) -> float:
        """Returns a length, `1%` or `50B tokens`, as a share of the arms' runs."""
        count, _, unit = length.rpartition(" ")
        try:
            share = parse_count(count) if unit == "tokens" else parse_share(length)
        except ValueError:
            raise self._error(f"{length!r} is not a length, such as 1% or 50B tokens") from None
        if unit == "tokens":
            totals = {self._run_tokens.get(arm, 0) for arm in arms}
            if len(totals) != 1 or 0 in totals:
                raise self._error(f"{length}: {' and '.join(arms)} do not have runs of one length")
            share /= totals.pop()
        if not 0 < share < 1:
            raise self._error(f"{length} is {share:.4g} of the run, and should be a part of it")
        return share

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
    # A NaN stays one in all that is computed from it; 1 / (1 / 0) is no value either.
    return a / b if b else math.nan


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
