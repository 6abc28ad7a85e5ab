"""trackio: a local database that `trackio show` draws, or a Hugging Face Space."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, ClassVar

from pydantic import StringConstraints
from typing_extensions import override

from rewarm.trackers.base import Log, TrackedRun, Tracker

_Text = Annotated[str, StringConstraints(min_length=1)]
_SAY_ONLINE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio(Tracker):
    """Writes to trackio's own database on this machine, or to a Space if a recipe names one."""

    contract: ClassVar[int] = 1

    project: _Text = "rewarm"
    """The project that the run belongs to."""
    name: _Text | None = None
    """The start of the run's name; null for that of the run directory."""
    group: _Text | None = None
    """The group of the run, such as the study that it belongs to."""
    space_id: _Text | None = None
    """The Hugging Face Space, OWNER/NAME, to send metrics and the recipe to; null for none."""

    @override
    def check(self) -> None:
        self._stay_offline()
        import_module("trackio")

    @override
    @contextmanager
    def open(self, run: TrackedRun) -> Iterator[Log]:
        self._stay_offline()
        import trackio

        session = trackio.init(
            project=self.project,
            # A name is what trackio finds a run by.
            name=f"{self.name or run.name}-{run.id[:6]}",
            group=self.group,
            space_id=self.space_id,
            config=run.recipe,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
        )
        try:
            yield lambda step, values: session.log(dict(values), step=step)
        finally:
            session.finish()

    def _stay_offline(self) -> None:
        """Keeps trackio from asking the hub for the user's name, unless metrics go there."""
        if not self.space_id and not any(map(os.environ.get, _SAY_ONLINE)):
            os.environ["HF_HUB_OFFLINE"] = "1"
