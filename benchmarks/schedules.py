"""How accurate the schedules are, and what other libraries' schedulers do: two Markdown tables.

    python benchmarks/schedules.py

Every schedule, those of plugins/ included, is compared with its reference values (the digits that
its paper prints, or values worked out by hand) and, at every step of several runs, with a second,
plainer implementation: both are in tests/helpers/plain_rewarm.py and
plugins/*/tests/plain_*.py. Then the schedulers of transformers and torch are compared with the
equivalent schedule here. The plug-ins need not be installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rewarm import schedules
from rewarm.quantities import Budget
from rewarm.schedules import Schedule

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
sys.path += map(
    str, chain([ROOT / "tests" / "helpers"], PLUGINS, (plugin / "tests" for plugin in PLUGINS))
)

PLAIN = {"plain_rewarm": "rewarm.schedules"} | {
    plugin.name.replace("rewarm-", "plain_"): plugin.name.replace("-", "_") for plugin in PLUGINS
}


def schedule_classes() -> dict[str, type[Schedule]]:
    """Returns every schedule class of the repository by name, installed or not."""
    modules = map(import_module, PLAIN.values())
    classes = [
        value
        for value in chain.from_iterable(vars(module).values() for module in modules)
        if isinstance(value, type) and issubclass(value, Schedule) and "contract" in vars(value)
    ]
    return {kind.model_fields["name"].default: kind for kind in classes}


def build_schedule(settings: dict[str, Any], steps: int, tokens_per_step: int = 64) -> Schedule:
    """Returns the schedule with these settings in a run of `steps` steps."""
    context = {"budget": Budget(steps, tokens_per_step)}
    return schedule_classes()[settings["name"]].model_validate(settings, context=context)


def label(schedule: Schedule) -> str:
    """Returns the name of a schedule with its kind of decay."""
    decays = (getattr(schedule, field, None) for field in ("shape", "cooldown", "decay"))
    return " · ".join([schedule.name, *(decay for decay in decays if isinstance(decay, str))])


def relative_difference(ours: float, theirs: float) -> float:
    """Returns the difference of two rates relative to the larger."""
    return abs(ours - theirs) / max(abs(ours), abs(theirs)) if ours != theirs else 0.0


class Exactness(NamedTuple):
    """The largest errors of a schedule against reference values and the second implementation."""

    values: int = 0
    of_reference: float = 0.0
    steps: int = 0
    of_plain: float = 0.0


def exactness() -> dict[str, Exactness]:
    """Returns one row for each schedule and kind of decay."""
    rows: dict[str, Exactness] = {}
    for name in PLAIN:
        plain: Any = import_module(name)
        for settings, steps, *reference in plain.REFERENCE + plain.CASES:
            schedule = build_schedule(settings, steps, getattr(plain, "TOKENS_PER_STEP", 64))
            row = rows.get(label(schedule), Exactness())
            values = reference[0] if reference else plain.by_hand(steps, **settings)
            pairs = values.items() if reference else enumerate(values, start=1)
            worst = max(
                relative_difference(schedules.rate(schedule, k / steps), rate) for k, rate in pairs
            )
            rows[label(schedule)] = (
                row._replace(
                    values=row.values + len(values), of_reference=max(row.of_reference, worst)
                )
                if reference
                else row._replace(steps=row.steps + steps, of_plain=max(row.of_plain, worst))
            )
    return rows


# The comparison with other libraries.

STEPS, WARMUP, PEAK, LOW = 1000, 100, 3e-4, 3e-5
BEYOND = 1100


class Peer(NamedTuple):
    """A scheduler of another library, and the equivalent schedule here."""

    name: str
    build: Callable[[Any], Any]
    """Makes the scheduler of an optimizer whose rate is PEAK."""
    ours: dict[str, Any]
    same: bool = True
    ahead: int = 0
    """By how many steps its n is ahead: its rate n is ours of step n + ahead."""
    but: tuple[int, ...] = ()
    """Steps that `note` explains and that are not compared."""
    note: str = ""
    """What is different."""


def _hf(name: str, **settings: Any) -> Callable[[Any], Any]:
    def build(optimizer: Any) -> Any:
        from transformers import get_scheduler

        return get_scheduler(name, optimizer, WARMUP, STEPS, settings or None)

    return build


def _torch(name: str, **settings: Any) -> Callable[[Any], Any]:
    def build(optimizer: Any) -> Any:
        from torch.optim import lr_scheduler

        return getattr(lr_scheduler, name)(optimizer, **settings)

    return build


def _in_a_row(*parts: Callable[[Any], Any], at: list[int]) -> Callable[[Any], Any]:
    def build(optimizer: Any) -> Any:
        from torch.optim.lr_scheduler import SequentialLR

        return SequentialLR(optimizer, [part(optimizer) for part in parts], milestones=at)

    return build


def _of_ours(settings: dict[str, Any]) -> Callable[[Any], Any]:
    def build(optimizer: Any) -> Any:
        from torch.optim.lr_scheduler import LambdaLR

        schedule = build_schedule(settings, STEPS)
        return LambdaLR(optimizer, lambda n: schedule((n + 1) / STEPS) / PEAK)

    return build


def peers() -> list[Peer]:
    """Returns the pairs."""
    rise = f"{WARMUP} steps"
    rewarm: dict[str, Any] = {"name": "rewarm", "peak_lr": PEAK, "min_lr": LOW, "warmup": rise}
    bare: dict[str, Any] = {"name": "no-warmup", "peak_lr": PEAK, "min_lr": LOW}
    wsd = {"name": "wsd", "peak_lr": PEAK, "min_lr": LOW, "start_lr": LOW, "warmup": rise}

    def row(*parts: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
        settings = [
            {"length": length, "repeat": repeat, "schedule": schedule}
            for length, repeat, schedule in parts
        ]
        return {"name": "sequence", "parts": settings}

    return [
        Peer("linear", _hf("linear"), {"name": "d2z", "peak_lr": PEAK, "warmup": rise}),
        Peer("cosine", _hf("cosine"), rewarm | {"min_lr": 0.0}, note="rises again past the end"),
        Peer(
            "cosine_with_min_lr",
            _hf("cosine_with_min_lr", min_lr=LOW),
            rewarm,
            note="rises again past the end",
        ),
        Peer(
            "cosine_warmup_with_min_lr",
            _hf("cosine_warmup_with_min_lr", min_lr=LOW),
            rewarm,
            ahead=1,
            note="update for update the same; rises again past the end",
        ),
        Peer(
            "cosine_with_restarts (3 cycles)",
            _hf("cosine_with_restarts", num_cycles=3),
            row(
                ("400 steps", 1, rewarm | {"min_lr": 0.0}),
                ("600 steps", 2, bare | {"min_lr": 0.0}),
            ),
            but=(400, 700),
            note="n = 400 and 700 are at the peak; here the end of a cycle is at its lowest rate",
        ),
        Peer(
            "polynomial (power 1)",
            _hf("polynomial", lr_end=LOW, power=1.0),
            rewarm | {"decay": "linear"},
            note="other powers have no counterpart",
        ),
        Peer("constant", _hf("constant"), {"name": "constant", "lr": PEAK}),
        Peer(
            "constant_with_warmup",
            _hf("constant_with_warmup"),
            {"name": "rewarm", "peak_lr": PEAK, "warmup": rise, "decay": "none"},
        ),
        Peer(
            "inverse_sqrt",
            _hf("inverse_sqrt"),
            rewarm | {"min_lr": 0.0, "decay": "inverse-sqrt"},
            note="keeps falling past the end",
        ),
        *(
            Peer(
                f"warmup_stable_decay ({shape})",
                _hf(
                    "warmup_stable_decay",
                    num_decay_steps=200,
                    decay_type=shape,
                    min_lr_ratio=LOW / PEAK,
                ),
                wsd | {"decay": "200 steps", "shape": shape},
                note="its warm-up starts at the minimum; so does ours with start_lr",
            )
            for shape in ("linear", "cosine", "1-sqrt")
        ),
        Peer(
            "LinearLR",
            _torch("LinearLR", start_factor=1.0, end_factor=LOW / PEAK, total_iters=STEPS),
            bare | {"decay": "linear"},
        ),
        Peer(
            "CosineAnnealingLR",
            _torch("CosineAnnealingLR", T_max=STEPS, eta_min=LOW),
            bare,
            note="rises again past the end",
        ),
        Peer(
            "SequentialLR of LinearLR and CosineAnnealingLR",
            _in_a_row(
                _torch("LinearLR", start_factor=LOW / PEAK, total_iters=WARMUP),
                _torch("CosineAnnealingLR", T_max=STEPS - WARMUP, eta_min=LOW),
                at=[WARMUP],
            ),
            rewarm | {"start_lr": LOW},
            note="its LinearLR cannot start at 0; rises again past the end",
        ),
        Peer(
            "OneCycleLR (anneal_strategy linear)",
            _torch(
                "OneCycleLR",
                max_lr=PEAK,
                total_steps=STEPS + 1,
                pct_start=(WARMUP + 1) / (STEPS + 1),
                anneal_strategy="linear",
                div_factor=PEAK / LOW,
                final_div_factor=1.0,
                cycle_momentum=False,
            ),
            rewarm | {"start_lr": LOW, "decay": "linear"},
            note="raises past the end; total_steps counts its rate 0 too",
        ),
        Peer(
            "OneCycleLR (default: cosine)",
            _torch(
                "OneCycleLR",
                max_lr=PEAK,
                total_steps=STEPS + 1,
                pct_start=(WARMUP + 1) / (STEPS + 1),
                div_factor=PEAK / LOW,
                final_div_factor=1.0,
                cycle_momentum=False,
            ),
            rewarm | {"start_lr": LOW},
            same=False,
            note="its warm-up is half a cosine, here a line; the decay is the same",
        ),
        Peer(
            "PolynomialLR (power 1)",
            _torch("PolynomialLR", total_iters=STEPS, power=1.0),
            {"name": "d2z", "peak_lr": PEAK, "warmup": 0},
        ),
        Peer(
            "ExponentialLR",
            _torch("ExponentialLR", gamma=(LOW / PEAK) ** (1 / STEPS)),
            wsd | {"warmup": 0, "decay": "100%", "shape": "exponential"},
            note="keeps falling past the end",
        ),
        Peer(
            "CosineAnnealingWarmRestarts",
            _torch("CosineAnnealingWarmRestarts", T_0=250, eta_min=LOW),
            row(("100%", 4, bare)),
            but=(250, 500, 750, 1000),
            note="n = 250, 500, 750 and 1000 are at the peak; here they end a cycle",
        ),
        Peer(
            "CyclicLR (triangular)",
            _torch(
                "CyclicLR",
                base_lr=LOW,
                max_lr=PEAK,
                step_size_up=50,
                step_size_down=200,
                cycle_momentum=False,
            ),
            row(
                ("100%", 4, rewarm | {"start_lr": LOW, "warmup": "50 steps", "decay": "linear"}),
            ),
            note="starts another cycle past the end",
        ),
        Peer(
            "MultiStepLR",
            _torch("MultiStepLR", milestones=[600], gamma=LOW / PEAK),
            row(
                ("60%", 1, {"name": "constant", "lr": PEAK}),
                ("40%", 1, {"name": "constant", "lr": LOW}),
            ),
            but=(600,),
            note="n = 600 has the next rate; here it is the last step of its part",
        ),
        Peer(
            "LambdaLR of a schedule from rewarm",
            _of_ours(rewarm),
            rewarm,
            ahead=1,
            note="`lambda n: schedule((n + 1) / steps)`, with lr 1.0: update for update the same",
        ),
    ]


class Difference(NamedTuple):
    """The measured differences between a peer and the schedule here."""

    largest: float
    """The largest difference of the rates 1 ... STEPS, as a share of the larger."""
    first: tuple[float, float]
    """The rate of the first update: theirs, ours."""
    past: tuple[float | None, float]
    """The rate at BEYOND: theirs (None: it raised), ours."""


def difference(peer: Peer) -> Difference:
    """Steps through a peer and the schedule here and returns their differences."""
    import torch

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = peer.build(optimizer)
    theirs: list[float] = [scheduler.get_last_lr()[0]]
    past = None
    try:
        while len(theirs) <= BEYOND:
            optimizer.step()
            scheduler.step()
            theirs.append(float(scheduler.get_last_lr()[0]))
        past = theirs[BEYOND]
    except ValueError:  # OneCycleLR raises past its last step
        pass
    schedule = build_schedule(peer.ours, STEPS)
    ours = {step: schedules.rate(schedule, step / STEPS) for step in (*range(1, STEPS + 1), BEYOND)}
    compared = [step for step in range(1, STEPS + 1) if step not in peer.but]
    largest = max(relative_difference(ours[step], theirs[step - peer.ahead]) for step in compared)
    return Difference(largest, (theirs[0], ours[1]), (past, ours[BEYOND]))


def main() -> None:
    """Prints the tables."""

    def scientific(error: float) -> str:
        return f"{error:.1e}" if error else "0"

    print("| schedule | reference values | worst error | steps of the second | worst error |")
    print("|---|---|---|---|---|")
    for name, row in exactness().items():
        reference = f"{row.values} | {scientific(row.of_reference)}" if row.values else "none | –"
        print(f"| {name} | {reference} | {row.steps:,} | {scientific(row.of_plain)} |")
    libraries = " · ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    print(f"\n{libraries} · rewarm {version('rewarm')}\n")
    print("| theirs | here | largest difference | first update | n = 1100 | what differs |")
    print("|---|---|---|---|---|---|")
    for peer in peers():
        measured = difference(peer)
        first, past = (
            " / ".join("error" if rate is None else f"{rate:.4g}" for rate in pair)
            for pair in (measured.first, measured.past)
        )
        ours = label(build_schedule(peer.ours, STEPS))
        largest = scientific(measured.largest)
        print(f"| {peer.name} | {ours} | {largest} | {first} | {past} | {peer.note} |")


if __name__ == "__main__":
    main()
