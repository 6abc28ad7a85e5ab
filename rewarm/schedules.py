"""Schedules: progress in (0, 1] in, learning rate out; and the door through which they enter.

A schedule is a frozen pydantic model that can be called. It holds no state, so resuming a run,
overriding a setting and drawing the curve call the same function with nothing to restore.
Plug-ins, the three built-in ones among them, enter by entry point: group `rewarm.schedules`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points, version
from inspect import isabstract
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from rewarm.errors import ScheduleError, did_you_mean
from rewarm.quantities import Rate, RateOfBase, Span

GROUP = "rewarm.schedules"

CONTRACT = 1
"""What `Schedule` asks of its subclasses, as a version: each says which one it was built for."""


class Schedule(BaseModel, ABC):
    """A learning-rate curve. `schedule(progress)` is the rate of the step that reaches `progress`.

    Step k of n has progress k / n, so the first update is never at progress 0 and the last is at
    exactly 1. Subclasses set `contract: ClassVar[int] = 1`, the contract that they were built for,
    and `name: Literal["my-name"] = "my-name"`, equal to their entry point.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    contract: ClassVar[int]
    name: str

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the absolute learning rate at a progress in (0, 1]; beyond 1 the end holds."""

    def marks(self) -> dict[str, float]:
        """Returns the places on the curve worth naming, as progress in [0, 1] by label."""
        return {}


def linear(x: float, start: float, end: float) -> float:
    """Returns the straight line from `start` at x = 0 to `end` at x = 1."""
    return start * (1 - x) + end * x  # exact at both ends


def cosine(x: float, start: float, end: float) -> float:
    """Returns half a cosine wave from `start` at x = 0 to `end` at x = 1."""
    return linear((1 - math.cos(math.pi * x)) / 2, start, end)


Decay = Literal["cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt", "none"]


class NoWarmup(Schedule):
    """Starts at the peak and decays to the minimum: `rewarm` without the rise."""

    contract: ClassVar[int] = 1
    name: Literal["no-warmup"] = "no-warmup"
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate that the decay starts from."""
    min_lr: Annotated[Rate | None, Field(examples=[3e-5])] = None
    """The rate that the decay ends at, and the floor that holds after it; required, but for
    `decay: none`."""
    preheat: Annotated[Span, Field(ge=0, lt=1)] = Span(0)
    """How long the rate is 0 at first, before everything else: Adam's moments fill, and the weights
    stay as they are."""
    decay: Decay = "cosine"
    """`cosine`, `linear` and `1-sqrt` reach min_lr at the end of the run. `clipped-cosine` is the
    curve that arXiv:2308.04014 ran: a cosine to zero whose period is the whole run, cut off at
    min_lr. `inverse-sqrt` falls with the root of the steps since warm-up began (arXiv:1706.03762),
    down to min_lr. `none` keeps the peak."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.decay == "none":
            if self.min_lr is not None:
                raise ValueError("decay: none stays at peak_lr and has no min_lr; take it away")
        elif self.min_lr is None:
            raise ValueError(f"min_lr is required with decay: {self.decay}")
        elif self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr {self.min_lr:g} should not be above peak_lr {self.peak_lr:g}")
        if self._rise >= 1:
            raise ValueError("preheat and warmup together should be less than the whole run")
        if self.decay == "inverse-sqrt" and self._rise == self.preheat:
            raise ValueError(
                "inverse-sqrt falls with the root of the steps since warm-up began; it needs a "
                "warmup, so use the schedule rewarm with a warmup above 0, or another decay"
            )
        return self

    @property
    def _rise(self) -> float:
        """Where the decay begins."""
        return float(self.preheat)

    def __call__(self, progress: float) -> float:
        """Returns 0 up to `preheat`, then the rate on the way down to `min_lr`."""
        if self.preheat and progress <= self.preheat:
            return 0.0
        if self.min_lr is None:
            return self.peak_lr
        rise = self._rise
        fallen, left = min(progress, 1) - rise, 1 - rise
        match self.decay:
            case "clipped-cosine":
                # The period is the whole run, not what is left of it after warm-up: see floor_at.
                return max(cosine(fallen, self.peak_lr, 0.0), self.min_lr)
            case "inverse-sqrt":
                warmup = rise - self.preheat
                return max(self.peak_lr * math.sqrt(warmup / (warmup + fallen)), self.min_lr)
            case "1-sqrt":
                return linear(math.sqrt(fallen / left), self.peak_lr, self.min_lr)
            case "linear":
                return linear(fallen / left, self.peak_lr, self.min_lr)
        return cosine(fallen / left, self.peak_lr, self.min_lr)

    def floor_at(self) -> float:
        """Returns the progress at which `min_lr` is reached.

        For `clipped-cosine` that is w + arccos(2·min/peak − 1)/π: 80.5 % of the run for a 1 %
        warm-up and a tenth of the peak (240 B of 296.86 B tokens, as arXiv:2308.04014 says).
        For `inverse-sqrt` it is w·(peak/min)², if that is within the run.
        """
        if self.min_lr is None or self.peak_lr == 0:
            return 1.0
        if self.decay == "inverse-sqrt":
            fallen = self.peak_lr / self.min_lr if self.min_lr else math.inf
            return min(1.0, self.preheat + (self._rise - self.preheat) * fallen**2)
        if self.decay != "clipped-cosine":
            return 1.0
        return min(1.0, self._rise + math.acos(2 * self.min_lr / self.peak_lr - 1) / math.pi)

    def marks(self) -> dict[str, float]:
        """Returns where pre-heating ends and where the floor is reached."""
        heated = {"end of pre-heating": float(self.preheat)} if self.preheat else {}
        return heated | ({} if self.min_lr is None else {"floor": self.floor_at()})


class Rewarm(NoWarmup):
    """Rises linearly to the peak, then decays to the minimum (arXiv:2308.04014)."""

    contract: ClassVar[int] = 1
    name: Literal["rewarm"] = "rewarm"  # type: ignore[assignment]
    start_lr: Rate = 0.0
    """The rate at progress 0, from which the line to the peak starts."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """How long the rise takes, behind `preheat`: a share of the run, or tokens, or steps."""

    @property
    def _rise(self) -> float:
        return self.preheat + self.warmup

    def __call__(self, progress: float) -> float:
        """Returns 0 up to `preheat`, then the rate on the way up, then on the way down."""
        if self.preheat < progress < self._rise:
            return linear((progress - self.preheat) / self.warmup, self.start_lr, self.peak_lr)
        return super().__call__(progress)

    def marks(self) -> dict[str, float]:
        """Returns where pre-heating and warm-up end and where the floor is reached."""
        return {**super().marks(), "end of warm-up": self._rise}


class Constant(Schedule):
    """Keeps one rate throughout."""

    contract: ClassVar[int] = 1
    name: Literal["constant"] = "constant"
    lr: Annotated[Rate, Field(examples=[3e-5])]
    """The rate of every step."""

    def __call__(self, progress: float) -> float:
        """Returns `lr`."""
        return self.lr


class Installed(NamedTuple):
    """One entry point of the group and the distribution that brought it."""

    name: str
    distribution: str
    version: str
    entry: EntryPoint


def installed() -> list[Installed]:
    """Returns every schedule on offer, by name; imports none of them."""
    found = {
        (entry.name, _said(entry, "Name"), entry.value): entry
        for entry in entry_points(group=GROUP)
    }
    return sorted(
        (
            Installed(name, distribution, _said(entry, "Version"), entry)
            for (name, distribution, _), entry in found.items()
        ),
        key=lambda one: one[:3],
    )


def _said(entry: EntryPoint, key: str) -> str:
    """Returns what a distribution's metadata say under a key, which may be nothing."""
    return next(iter((entry.dist and entry.dist.metadata.get_all(key)) or []), "?")


