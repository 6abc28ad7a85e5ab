"""W&B (Weights & Biases): offline in the run directory, or online if a recipe says so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints
from typing_extensions import override

from rewarm.trackers.base import Log, TrackedRun, Tracker

_Text = Annotated[str, StringConstraints(min_length=1)]
_Mode = Literal["offline", "online", "disabled"]
_MODES: dict[str, _Mode] = {
    **{"offline": "offline", "online": "online", "disabled": "disabled"},
    "dryrun": "offline",  # W&B's older word
}


class Wandb(Tracker):
    """Writes to `trackers/wandb` in the run directory, from where `wandb sync` uploads it."""

    contract: ClassVar[int] = 1

    project: _Text = "rewarm"
    """The project that the run belongs to."""
    entity: _Text | None = None
    """The user or team of the project; null for the one that is logged in."""
    name: _Text | None = None
    """The name of the run; null for that of the run directory."""
    group: _Text | None = None
    """The group of the run, such as the study that it belongs to."""
    tags: tuple[_Text, ...] = ()
    """Words to find the run by."""
    mode: _Mode = "offline"
    """`offline` sends nothing; `online` sends metrics and the recipe to W&B's server. The
    environment variable WANDB_MODE has precedence."""

    @property
    def actual_mode(self) -> _Mode:
        """The mode, in which the environment has precedence over the recipe."""
        written = os.environ.get("WANDB_MODE") or self.mode
        if written not in _MODES:
            raise ValueError(
                f"the environment variable WANDB_MODE should be offline, online or disabled, "
                f"got {written!r}"
            )
        return _MODES[written]

    @override
    def check(self) -> None:
        wandb = _import(self.actual_mode)
        if self.actual_mode == "online" and not wandb.api.api_key:
            raise ValueError(
                "mode: online needs an account: run `wandb login`, set WANDB_API_KEY, or use "
                "mode: offline"
            )

    @override
    @contextmanager
    def open(self, run: TrackedRun) -> Iterator[Log]:
        wandb = _import(self.actual_mode)
        session = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run.name,
            group=self.group,
            tags=self.tags or None,
            config=run.recipe,
            dir=run.folder,
            id=run.id,
            resume="allow",
            mode=self.actual_mode,
            save_code=False,
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_stats_pid=os.getppid(),  # the process that trains
            ),
        )
        session.define_metric("*", step_metric="step")

        def log(step: int, values: Mapping[str, float]) -> None:
            session.log({"step": step, **values})

        try:
            yield log
        finally:
            session.finish()


def _import(mode: _Mode) -> ModuleType:
    """Imports W&B, which otherwise reports its own errors to its makers, in any mode."""
    if mode != "online":
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    return import_module("wandb")
