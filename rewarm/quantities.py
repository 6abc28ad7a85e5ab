"""Numbers as people write them in a recipe: counts (`10B`), shares (`5%`), spans (`3B tokens`)."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Interval
from pydantic import (
    AllowInfNan,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rewarm.errors import RewarmError

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_COUNT = re.compile(
    r"([0-9][0-9_]{0,40}(?:\.[0-9_]{1,40})?(?:[eE][+-]?[0-9]{1,2})?)\s*([kKmMbBtT]?)"
)
_SHARE = re.compile(r"([0-9.]+)\s*(%?)")
_MULTIPLE_OF_BASE = re.compile(r"(?:([0-9]+(?:\.[0-9]+)?)\s*[x×]\s*)?base")
_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?")


def parse_count(written: object) -> int:
    """Parses a count: `10B`, `2_097_152`, `1.5M`, `1e9` or an integer.

    Raises:
        ValueError: it is not an integer in one of these forms.
    """
    if isinstance(written, int) and not isinstance(written, bool):
        return written
    if isinstance(written, float) and math.isfinite(written) and written.is_integer():
        return int(written)
    if isinstance(written, str) and (match := _COUNT.fullmatch(written.strip())):
        count = Fraction(match[1].replace("_", "")) * _SUFFIX[match[2].lower()]
        if count.denominator == 1:
            return int(count)
    has_unit = isinstance(written, str) and re.fullmatch(r"[0-9._]+\s*[kKmMgG]i?[bB]", written)
    hint = " (M is million, and no unit follows)" if has_unit else ""
    raise ValueError(f"should be a count, such as 2_097_152, 20M, 10B or 1e9{hint}")


def parse_positive_count(written: object) -> int:
    """Parses a count that is above 0.

    Raises:
        ValueError: it is not a count, or 0.
    """
    if (count := parse_count(written)) > 0:
        return count
    raise ValueError("should be above 0")


def parse_share(written: object) -> float:
    """Parses a share: `5%`, `0.05` or a number.

    Raises:
        ValueError: it is not a number or a percentage.
    """
    try:
        if isinstance(written, int | float) and not isinstance(written, bool):
            return float(written)
        if isinstance(written, str) and (match := _SHARE.fullmatch(written.strip())):
            return float(Fraction(match[1]) / (100 if match[2] else 1))
    except (ValueError, OverflowError):
        pass
    raise ValueError("should be a number, such as 0.05 or 5%")


def parse_duration(written: str) -> float:
    """Parses a duration such as `3h55m`, `90s`, `2d` or `1h30m10s`; returns seconds.

    Raises:
        ValueError: it is not a duration above 0 in this form.
    """
    match = _DURATION.fullmatch(written.strip())
    seconds = sum(
        float(amount) * size
        for amount, size in zip(match.groups() if match else (), (86400, 3600, 60, 1), strict=False)
        if amount
    )
    if not seconds:
        raise ValueError("should be a duration, such as 3h55m, 90m or 45s")
    return seconds


_COUNT_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 1},
        {"type": "string", "pattern": f"^{_COUNT.pattern}$"},
    ]
}
_SHARE_SCHEMA = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[0-9.]+\\s*%?$"}]}

Count = Annotated[
    int, BeforeValidator(parse_count), Interval(gt=0, le=10**18), WithJsonSchema(_COUNT_SCHEMA)
]
"""A positive integer: `10B`, `2_097_152`, `1e9`."""

Share = Annotated[float, BeforeValidator(parse_share), WithJsonSchema(_SHARE_SCHEMA)]
"""A fraction: `0.05` or `5%`."""


BASE_UNUSABLE = "base_unusable"
"""Pydantic's type of the error that the base of a rate does not exist or cannot be read."""
BASE_LR_UNKNOWN = "base_lr_unknown"
"""Pydantic's type of the error that the last learning rate of the base is not known."""


class RateOfBase(float):
    """A learning rate that was written as a multiple of the base model's last learning rate."""

    factor: float
    base_lr: float

    def __new__(cls, factor: float, base_lr: float) -> RateOfBase:
        """Returns `factor` times `base_lr`."""
        rate = super().__new__(cls, factor * base_lr)
        rate.factor, rate.base_lr = factor, base_lr
        return rate


