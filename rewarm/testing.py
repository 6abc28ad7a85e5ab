"""Checks that a schedule fulfills its contract; a plug-in's own tests call them.

```python
from rewarm.testing import check_schedule

def test_contract():
    check_schedule("my-name")
```
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from rewarm import schedules
from rewarm.errors import ScheduleError
from rewarm.quantities import Budget, Span
from rewarm.recipe.yaml_document import YamlDocument, write_yaml
from rewarm.schedules import Schedule
from rewarm.schedules.third_party_code import describe_error, within_time_limit

_SAMPLES = [step / 1000 for step in range(1, 1001)]
_PAST_THE_END = (1.0 + 1e-9, 1.5, 10.0)
_MAX_SECONDS_PER_CALL = 200e-6  # called once per step, and for every step of a preview
_MAX_SECONDS_PER_PROMISE = 60.0
_BUDGETS = (Budget(1000, 64), Budget(131_296, 2_260_992))
_BASE_LR = 3e-5  # for settings such as `5x base`


class _Case(NamedTuple):
    kind: type[Schedule]
    settings: dict[str, Any]

    def build(self, budget: Budget = _BUDGETS[0], settings: Any = None) -> Schedule:
        context = {"budget": budget, "base_lr": lambda: _BASE_LR}
        return self.kind.model_validate(settings or self.settings, context=context)

    def curve(self, schedule: Schedule) -> list[float]:
        return [schedules.rate(schedule, progress) for progress in _SAMPLES]


def check_schedule(name: str, **settings: Any) -> None:
    """Checks that an installed schedule fulfills the contract.

    Args:
        name: the schedule's name.
        settings: its settings, as in a recipe; by default, the first of each field's `examples`.

    Raises:
        ScheduleError: there is no such schedule, or it cannot be imported.
        AssertionError: it breaks the contract; the message lists the broken promises, and how
            each is broken.
    """
    violations = {
        promise: violation
        for promise, violation in conformance(name, settings).items()
        if violation
    }
    lines = "".join(f"\n  {promise}: {violation}" for promise, violation in violations.items())
    if violations:
        raise AssertionError(f"schedule {name!r} breaks its contract:{lines}")


def rates(
    schedule: str | type[Schedule], steps: int, *, tokens_per_step: int = 64, **settings: Any
) -> list[float]:
    """Returns the learning rate of every step of a run; that of step k is at index k - 1.

    Args:
        schedule: an installed schedule's name, or a class.
        steps: the number of steps of the run.
        tokens_per_step: the tokens of one step, for settings in tokens.
        settings: the schedule's settings, as in a recipe; `base` is 3e-5.

    Raises:
        ScheduleError: there is no such schedule, or it returned something that is not a rate.
        ValidationError: the settings are wrong.
    """
    kind = schedules.find(schedule) if isinstance(schedule, str) else schedule
    instance = _Case(kind, settings).build(Budget(steps, tokens_per_step))
    return [schedules.rate(instance, step / steps) for step in range(1, steps + 1)]


def conformance(name: str, settings: dict[str, Any]) -> dict[str, str | None]:
    """Returns, for each promise, how the schedule breaks it, or None if it keeps it.

    Raises:
        ScheduleError: there is no such schedule, it cannot be imported, or its settings are wrong.
    """
    kind = schedules.find(name)
    examples = {
        setting: field.examples[0] for setting, field in kind.model_fields.items() if field.examples
    }
    case = _Case(kind, {"name": name, **examples, **settings})
    try:
        case.build()
    except ValidationError as error:
        problem = error.errors()[0]
        setting = ".".join(map(str, problem["loc"])) or "its settings"
        raise ScheduleError(
            f"schedule {name!r} cannot be built for the test: {setting}: "
            f"{problem['msg'].removeprefix('Value error, ')}; give the setting, or the field an "
            "example: Field(examples=[...])"
        ) from None
    results: dict[str, str | None] = {}
    for promise, violations in _PROMISES.items():
        try:
            results[promise] = within_time_limit(
                partial(next, violations(case), None),
                _MAX_SECONDS_PER_PROMISE,
                lambda: (
                    f"it is not checked after {_MAX_SECONDS_PER_PROMISE:g} s: does a call hang?"
                ),
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # third-party code may raise anything, also SystemExit
            results[promise] = describe_error(error).splitlines()[0]
    return results


def _returns_rates(case: _Case) -> Iterator[str]:
    schedule = case.build()
    for progress in (*_SAMPLES, 1e-9, *_PAST_THE_END):
        try:
            schedules.rate(schedule, progress)
        except ScheduleError as error:
            yield str(error)


def _is_pure(case: _Case) -> Iterator[str]:
    schedule, initial_settings = case.build(), case.build().model_dump_json()
    expected_rates = case.curve(case.build())
    indices = list(range(len(_SAMPLES)))
    random.Random(17).shuffle(indices)
    for index in (*indices, *reversed(indices)):
        rate = schedules.rate(schedule, _SAMPLES[index])
        if rate != expected_rates[index]:
            yield (
                f"at progress {_SAMPLES[index]:g} it gave {expected_rates[index]!r}, and {rate!r} "
                "when called in another order; the same progress should always give the same rate"
            )
    if schedule.model_dump_json() != initial_settings:
        yield "its settings changed while it was called"


def _is_constant_past_the_end(case: _Case) -> Iterator[str]:
    schedule = case.build()
    end_rate = schedules.rate(schedule, 1.0)
    for progress in _PAST_THE_END:
        if (rate := schedules.rate(schedule, progress)) != end_rate:
            yield f"the rate is {end_rate!r} at the end, and {rate!r} at progress {progress!r}"


def _is_fast(case: _Case) -> Iterator[str]:
    schedule = case.build()
    best_seconds = math.inf
    for _ in range(3):
        start = time.perf_counter()
        for progress in _SAMPLES:
            schedule(progress)
        best_seconds = min(best_seconds, (time.perf_counter() - start) / len(_SAMPLES))
    if best_seconds > _MAX_SECONDS_PER_CALL:
        microseconds, maximum = best_seconds * 1e6, _MAX_SECONDS_PER_CALL * 1e6
        yield f"a call takes {microseconds:,.0f} µs; at most {maximum:,.0f} µs"


def _depends_on_progress_only(case: _Case) -> Iterator[str]:
    short_schedule = case.build()
    if any(
        isinstance(span.written, str) and " " in span.written for span in _spans(short_schedule)
    ):
        return  # a span in tokens or steps is another fraction of another budget
    long_schedule = case.build(_BUDGETS[1])
    curves = zip(_SAMPLES, case.curve(short_schedule), case.curve(long_schedule), strict=True)
    for progress, short_rate, long_rate in curves:
        if short_rate != long_rate:
            yield (
                f"at progress {progress:g} the rate is {short_rate:g} in a run of "
                f"{_BUDGETS[0].steps:,} steps and {long_rate:g} in one of {_BUDGETS[1].steps:,}"
            )


def _spans(value: Any) -> Iterator[Span]:
    if isinstance(value, Span):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _spans(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _spans(item)


def _survives_serialization(case: _Case) -> Iterator[str]:
    schedule = case.build()
    from_json = json.loads(schedule.model_dump_json(by_alias=True))
    from_yaml = YamlDocument(write_yaml(from_json), "settings").data
    for file_format, settings in (("JSON", from_json), ("YAML", from_yaml)):
        restored = case.build(settings=settings)
        if restored != schedule or case.curve(restored) != case.curve(schedule):
            yield f"read back from {file_format} it is {restored!r} instead of {schedule!r}"


def _is_documented(case: _Case) -> Iterator[str]:
    if not (case.kind.__doc__ or "").strip() or case.kind.__doc__ == Schedule.__doc__:
        yield "the class has no docstring"
    for name, field in case.kind.model_fields.items():
        if name != "name" and not field.description:
            yield f"the setting {name} has no docstring under it"


def _refuses_unknown_settings(case: _Case) -> Iterator[str]:
    try:
        case.build(settings={**case.settings, "no_such_setting": 1})
    except ValidationError:
        return
    yield "an unknown setting is ignored without an error; keep extra='forbid'"


def _is_frozen(case: _Case) -> Iterator[str]:
    schedule = case.build()
    for name in case.kind.model_fields:
        try:
            setattr(schedule, name, getattr(schedule, name))
        except ValidationError:
            continue
        yield f"the setting {name} can be changed; keep frozen=True"


def _has_marks_within_the_run(case: _Case) -> Iterator[str]:
    for label, progress in schedules.marks(case.build()).items():
        if not 0 <= progress <= 1:
            yield f"the mark {label!r} is at {progress:g}; a mark is a progress in [0, 1]"


_PROMISES: dict[str, Callable[[_Case], Iterator[str]]] = {
    "finite and not negative": _returns_rates,
    "pure: the same in any order": _is_pure,
    "holds past its end": _is_constant_past_the_end,
    "sees progress only": _depends_on_progress_only,
    "fast": _is_fast,
    "comes back from YAML and JSON": _survives_serialization,
    "settings documented": _is_documented,
    "refuses unknown settings": _refuses_unknown_settings,
    "frozen": _is_frozen,
    "marks within the run": _has_marks_within_the_run,
}
"""The check of each promise, by the name that `rewarm schedules test` prints."""
