"""`rewarm train --gpus N`: processes that the elastic launcher starts, their signals and codes."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from rewarm_process import RewarmProcess
from training_runs import metrics

from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.cli.launcher import count_processes
from rewarm.cli.worker_process import is_worker
from rewarm.errors import RecipeError


def test_a_run_has_a_process_for_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [count_processes(gpus) for gpus in (None, "all", "1", "3", "4")] == [4, 4, 1, 3, 4]
    with pytest.raises(RecipeError, match=r"^--gpus 8: 4 are visible; use fewer, or see CUDA_V"):
        count_processes("8")
    for wrong in ("0", "-1", "two", "", "1.5", "²", "٢"):
        with pytest.raises(RecipeError, match="expected a number of GPUs, or all"):
            count_processes(wrong)


def test_without_a_gpu_there_is_one_process_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [count_processes(gpus) for gpus in (None, "all", "2")] == [1, 1, 2]
    with pytest.raises(RecipeError, match=r"--gpus 5000: no GPU is visible, and the CPU has cores"):
        count_processes("5000")


def test_a_process_that_a_launcher_has_started_starts_no_others(monkeypatch):
    assert not is_worker()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert is_worker()
    monkeypatch.setenv("WORLD_SIZE", "")
    assert not is_worker()


RANK_1 = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "words", "message"),
    [
        ({"WORLD_SIZE": "2"}, (), "WORLD_SIZE is set, as a launcher does, but RANK is not set"),
        ({**RANK_1, "RANK": "x"}, (), "but RANK is 'x'; start with torchrun"),
        ({**RANK_1, "RANK": "2"}, (), "but RANK 2 should be below WORLD_SIZE 2"),
        ({**RANK_1, "LOCAL_RANK": ""}, (), "but LOCAL_RANK is not set"),
        ({**RANK_1, "MASTER_PORT": ""}, (), "but MASTER_PORT is not set"),
        (RANK_1, ("--gpus", 4), "--gpus 4: torchrun or srun has started this process as one of 2"),
        (RANK_1, ("--max-restarts", 1), "--max-restarts 1: torchrun or srun has started this"),
    ],
)
def test_contradicting_launch_variables_are_refused(
    command, recipe_file, monkeypatch, variables, words, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, err = command("train", recipe_file, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_an_error_before_the_processes_have_met_is_printed_by_each(command, monkeypatch):
    for name, value in RANK_1.items():
        monkeypatch.setenv(name, value)
    code, _, err = command("train", "missing.yaml")
    assert code == 2
    assert "missing.yaml" in err


@pytest.fixture
def endless(recipe_text, tmp_path):
    """A recipe of very many steps, which is saved every 100."""
    path = tmp_path / "endless.yaml"
    text = recipe_text.replace("tokens: 20480", "tokens: 2B").replace("save: 10", "save: 100")
    path.write_text(text.replace("context: 64", "context: 64\n  max_epochs: null"))
    return path


def workers_of(process: RewarmProcess) -> list[int]:
    """The process ids of the workers: the children of a launcher that train."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    started = [int(pid) for path in children for pid in path.read_text().split()]
    return [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_ended(pids: list[int]) -> None:
    for _ in range(200):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{pids} still run")


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_a_signal_stops_all(endless, tmp_path):
    words = ("train", endless, "--gpus", 2, "--max-restarts", 1)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    # Torch keeps its cache in TMPDIR, unless a test before this one has set another folder.
    environment = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = RewarmProcess(tmp_path, *words, environment=environment)
    assert process.wait_for("step 120/")  # one checkpoint, of step 100, is complete
    first = workers_of(process)
    assert len(first) == 2
    os.kill(first[1], signal.SIGKILL)
    assert process.wait_for("restart 1: a process was lost")
    assert process.wait_for("step 240/")
    process.signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert "shared  2 processes on the CPU, all weights on each" in process.errors
    assert not any(map(is_running, first))
    assert "SIGTERM: stopped after step" in process.errors
    assert process.errors.count("start   ") == 2
    last = max(list_checkpoints(tmp_path / "run"))
    assert f"stopped after step {last}, saved in" in process.errors
    assert "nothing" not in process.output
    assert not list(temporary.iterdir())
    steps = [line["step"] for line in metrics(tmp_path / "run", "train")]
    assert steps == list(range(3, steps[-1] + 1, 3))


@pytest.mark.slow
def test_processes_end_with_their_launcher_and_a_kill_is_named(endless, tmp_path):
    process = RewarmProcess(tmp_path, "train", endless, "--gpus", 2)
    assert process.wait_for("step 3/")
    workers = workers_of(process)
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_until_ended(workers)
    process = RewarmProcess(tmp_path, "train", endless, "--gpus", 2, "--resume")
    assert process.wait_for("step 6/")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(60) == 1
    assert "rank 0 was killed (SIGKILL), by the system for want of memory" in process.errors


def test_a_wrong_recipe_ends_the_launcher_with_its_exit_code(endless, tmp_path):
    words = ("train", endless, "--gpus", 3, "--set", "parallel.shard=2", "--max-restarts", 5)
    process = RewarmProcess(tmp_path, *words)
    assert process.wait(60) == 2
    assert process.errors.startswith("parallel.shard: 2 does not divide 3 GPUs")
    assert process.errors.count("parallel.shard") == 1
    assert not workers_of(process)