def _validate_rate(
    written: Any, validate_number: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> float:
    """Returns a valid learning rate; multiples such as `5x base` are resolved.

    `base_lr` in the context is a function that returns the base model's last learning rate.
    """
    match = _MULTIPLE_OF_BASE.fullmatch(written.strip()) if isinstance(written, str) else None
    if match is None:
        if isinstance(written, str):
            raise ValueError(
                "should be a rate, such as 3e-4, or a multiple of the base model's last rate: "
                "base, 5x base"
            )
        rate: float = validate_number(written)
        return rate
    base_lr = (info.context or {}).get("base_lr")
    if base_lr is None:
        raise ValueError(
            "there is no base here, so a rate cannot be a multiple of its last rate; write a number"
        )
    try:
        return RateOfBase(float(match[1] or 1), base_lr())
    except RewarmError as error:
        raise PydanticCustomError(BASE_UNUSABLE, str(error)) from None
    except ValueError as error:
        raise PydanticCustomError(BASE_LR_UNKNOWN, str(error)) from None


Rate = Annotated[
    float,
    Strict(),
    Ge(0),
    AllowInfNan(False),
    WrapValidator(_validate_rate),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?\\s*[x×]\\s*)?base$"},
            ]
        }
    ),
]
"""An absolute learning rate, `3e-4`, or a multiple of the base model's last one: `base`, `5x base`.

A multiple is resolved when a recipe is read, and the resulting number is saved.
"""


class Budget(NamedTuple):
    """The length of a run, or of a part of it, against which spans in tokens or steps are resolved.

    A part of a run may end within a step.
    """

    steps: float
    tokens_per_step: int


SPAN_UNITS = ("step", "steps", "token", "tokens")


class Span(float):
    """A length as a fraction of the run's budget, with the text that it was written as.

    Written as a share (`0.01`, `1%`), in tokens (`3B tokens`) or in steps (`500 steps`). The recipe
    resolves the last two against its own budget, so a schedule reads a plain fraction. The text is
    saved, so a span in tokens keeps its length when the budget is extended.
    """

    written: str | float

    def __new__(cls, written: str | float, budget: Budget | None = None) -> Span:
        """Resolves a span; `budget` is needed for spans in tokens or steps.

        Raises:
            ValueError: not a span, or it needs a budget and there is none.
        """
        span = super().__new__(cls, cls._fraction(written, budget))
        span.written = written.written if isinstance(written, Span) else written
        return span

    @staticmethod
    def _fraction(written: str | float, budget: Budget | None) -> float:
        if isinstance(written, str):
            amount, _, unit = written.strip().rpartition(" ")
            if unit in SPAN_UNITS:
                count = parse_count(amount)
                if budget is None:
                    raise ValueError(
                        "cannot be resolved without a valid budget (`tokens` and `batch.tokens`)"
                    )
                total = budget.steps * (budget.tokens_per_step if unit.startswith("tok") else 1)
                return count / total if total else 0.0  # the recipe refuses a budget of no steps
        try:
            return parse_share(written)
        except ValueError:
            raise ValueError(
                "should be a share of the run (0.01 or 1%), tokens ('3B tokens') "
                "or steps ('500 steps')"
            ) from None

    @classmethod
    def _validate(cls, value: Any, info: ValidationInfo) -> Span:
        if isinstance(value, Span) and isinstance(value.written, int | float):
            return value
        budget = (info.context or {}).get("budget")
        return cls(value.written if isinstance(value, Span) else value, budget)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda span: getattr(span, "written", span)
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "anyOf": [
                {"type": "number"},
                {"type": "string", "pattern": "^[0-9.]+\\s*%?$"},
                {"type": "string", "pattern": f"^{_COUNT.pattern} ({'|'.join(SPAN_UNITS)})$"},
            ]
        }


def as_written(text: str) -> Any:
    """Returns a setting's default as a recipe would write it: `base`, `1 token`.

    Reading a recipe converts it to a Rate or a Span, so its type is Any here.
    """
    return text


def format_count(count: float) -> str:
    """Formats a count: `296.86B`, `2.1M`, `512`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(count) >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{count / divisor:.2f}".rstrip("0").rstrip(".") + suffix
    return f"{count:,.0f}"


def format_number(value: float) -> str:
    """Formats a number to three significant digits, or one decimal from 100: `62.2`, `4,290.7`."""
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"


def format_bytes(count: int) -> str:
    """Formats a number of bytes: `4.86 GB`, `512 B`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,} B"


def format_seconds(seconds: float) -> str:
    """Formats seconds: `7.7 ms`, `1.25 s`."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def format_rates(first: float, highest: float, last: float) -> str:
    """Formats the learning rates of a run: the first, the highest between them, and the last.

    >>> format_rates(1e-4, 2e-3, 2e-4), format_rates(2e-3, 2e-3, 2e-4)
    ('0.0001 → peak 0.002 → 0.0002', '0.002 → 0.0002')
    >>> format_rates(1e-5, 1e-5, 1e-5)
    '1e-05'
    """
    start, peak, end = (f"{rate:.4g}" for rate in (first, highest, last))
    if start == peak == end:
        return start
    return f"{start} → {end}" if peak in (start, end) else f"{start} → peak {peak} → {end}"


def format_clock(seconds: float) -> str:
    """Formats a duration as a clock does: `0:42`, `15:02`, `3:04:05`.

    >>> format_clock(62.4), format_clock(11045)
    ('1:02', '3:04:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def perplexity(loss: float) -> float:
    """Returns exp(loss), or infinity if that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
