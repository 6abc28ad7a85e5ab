"""Signals and time limits end a run, saved; a second signal ends a process that is stuck."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hanging_reads import hanging_at
from http_folder import FaultyServer, serve
from rewarm_process import RewarmProcess
from training_runs import metrics, recipe_with, run, signal_in_step, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint, list_checkpoints
from rewarm.checkpoints.training_state import read_training_state
from rewarm.data.corpus import Corpus
from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.errors import Preempted
from rewarm.recipe.recipe import load_recipe
from rewarm.study.stale_runs import is_complete
from rewarm.training import loop, run_evaluations
from rewarm.training.loop import train
from rewarm.training.preemption import StopRequests

STUCK = """
import contextlib, hashlib, sys, threading
from rewarm.training.preemption import StopRequests
with StopRequests() as requests:
    with requests.while_starting() if "starting" in sys.argv else contextlib.nullcontext():
        threading.Timer(0.3, lambda: print("ready", flush=True)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C: no handler is called
"""


@pytest.fixture(scope="module")
def warm_process(trained_run, tmp_path_factory):
    """Trains a step in this process, after which a start is short."""
    run((trained_run / "recipe.yaml").read_text(), tmp_path_factory.mktemp("warm"), tokens=1024)


def assert_resumes_as(expected, recipe_text, directory):
    """Resumes a run, and checks that it becomes the uninterrupted one, each checkpoint of it."""
    run(recipe_text, directory, resume=True)
    assert metrics(directory) == metrics(expected)
    checkpoints = list_checkpoints(directory)
    for step, checkpoint in list_checkpoints(expected).items():
        if step in checkpoints:
            assert trained_files(checkpoints[step]) == trained_files(checkpoint)
    assert max(checkpoints) == 20


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75), (signal.SIGXCPU, 75)],
)
def test_a_signal_saves_and_exits_with_its_own_code(recipe_text, tmp_path, number, code):
    path = tmp_path / "recipe.yaml"
    endless = recipe_text.replace("tokens: 20480\n", "tokens: 10M\n")
    path.write_text(endless.replace("lanes: 2\n", "lanes: 2\n  max_epochs: null\n"))
    process = RewarmProcess(tmp_path, "train", path)
    assert process.wait_for("\nstep 3/"), "ended before step 3"
    process.signal(number)
    assert process.wait() == code
    name = signal.Signals(number).name
    again = "; again to quit without saving" if number in (signal.SIGTERM, signal.SIGINT) else ""
    receipt, message = process.errors.splitlines()[-2:]  # a stop that was asked for is no error
    assert receipt == f"{name}: saving after this step{again}"
    assert message.startswith(f"{name}: stopped after step ")
    assert message.endswith("; continue with the same command and --resume")
    assert read_training_state(last_checkpoint(tmp_path / "run")).step >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_that_is_stuck(number):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            for _ in range(2):  # a closed terminal, a CPU limit: they repeat by themselves
                process.send_signal(signal.SIGHUP)
                process.send_signal(signal.SIGXCPU)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=0.3)
            process.send_signal(number)
            process.send_signal(signal.SIGUSR1)  # a launcher's copy of the same request
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            process.send_signal(number)
            assert process.wait(timeout=5) == 128 + number
            name = signal.Signals(number).name
            assert process.stderr.read() == f"{name} again: stopped without saving\n"
        finally:
            process.kill()


@pytest.mark.usefixtures("warm_process")
def test_a_time_limit_saves_and_exits(recipe_file, tmp_path):
    overrides = ["tokens=20M", "data.max_epochs=null"]
    recipe = load_recipe(recipe_file, overrides)
    started = time.monotonic()
    with pytest.raises(Preempted, match=r"time limit: stopped after step \d+, saved in") as error:
        train(recipe, deadline=started + 6)
    assert error.value.exit_code == 75
    assert time.monotonic() - started < 6
    assert last_checkpoint(Path(recipe.run))


def test_a_hangup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            requests.check(0.0)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_closed_terminal_saves_and_exits(recipe_text, tmp_path):
    path = tmp_path / "recipe.yaml"
    endless = recipe_text.replace("tokens: 20480\n", "tokens: 10M\n")
    path.write_text(endless.replace("lanes: 2\n", "lanes: 2\n  max_epochs: null\n"))
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-m", "rewarm", "train", str(path)])
    written = tmp_path / "run" / "metrics.jsonl"
    while not (written.exists() and '"train"' in written.read_text()):
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    assert read_training_state(last_checkpoint(tmp_path / "run")).step >= 3


@pytest.mark.slow
def test_signals_that_come_again_while_the_process_exits_keep_its_exit_code(recipe_text, tmp_path):
    path = tmp_path / "recipe.yaml"
    endless = recipe_text.replace("tokens: 20480\n", "tokens: 10M\n")
    path.write_text(endless.replace("lanes: 2\n", "lanes: 2\n  max_epochs: null\n"))
    command = [sys.executable, "-m", "rewarm", "train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while b"step 3/" not in process.stderr.readline():
            assert process.poll() is None
        while process.poll() is None:  # also while Python ends
            for number in (signal.SIGHUP, signal.SIGXCPU):
                process.send_signal(number)
                time.sleep(0.02)
    assert process.returncode == 75


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_the_wait_for_data(recipe_text, tmp_path, trained_run, monkeypatch, workers):
    settings = {"data__workers": workers}
    with hanging_at(monkeypatch, Corpus, "block", 16 * 12) as read:
        read.signal_when_hanging(signal.SIGTERM)
        with pytest.raises(Preempted, match=r"SIGTERM: stopped after step \d+, saved in"):
            run(recipe_text, tmp_path / "run", **settings)
        assert time.monotonic() - read.signalled_at < 10  # the read hangs for 60
    assert read_training_state(last_checkpoint(tmp_path / "run")).step >= 7
    assert_resumes_as(trained_run, recipe_text, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_process")
def test_a_time_limit_ends_the_wait_for_data(recipe_text, tmp_path, monkeypatch):
    recipe = recipe_with(recipe_text, tmp_path / "run")
    with hanging_at(monkeypatch, Corpus, "block", 16 * 12):
        deadline = time.monotonic() + 8
        with pytest.raises(Preempted, match=r"time limit: stopped after step \d+, saved in"):
            train(recipe, deadline=deadline)
        assert time.monotonic() < deadline
    assert read_training_state(last_checkpoint(tmp_path / "run")).step >= 7


def test_a_process_exits_although_its_reads_hang(recipe_text, tmp_path, corpora):
    folder = corpora / "upstream" / "train"
    upstream = Corpus("upstream", ShardSource(str(folder)), context=64, seed=5, lanes=2)
    shards = list(dict.fromkeys(upstream.shard_of_block(n) for n in range(96)))
    with serve(folder) as url:
        FaultyServer.faults[shards[-1]] = ["hang"]
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe_text.replace(f"{corpora}/upstream/train", url))
        environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        process = RewarmProcess(tmp_path, "train", path, environment=environment)
        assert process.wait_for("\nstep 3/"), process.errors
        while shards[-1] not in FaultyServer.requests:
            time.sleep(0.01)
        time.sleep(1)  # what was read ahead is used
        process.signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert process.wait(timeout=30) == 75, process.errors
        assert time.monotonic() - signalled_at < 5
    assert "SIGTERM: stopped after step" in process.errors
    assert last_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("step", [5, 10, 20])
def test_a_stopped_evaluation_is_repeated_on_resume(
    recipe_text, tmp_path, trained_run, monkeypatch, step
):
    # Each evaluation reads two sets, so the second set of the evaluation at step 5 is the fourth.
    with hanging_at(monkeypatch, StoredBlocks, "__iter__", 2 * (step // 5) + 2) as read:
        read.signal_when_hanging(signal.SIGTERM, after=0)
        message = f"SIGTERM: stopped after step {step}, .*its evaluation was stopped"
        with pytest.raises(Preempted, match=message):
            run(recipe_text, tmp_path / "run")
        assert time.monotonic() - read.signalled_at < 10  # the read hangs for 60
    assert max(list_checkpoints(tmp_path / "run")) == step
    assert metrics(tmp_path / "run", "evaluate")[-1]["step"] == step - 5
    assert not is_complete(recipe_with(recipe_text, tmp_path / "run"))
    assert_resumes_as(trained_run, recipe_text, tmp_path / "run")
    assert is_complete(recipe_with(recipe_text, tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_an_evaluation_stops_between_its_microbatches(recipe_text, tmp_path, monkeypatch):
    read_blocks, blocks_read = StoredBlocks.__iter__, []

    def read_and_signal(blocks):
        for block in read_blocks(blocks):
            blocks_read.append(block)
            if len(blocks_read) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            yield block

    monkeypatch.setattr(StoredBlocks, "__iter__", read_and_signal)
    settings = {"batch": "{tokens: 1024, microbatch: 1}"}
    with pytest.raises(Preempted, match="SIGTERM: stopped before step 1; nothing was trained"):
        run(recipe_text, tmp_path / "run", **settings)
    assert len(blocks_read) < 8
    assert not list_checkpoints(tmp_path / "run")
    monkeypatch.undo()
    run(recipe_text, tmp_path / "run", tokens=1024, **settings)
    assert [line["step"] for line in metrics(tmp_path / "run", "evaluate")] == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_process")
def test_a_time_limit_counts_the_next_evaluation(recipe_text, tmp_path, monkeypatch):
    """The first evaluation takes 5 s, and step 5 has the next one: there is time for step 4."""
    measure_losses = run_evaluations.measure_losses

    def measure_slowly(*args, **kwargs):
        time.sleep(5)
        return measure_losses(*args, **kwargs)

    monkeypatch.setattr(run_evaluations, "measure_losses", measure_slowly)
    signal_in_step(monkeypatch, 19)  # nothing that takes long: the run is not to get that far
    recipe = recipe_with(recipe_text, tmp_path / "run")
    with pytest.raises(Preempted, match="time limit: stopped after step 4, saved in"):
        train(recipe, deadline=time.monotonic() + 9)


def test_a_signal_ends_a_start_at_once(recipe_file, tmp_path, monkeypatch):
    def wait_for_storage(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(loop, "resolve", wait_for_storage)
    started = time.monotonic()
    with pytest.raises(Preempted, match="SIGTERM: stopped before the first step; nothing new"):
        train(load_recipe(recipe_file))
    assert time.monotonic() - started < 10  # the storage hangs for 60
    assert not (tmp_path / "run").exists()


def test_a_time_limit_ends_a_start(recipe_file, monkeypatch):
    monkeypatch.setattr(loop, "resolve", lambda *_, **__: time.sleep(60))
    deadline = time.monotonic() + 2
    with pytest.raises(Preempted, match="time limit: stopped before the first step") as error:
        train(load_recipe(recipe_file), deadline=deadline)
    assert time.monotonic() < deadline
    assert error.value.exit_code == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_start_that_hangs_in_c_is_ended_too(number, code):
    command = [sys.executable, "-c", STUCK, "starting"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(timeout=30) == code
            assert b"stopped before the first step" in process.stderr.read()
        finally:
            process.kill()
