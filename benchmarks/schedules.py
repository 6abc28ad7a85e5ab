"""How exact the schedules are, and what those of other libraries do: two Markdown tables.

    python benchmarks/schedules.py

Every schedule, those of plugins/ included, is compared with its reference values (the digits that
its paper prints, or values worked out by hand) and, at every step of several runs, with a second,
plainer implementation: tests/plain_rewarm.py and plugins/*/tests/plain_*.py hold both. Then the
schedulers of transformers and torch are stepped beside the schedule that means the same. The
plug-ins need not be installed.
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
sys.path += map(str, chain([ROOT / "tests"], PLUGINS, (plugin / "tests" for plugin in PLUGINS)))

PLAIN = {"plain_rewarm": "rewarm.schedules"} | {
    plugin.name.replace("rewarm-", "plain_"): plugin.name.replace("-", "_") for plugin in PLUGINS
}


def kinds() -> dict[str, type[Schedule]]:
    """Returns every schedule class of the repository by name, installed or not."""
    modules = map(import_module, PLAIN.values())
    classes = [
        one
        for one in chain.from_iterable(vars(module).values() for module in modules)
        if isinstance(one, type) and issubclass(one, Schedule) and "contract" in vars(one)
    ]
    return {one.model_fields["name"].default: one for one in classes}


def made(settings: dict[str, Any], steps: int, tokens_per_step: int = 64) -> Schedule:
    """Returns the schedule with these settings in a run of so many steps."""
    context = {"budget": Budget(steps, tokens_per_step)}
    return kinds()[settings["name"]].model_validate(settings, context=context)


def label(schedule: Schedule) -> str:
    """Returns the name of a schedule with its way down."""
    ways = (getattr(schedule, way, None) for way in ("shape", "cooldown", "decay"))
    return " · ".join([schedule.name, *(way for way in ways if isinstance(way, str))])


def apart(ours: float, theirs: float) -> float:
    """Returns how far two rates are from each other, as a share of the larger."""
    return abs(ours - theirs) / max(abs(ours), abs(theirs)) if ours != theirs else 0.0


class Exactness(NamedTuple):
    """How far a schedule is, at worst, from its reference values and from the plain one."""

    values: int = 0
    of_reference: float = 0.0
    steps: int = 0
    of_plain: float = 0.0


def exactness() -> dict[str, Exactness]:
    """Returns one row for each schedule and way down."""
    found: dict[str, Exactness] = {}
    for name in PLAIN:
        plain: Any = import_module(name)
        for settings, steps, *reference in plain.REFERENCE + plain.CASES:
            schedule = made(settings, steps, getattr(plain, "TOKENS_PER_STEP", 64))
            row = found.get(label(schedule), Exactness())
            values = reference[0] if reference else plain.by_hand(steps, **settings)
            pairs = values.items() if reference else enumerate(values, start=1)
            worst = max(apart(schedules.rate(schedule, k / steps), rate) for k, rate in pairs)
            found[label(schedule)] = (
                row._replace(
                    values=row.values + len(values), of_reference=max(row.of_reference, worst)
                )
                if reference
                else row._replace(steps=row.steps + steps, of_plain=max(row.of_plain, worst))
            )
    return found


# The comparison with other libraries.

STEPS, WARMUP, PEAK, LOW = 1000, 100, 3e-4, 3e-5
BEYOND = 1100


class Peer(NamedTuple):
    """A scheduler of another library, and the schedule here that means the same."""

    name: str
    build: Callable[[Any], Any]
    """Makes the scheduler of an optimizer whose rate is PEAK."""
    ours: dict[str, Any]
    same: bool = True
    ahead: int = 0
    """By how many steps its n is ahead: its rate n is ours of step n + ahead."""
    but: tuple[int, ...] = ()
    """Steps that are told apart in words, and not compared."""
    said: str = ""
    """What is different, in words."""


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

        schedule = made(settings, STEPS)
        return LambdaLR(optimizer, lambda n: schedule((n + 1) / STEPS) / PEAK)

    return build


def peers() -> list[Peer]:
    """Returns the pairs."""
    rise = f"{WARMUP} steps"
    rewarm: dict[str, Any] = {"name": "rewarm", "peak_lr": PEAK, "min_lr": LOW, "warmup": rise}
    bare: dict[str, Any] = {"name": "no-warmup", "peak_lr": PEAK, "min_lr": LOW}
    wsd = {"name": "wsd", "peak_lr": PEAK, "min_lr": LOW, "start_lr": LOW, "warmup": rise}

    def row(*parts: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
        said = [{"length": long, "repeat": n, "schedule": one} for long, n, one in parts]
        return {"name": "sequence", "parts": said}

    return [
        Peer("linear", _hf("linear"), {"name": "d2z", "peak_lr": PEAK, "warmup": rise}),
        Peer("cosine", _hf("cosine"), rewarm | {"min_lr": 0.0}, said="rises again past the end"),
        Peer(
            "cosine_with_min_lr",
            _hf("cosine_with_min_lr", min_lr=LOW),
            rewarm,
            said="rises again past the end",
        ),
        Peer(
            "cosine_warmup_with_min_lr",
            _hf("cosine_warmup_with_min_lr", min_lr=LOW),
            rewarm,
            ahead=1,
            said="update for update the same; rises again past the end",
        ),
        Peer(
            "cosine_with_restarts (3 cycles)",
            _hf("cosine_with_restarts", num_cycles=3),
            row(
                ("400 steps", 1, rewarm | {"min_lr": 0.0}),
                ("600 steps", 2, bare | {"min_lr": 0.0}),
            ),
            but=(400, 700),
            said="n = 400 and 700 are at the peak; here the end of a cycle is at its lowest rate",
        ),
        Peer(
            "polynomial (power 1)",
            _hf("polynomial", lr_end=LOW, power=1.0),
            rewarm | {"decay": "linear"},
            said="other powers have no counterpart",
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
            said="falls on past the end",
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
                said="its warm-up starts at the minimum; so does ours with start_lr",
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
            said="rises again past the end",
        ),
        Peer(
            "SequentialLR of LinearLR and CosineAnnealingLR",
            _in_a_row(
                _torch("LinearLR", start_factor=LOW / PEAK, total_iters=WARMUP),
                _torch("CosineAnnealingLR", T_max=STEPS - WARMUP, eta_min=LOW),
                at=[WARMUP],
            ),
            rewarm | {"start_lr": LOW},
            said="its LinearLR cannot start at 0; rises again past the end",
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
            said="raises past the end; total_steps counts its rate 0 too",
        ),
        Peer(
            "OneCycleLR (as it comes: cosine)",
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
            said="the way up is half a cosine, here a line; the way down is the same",
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
            said="falls on past the end",
        ),
        Peer(
            "CosineAnnealingWarmRestarts",
            _torch("CosineAnnealingWarmRestarts", T_0=250, eta_min=LOW),
            row(("100%", 4, bare)),
            but=(250, 500, 750, 1000),
            said="n = 250, 500, 750 and 1000 are at the peak; here they end a cycle",
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
            said="starts another cycle past the end",
        ),
        Peer(
            "MultiStepLR",
            _torch("MultiStepLR", milestones=[600], gamma=LOW / PEAK),
            row(
                ("60%", 1, {"name": "constant", "lr": PEAK}),
                ("40%", 1, {"name": "constant", "lr": LOW}),
            ),
            but=(600,),
            said="n = 600 has the next rate; here it is the last step of its part",
        ),
        Peer(
            "LambdaLR of a schedule from here",
            _of_ours(rewarm),
            rewarm,
            ahead=1,
            said="`lambda n: schedule((n + 1) / steps)`, with lr 1.0: update for update the same",
        ),
    ]


class Difference(NamedTuple):
    """What a peer and ours do, as measured."""

    largest: float
    """The largest difference of the rates 1 ... STEPS, as a share of the larger."""
    first: tuple[float, float]
    """The rate of the first update: theirs, ours."""
    past: tuple[float | None, float]
    """The rate at BEYOND: theirs (None: it raised), ours."""


def difference(peer: Peer) -> Difference:
    """Returns what a peer and ours do, having stepped through both."""
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
    except ValueError:  # OneCycleLR, asked for more steps than it has
        pass
    schedule = made(peer.ours, STEPS)
    ours = {step: schedules.rate(schedule, step / STEPS) for step in (*range(1, STEPS + 1), BEYOND)}
    compared = [step for step in range(1, STEPS + 1) if step not in peer.but]
    largest = max(apart(ours[step], theirs[step - peer.ahead]) for step in compared)
    return Difference(largest, (theirs[0], ours[1]), (past, ours[BEYOND]))


def main() -> None:
    """Prints the tables."""

    def few(error: float) -> str:
        return f"{error:.1e}" if error else "0"

    print("| schedule | reference values | worst error | steps of the second | worst error |")
    print("|---|---|---|---|---|")
    for name, row in exactness().items():
        reference = f"{row.values} | {few(row.of_reference)}" if row.values else "none | –"
        print(f"| {name} | {reference} | {row.steps:,} | {few(row.of_plain)} |")
    libraries = " · ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    print(f"\n{libraries} · rewarm {version('rewarm')}\n")
    print("| theirs | here | largest difference | first update | n = 1100 | what differs |")
    print("|---|---|---|---|---|---|")
    for peer in peers():
        found = difference(peer)
        first, past = (
            " / ".join("error" if rate is None else f"{rate:.4g}" for rate in pair)
            for pair in (found.first, found.past)
        )
        ours = label(made(peer.ours, STEPS))
        print(f"| {peer.name} | {ours} | {few(found.largest)} | {first} | {past} | {peer.said} |")


if __name__ == "__main__":
    main()
