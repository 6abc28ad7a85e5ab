"""What every schedule promises, as a check that a plug-in's own tests can call.

```python
from rewarm.testing import check_schedule

def test_it_keeps_the_contract():
    check_schedule("my-name")
```
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from rewarm import schedules
from rewarm.errors import ScheduleError
from rewarm.quantities import Budget, Span
from rewarm.recipe.yaml_document import YamlDocument, write_yaml
from rewarm.schedules import Schedule

_PLACES = [step / 1000 for step in range(1, 1001)]
_BEYOND = (1.0 + 1e-9, 1.5, 10.0)
_SECONDS = 200e-6  # a call may take; it is made once a step, and for every step of a preview
_BUDGETS = (Budget(1000, 64), Budget(131_296, 2_260_992))
_BASE_LR = 3e-5  # for settings such as `5x base`


class _Case(NamedTuple):
    kind: type[Schedule]
    settings: dict[str, Any]

    def made(self, budget: Budget = _BUDGETS[0], settings: Any = None) -> Schedule:
        context = {"budget": budget, "base_lr": lambda: _BASE_LR}
        return self.kind.model_validate(settings or self.settings, context=context)

    def curve(self, schedule: Schedule) -> list[float]:
        return [schedules.rate(schedule, place) for place in _PLACES]


def check_schedule(name: str, **settings: Any) -> None:
    """Checks that an installed schedule keeps the contract.

    Args:
        name: the schedule's name.
        settings: its settings, as in a recipe; those not given are their fields' first `examples`.

    Raises:
        ScheduleError: there is no such schedule, or it cannot be imported.
        AssertionError: it breaks a promise; the message names each that it breaks, and how.
    """
    broken = {what: how for what, how in conformance(name, settings).items() if how}
    lines = "".join(f"\n  {what}: {how}" for what, how in broken.items())
    if broken:
        raise AssertionError(f"schedule {name!r} breaks its contract:{lines}")


def rates(
    schedule: str | type[Schedule], steps: int, *, tokens_per_step: int = 64, **settings: Any
) -> list[float]:
    """Returns the rate of every step of a run with a schedule; that of step k is at k - 1.

    Args:
        schedule: an installed schedule's name, or a class.
        steps: the length of the run.
        tokens_per_step: how long a step is, for settings in tokens.
        settings: those of the schedule, as in a recipe; `base` is 3e-5.

    Raises:
        ScheduleError: there is no such schedule, or it gave what is not a rate.
        ValidationError: the settings are wrong.
    """
    kind = schedules.find(schedule) if isinstance(schedule, str) else schedule
    made = _Case(kind, settings).made(Budget(steps, tokens_per_step))
    return [schedules.rate(made, step / steps) for step in range(1, steps + 1)]


def conformance(name: str, settings: dict[str, Any]) -> dict[str, str | None]:
    """Returns each promise of a schedule, and how it is broken, or None where it is kept.

    Raises:
        ScheduleError: there is no such schedule, it cannot be imported, or its settings are wrong.
    """
    kind = schedules.find(name)
    examples = {
        setting: field.examples[0] for setting, field in kind.model_fields.items() if field.examples
    }
    case = _Case(kind, {"name": name, **examples, **settings})
    try:
        case.made()
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"])) or "its settings"
        raise ScheduleError(
            f"schedule {name!r} cannot be made to be tested: {setting}: "
            f"{first['msg'].removeprefix('Value error, ')}; give the setting, or the field an "
            "example: Field(examples=[...])"
        ) from None
    found: dict[str, str | None] = {}
    for what, broken in _PROMISES.items():
        try:
            found[what] = next(broken(case), None)
        except Exception as error:  # a stranger's code may raise anything
            found[what] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found


def _is_a_rate(case: _Case) -> Iterator[str]:
    schedule = case.made()
    for place in (*_PLACES, 1e-9, *_BEYOND):
        try:
            schedules.rate(schedule, place)
        except ScheduleError as error:
            yield str(error)


def _is_pure(case: _Case) -> Iterator[str]:
    schedule, before = case.made(), case.made().model_dump_json()
    expected = case.curve(case.made())
    order = list(range(len(_PLACES)))
    random.Random(17).shuffle(order)
    for index in (*order, *reversed(order)):
        rate = schedules.rate(schedule, _PLACES[index])
        if rate != expected[index]:
            yield (
                f"at progress {_PLACES[index]:g} it gave {expected[index]!r}, and {rate!r} when "
                "asked in another order; the same progress should always give the same rate"
            )
    if schedule.model_dump_json() != before:
        yield "its settings changed while it was called"


def _holds(case: _Case) -> Iterator[str]:
    schedule = case.made()
    end = schedules.rate(schedule, 1.0)
    for place in _BEYOND:
        if (rate := schedules.rate(schedule, place)) != end:
            yield f"at the end it is {end!r}, and at progress {place!r} it is {rate!r}"


def _is_fast(case: _Case) -> Iterator[str]:
    schedule = case.made()
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        for place in _PLACES:
            schedule(place)
        best = min(best, (time.perf_counter() - began) / len(_PLACES))
    if best > _SECONDS:
        yield f"a call takes {best * 1e6:,.0f} µs; wanted at most {_SECONDS * 1e6:,.0f}"


def _sees_progress_only(case: _Case) -> Iterator[str]:
    one = case.made()
    if any(isinstance(span.written, str) and " " in span.written for span in _spans(one)):
        return  # written in tokens or steps, it has another place in another budget
    other = case.made(_BUDGETS[1])
    for place, a, b in zip(_PLACES, case.curve(one), case.curve(other), strict=True):
        if a != b:
            yield (
                f"at progress {place:g} it is {a:g} in a run of {_BUDGETS[0].steps:,} steps and "
                f"{b:g} in one of {_BUDGETS[1].steps:,}"
            )


def _spans(value: Any) -> Iterator[Span]:
    if isinstance(value, Span):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _spans(getattr(value, name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _spans(one)


def _comes_back(case: _Case) -> Iterator[str]:
    schedule = case.made()
    plain = json.loads(schedule.model_dump_json(by_alias=True))
    for way, read in (("JSON", plain), ("YAML", YamlDocument(write_yaml(plain), "settings").data)):
        again = case.made(settings=read)
        if again != schedule or case.curve(again) != case.curve(schedule):
            yield f"read back from {way} it is another: {again!r}, and was {schedule!r}"


def _is_documented(case: _Case) -> Iterator[str]:
    if not (case.kind.__doc__ or "").strip() or case.kind.__doc__ == Schedule.__doc__:
        yield "the class has no docstring"
    for name, field in case.kind.model_fields.items():
        if name != "name" and not field.description:
            yield f"the setting {name} has no docstring under it"


def _refuses_what_it_does_not_know(case: _Case) -> Iterator[str]:
    try:
        case.made(settings={**case.settings, "no_such_setting": 1})
    except ValidationError:
        return
    yield "a setting that it does not have is taken without a word; keep extra='forbid'"


def _is_frozen(case: _Case) -> Iterator[str]:
    schedule = case.made()
    for name in case.kind.model_fields:
        try:
            setattr(schedule, name, getattr(schedule, name))
        except ValidationError:
            continue
        yield f"the setting {name} can be changed; keep frozen=True"


def _marks_places(case: _Case) -> Iterator[str]:
    for label, place in schedules.marks(case.made()).items():
        if not 0 <= place <= 1:
            yield f"the mark {label!r} is at {place:g}; a mark is a progress in [0, 1]"


_PROMISES: dict[str, Callable[[_Case], Iterator[str]]] = {
    "finite and not negative": _is_a_rate,
    "pure: the same in any order": _is_pure,
    "holds past its end": _holds,
    "sees progress only": _sees_progress_only,
    "fast": _is_fast,
    "comes back from YAML and JSON": _comes_back,
    "settings documented": _is_documented,
    "refuses unknown settings": _refuses_what_it_does_not_know,
    "frozen": _is_frozen,
    "marks within the run": _marks_places,
}
