"""Tasks of the LM Evaluation Harness (lm_eval, arXiv:2405.14782), which is imported here only.

```
 names, a folder of own tasks ──> HarnessTasks ── measure(model) ──> {"lambada_openai/acc": 0.56}
```
The harness seeds all random numbers and writes to the terminal: here both stay as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewarm.errors import DataError, RecipeError, did_you_mean
from rewarm.paths import short_path
from rewarm.recipe.measurement_settings import TaskSettings
from rewarm.runs.measurement_preconditions import harness_missing, no_task_folder
from rewarm.runs.task_figures import is_stderr, stderr_name

Figures = dict[str, float]
"""Measured values by name, `TASK/METRIC`, each followed by its standard error,
`TASK/METRIC_stderr`, if it is known."""

_NO_PROCESSES = "DISABLE_MULTIPROC"
_SEED = 1234
_LOGGERS = ("lm_eval", "datasets", "transformers", "huggingface_hub")


def is_figures(data: Any) -> bool:
    """Returns whether data from a file are figures."""
    return isinstance(data, dict) and all(
        isinstance(name, str) and type(value) is float for name, value in data.items()
    )


class HarnessTasks:
    """Tasks with their questions, loaded once."""

    def __init__(self, settings: TaskSettings) -> None:
        """Loads the tasks; the harness downloads their data where it is not on this machine.

        Raises:
            DataError: the harness is not installed, or the data of a task cannot be loaded.
            RecipeError: there is no such task.
        """
        self._settings = settings
        with quiet_harness():
            try:
                from lm_eval.tasks import TaskManager
            except ImportError:
                raise harness_missing() from None
            self._manager = _manager_of(TaskManager, settings)
            self._specs = {name: self._load(name) for name in settings.names}

    def _load(self, name: str) -> list[Any]:
        """Returns the tasks, or the group of tasks, of a name."""
        try:
            with _harness_seeds():
                loaded = self._manager.load([name])
        except Exception as error:  # of the harness, or of the download
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(
                f"task {name}: its data or its definition cannot be loaded: {reason}; check the "
                "network and the paths in its YAML file, or download its data where there is a "
                "network (HF_HOME is the cache)"
            ) from None
        for task in loaded["tasks"].values():
            # As `simple_evaluate`: a task that states 0 examples keeps them.
            stated, asked = task.config.num_fewshot, self._settings.few_shot
            examples = stated if asked is None or stated == 0 else asked
            task.set_config(key="num_fewshot", value=examples or 0)
            task.set_fewshot_seed(seed=_SEED)
        group = loaded.get("groups", {}).get(name)
        return [group] if group is not None else list(loaded["tasks"].values())

    def identity(self, name: str) -> dict[str, Any]:
        """Returns all that decides the figures of a task besides the model."""
        from lm_eval import __version__ as harness_version

        with quiet_harness():
            tasks = self._manager.load(self._specs[name])["tasks"]
            return {
                "harness": harness_version,
                "few_shot": self._settings.few_shot,
                "limit": self._settings.limit,
                "tasks": {
                    task_name: {
                        "version": str(task.VERSION),
                        "config": hashlib.sha256(_as_json(task.dump_config())).hexdigest(),
                        "questions": self._digest_of_questions(task),
                    }
                    for task_name, task in sorted(tasks.items())
                },
            }

    def _digest_of_questions(self, task: Any) -> str:
        digest = hashlib.sha256()
        for number, question in enumerate(task.eval_docs):
            if self._settings.limit is not None and number >= self._settings.limit:
                break
            digest.update(_as_json(question))
        if self._settings.few_shot or task.config.num_fewshot:
            for example in task.fewshot_docs():
                digest.update(_as_json(example))
        return digest.hexdigest()

    def load_model(self, **arguments: Any) -> Any:
        """Returns a checkpoint as the harness's `hf` model; arguments as for its `HFLM`."""
        from lm_eval.models.huggingface import HFLM

        with quiet_harness():
            return HFLM(**arguments)

    def measure(
        self,
        language_model: Any,
        name: str | None = None,
        *,
        bootstraps: int = 1000,
        show_progress: bool = False,
    ) -> Figures:
        """Returns the figures of one task, or of all.

        Args:
            language_model: an `lm_eval.api.model.LM`.
            name: of the task or group; None for all of them.
            bootstraps: resamples for the standard error of metrics that have no formula for it.
            show_progress: whether to show the harness's progress bars.
        """
        # Not `simple_evaluate`, which also runs git and pip to describe the machine.
        from lm_eval.evaluator import evaluate

        specs = [spec for each in ([name] if name else self._specs) for spec in self._specs[each]]
        with quiet_harness(show_progress=show_progress), _harness_seeds():
            results = evaluate(
                lm=language_model,
                task_dict=self._manager.load(specs),
                limit=self._settings.limit,
                bootstrap_iters=bootstraps,
                log_samples=False,
            )
        return _figures_of(results)


def _manager_of(manager_class: Any, settings: TaskSettings) -> Any:
    """Returns the index of all tasks; only of the own folder, which is faster, if that has all.

    Raises:
        DataError: the folder of own tasks does not exist.
        RecipeError: there is no such task.
    """
    include = short_path(settings.include) if settings.include else None
    if include and not Path(include).is_dir():
        raise no_task_folder(include)
    if include:
        manager = manager_class(include_path=include, include_defaults=False)
        if set(settings.names) <= set(manager.all_subtasks):
            return manager
    manager = manager_class(include_path=include)
    problems = [
        f"task {name}: the harness has no such task"
        f"{did_you_mean(name, manager.all_tasks) or '; `lm_eval ls tasks` lists them'}"
        for name in settings.names
        if name not in manager.all_tasks
    ]
    if problems:
        raise RecipeError(problems)
    return manager


def _figures_of(results: dict[str, Any]) -> Figures:
    figures: Figures = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, task_filter = key.partition(",")
            if not comma or not isinstance(value, int | float):
                continue
            name, is_error = metric.removesuffix(stderr_name("")), is_stderr(metric)
            name = f"{task}/{name}" if task_filter == "none" else f"{task}/{name},{task_filter}"
            figures[stderr_name(name) if is_error else name] = float(value)
    return figures


def _as_json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, default=str).encode()


@contextlib.contextmanager
def _harness_seeds() -> Iterator[None]:
    """Seeds all random numbers as the harness's own command does, and restores them at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            random.seed(0)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def quiet_harness(*, show_progress: bool = False) -> Iterator[None]:
    """Keeps the harness from writing to the terminal, and from starting processes."""
    from tqdm import tqdm

    import_module("huggingface_hub.utils.logging")  # which sets its level: it is restored below
    # It would fork processes for standard errors, which hang if this one has threads that compute.
    processes = os.environ.get(_NO_PROCESSES)
    os.environ[_NO_PROCESSES] = "1"
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    show = tqdm.__init__

    def hide(bar: Any, *arguments: Any, **settings: Any) -> None:
        show(bar, *arguments, **settings | {"disable": True})

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            tqdm.__init__ = show if show_progress else hide
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            tqdm.__init__ = show
            os.environ.pop(_NO_PROCESSES)
            if processes is not None:
                os.environ[_NO_PROCESSES] = processes
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
