"""MLflow: an SQLite store in the run directory, or the server that a recipe names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, ClassVar

from pydantic import StringConstraints, field_validator
from typing_extensions import override

from rewarm.trackers.base import Log, TrackedRun, Tracker

_Text = Annotated[str, StringConstraints(min_length=1)]
_TAG = "rewarm.id"
_LONGEST_PARAM = 500
_MOST_PARAMS = 100


class MLflow(Tracker):
    """Writes to `trackers/mlflow/mlflow.db` in the run directory, or to a tracking server."""

    contract: ClassVar[int] = 1

    experiment: _Text = "rewarm"
    """The experiment that the run belongs to."""
    name: _Text | None = None
    """The name of the run; null for that of the run directory."""
    tracking_uri: _Text | None = None
    """Where to send metrics and the recipe, such as http://127.0.0.1:5000. Null for the environment
    variable MLFLOW_TRACKING_URI, and without it for an SQLite store in the run directory."""

    @field_validator("tracking_uri")
    @classmethod
    def _check_address(cls, uri: str | None) -> str | None:
        if uri and ":/" not in uri and uri != "databricks":  # MLflow would write to such a folder
            raise ValueError("not an address; give one such as http://127.0.0.1:5000")
        return uri

    @override
    def check(self) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import_module("sqlalchemy")
        import_module("mlflow")

    @override
    @contextmanager
    def open(self, run: TrackedRun) -> Iterator[Log]:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        local = f"sqlite:///{run.folder / 'mlflow.db'}"
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        client = MlflowClient(tracking_uri=uri)
        existing = client.get_experiment_by_name(self.experiment)
        artifacts = (run.folder / "artifacts").as_uri() if uri == local else None
        experiment = (
            existing.experiment_id
            if existing
            else client.create_experiment(self.experiment, artifact_location=artifacts)
        )
        earlier = client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        if earlier:
            run_id = earlier[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            name = self.name or run.name
            run_id = client.create_run(experiment, run_name=name, tags={_TAG: run.id}).info.run_id
            params = [Param(key, text[:_LONGEST_PARAM]) for key, text in _flat(run.recipe)]
            client.log_batch(run_id, params=params[:_MOST_PARAMS])

        def log(step: int, values: Mapping[str, float]) -> None:
            now = round(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            client.log_batch(run_id, metrics=metrics)

        try:
            yield log
        finally:
            client.set_terminated(run_id)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields nested settings as (`a.b`, text) pairs."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