def origin(name: str) -> Installed:
    """Returns the one installed schedule of that name, without importing it.

    Raises:
        ScheduleError: there is none, or two distributions offer it.
    """
    offered = installed()
    named = [one for one in offered if one.name == name]
    if not named:
        names = sorted({one.name for one in offered})
        raise ScheduleError(
            f"no schedule named {name!r}{did_you_mean(name, names)} "
            f"(installed: {', '.join(names) or 'none; is rewarm installed?'}; others come with "
            "plug-ins)"
        )
    if len(named) > 1:
        owners = " and ".join(f"{one.distribution} {one.version}" for one in named)
        raise ScheduleError(
            f"two distributions offer a schedule named {name!r}: {owners}; uninstall one of them"
        )
    return named[0]


def identity(name: str) -> dict[str, str]:
    """Returns what a checkpoint says of the plug-in that gave its rates.

    Raises:
        ScheduleError: there is none of that name, or two.
    """
    plugin = origin(name)
    return {"name": name, "distribution": plugin.distribution, "version": plugin.version}


def find(name: str) -> type[Schedule]:
    """Returns the schedule class of that name, importing only that plug-in.

    Raises:
        ScheduleError: it is missing, ambiguous, cannot be imported, or is not what it claims.
    """
    plugin = origin(name)
    owner = f"schedule {name!r} of {plugin.distribution} {plugin.version}"
    try:
        loaded = plugin.entry.load()
    except (Exception, SystemExit) as error:  # a stranger's import may raise anything
        raise ScheduleError(
            f"{owner} cannot be imported: {type(error).__name__}: {error}; "
            f"mend or uninstall {plugin.distribution}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Schedule)):
        raise ScheduleError(f"{owner} is not a rewarm.Schedule: {plugin.entry.value}")
    built_for = vars(loaded).get("contract")  # its own, not one that it inherits
    if built_for != CONTRACT:
        said = f"contract {built_for!r}" if built_for else "no contract (contract: ClassVar[int])"
        raise ScheduleError(
            f"{owner} was built for {said} of rewarm schedules, and rewarm {version('rewarm')} has "
            f"contract {CONTRACT}; install a {plugin.distribution} for contract {CONTRACT}"
        )
    if isabstract(loaded):
        raise ScheduleError(f"{owner} has no __call__(self, progress): {plugin.entry.value}")
    declared = loaded.model_fields["name"].default
    if declared != name:
        raise ScheduleError(f"{owner} calls itself {declared!r}; the two names must be the same")
    return loaded


def read(written: Any, context: dict[str, Any]) -> Schedule:
    """Returns the schedule that settings such as `{name: rewarm, peak_lr: 3e-4, ...}` say.

    A recipe reads its schedule through this one function, and so does a schedule made of others.

    Args:
        written: the settings, or a schedule, which is read again.
        context: what spans and rates are resolved against: `budget`, a Budget, and `base_lr`, a
            function that says the last rate of the base; each may be None.

    Raises:
        ValueError: these are no settings, or the schedule broke while it checked them.
        ValidationError: there is no such schedule, or its settings are wrong; each fault located.
    """
    if isinstance(written, Schedule):
        written = written.model_dump(mode="json")
    if not isinstance(written, dict):
        raise ValueError("should be settings, such as {name: rewarm, peak_lr: 3e-4, ...}")
    name = written.get("name")
    try:
        if not isinstance(name, str):
            raise ScheduleError("required, but missing" if name is None else "should be text")
        kind = find(name)
    except ScheduleError as error:
        fault = PydanticCustomError("recipe", str(error))
        details = InitErrorDetails(type=fault, loc=("name",), input=name)
        raise ValidationError.from_exception_data("schedule", [details]) from None
    try:
        return kind.model_validate(written, context=context)
    except ValidationError:
        raise
    except Exception as error:  # a stranger's validator may raise anything
        raise ValueError(
            f"{name!r} cannot check its settings: {type(error).__name__}: {error}"
        ) from error


def rate(schedule: Schedule, progress: float) -> float:
    """Returns `schedule(progress)`, having made sure that it is a rate.

    Training, `check` and `plot-schedule` all read the curve through this one function.

    Raises:
        ScheduleError: the schedule raised, or gave something negative, not finite or not a number.
    """
    where = f"schedule {schedule.name!r} at progress {progress:.6g}"
    try:
        value = schedule(progress)
    except Exception as error:  # a stranger's curve may raise anything
        raise ScheduleError(f"{where} raised {type(error).__name__}: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"{where} gave {value!r}; a rate is a number")
    if not math.isfinite(value) or value < 0:
        raise ScheduleError(f"{where} gave {value!r}; a rate is finite and not negative")
    return float(value)


def insist_on_rates(schedule: Schedule, least: float) -> None:
    """Makes sure, at 200 places and at each mark, that a schedule gives a rate, the same each time.

    Args:
        schedule: whose curve it is.
        least: the progress of the first step.

    Raises:
        ScheduleError: it does not.
    """
    places = [sample / 200 for sample in range(1, 201)]
    places += [min(1.0, max(place, least)) for place in marks(schedule).values()]
    first = {place: rate(schedule, place) for place in places}
    for place in reversed(places):
        if (again := rate(schedule, place)) != first[place]:
            raise ScheduleError(
                f"schedule {schedule.name!r} at progress {place:.6g} gave {first[place]!r}, and "
                f"{again!r} when asked again; a schedule keeps nothing between calls"
            )


def sampled(schedule: Schedule) -> list[float]:
    """Returns the rate at every hundredth of the run, by which a curve is known again."""
    return [rate(schedule, place / 100) for place in range(1, 101)]


def marks(schedule: Schedule) -> dict[str, float]:
    """Returns `schedule.marks()`, having made sure that they are places.

    Raises:
        ScheduleError: the schedule raised, or gave something that is not a number for each label.
    """
    try:
        places = schedule.marks()
        if all(math.isfinite(place) for place in places.values()):
            return places
    except Exception as error:  # a stranger's marks may raise anything
        raise ScheduleError(
            f"the marks of schedule {schedule.name!r} raised {type(error).__name__}: {error}"
        ) from error
    raise ScheduleError(f"schedule {schedule.name!r} marks {places!r}; a mark is a finite number")


def of_base(schedule: BaseModel) -> Iterator[str]:
    """Yields the arithmetic of every rate that was written as one of the base's."""

    def inside(label: str, value: Any) -> Iterator[str]:
        if isinstance(value, RateOfBase):
            yield f"{label} = {value.factor:g} × {value.base_lr:g} (the base's last) = {value:g}"
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from inside(f"{label}.{name}" if label else name, getattr(value, name))
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                yield from inside(f"{label}.{index}", one)

    yield from inside("", schedule)
