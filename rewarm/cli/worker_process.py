"""What this process is to a run in several processes; without PyTorch."""

from __future__ import annotations

import os
import sys

from rewarm.errors import RecipeError


def is_worker() -> bool:
    """Returns whether a launcher has started this process: rewarm's own, torchrun, or srun."""
    return bool(os.environ.get("WORLD_SIZE"))


def is_first() -> bool:
    """Returns whether this process speaks for all: the first of a run, or the only one."""
    return not is_worker() or os.environ.get("RANK", "0") == "0"


def check_launch_variables() -> None:
    """Checks the environment variables by which a launcher tells a process its part in a run.

    Raises:
        RecipeError: one is missing or is not a number, or they contradict each other.
    """
    ranks = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        value = os.environ.get(name, "0" if name == "LOCAL_RANK" else "")
        if not (value.isascii() and value.isdecimal()):
            raise _wrong_variables(f"{name} is {value!r}" if value else f"{name} is not set")
        ranks[name] = int(value)
    if ranks["RANK"] >= ranks["WORLD_SIZE"]:
        raise _wrong_variables("RANK {RANK} should be below WORLD_SIZE {WORLD_SIZE}", **ranks)
    if ranks["WORLD_SIZE"] > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise _wrong_variables(f"{name} is not set")


def _wrong_variables(problem: str, **ranks: int) -> RecipeError:
    return RecipeError(
        [
            f"WORLD_SIZE is set, as a launcher does, but {problem.format(**ranks)}; start with "
            "torchrun or as docs/multi-gpu.md says, or unset WORLD_SIZE, RANK and LOCAL_RANK"
        ]
    )


def check_launcher_decides(gpus: str | None, max_restarts: int) -> None:
    """Checks that options of rewarm's own launcher do not contradict another one.

    Raises:
        RecipeError: `--gpus` is not the number of processes on this machine, or restarts are asked
            for, which only the launcher can do.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"]
    for option, value in (("--gpus", gpus), ("--max-restarts", str(max_restarts))):
        if value not in (None, "0", "all", local if option == "--gpus" else None):
            raise RecipeError(
                [
                    f"{option} {value}: torchrun or srun has started this process as one of {local}"
                    f" on this machine, and decides that; leave {option} out, or unset WORLD_SIZE, "
                    "RANK and LOCAL_RANK"
                ]
            )


def has_ended_alone() -> bool:
    """Returns whether this process has left a run without an agreement with the others.

    Its process group is still open then.
    """
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


def has_ended_together() -> bool:
    """Returns whether this process has left a run in agreement with all others of it."""
    agreement = sys.modules.get("rewarm.training.host_agreement")
    return bool(agreement and agreement.AgreeingProcesses.have_ended_together)
