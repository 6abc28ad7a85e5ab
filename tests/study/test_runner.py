"""A study that really runs: processes, locks, kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.errors import CheckpointError
from rewarm.study.runner import StudyRunner
from rewarm.study.stale_runs import is_complete
from rewarm.study.study_file import load_study

FREQUENT_SAVES = "every: {log: 10, evaluate: 50, save: 20}"


@pytest.fixture
def study(recipe_text, tmp_path):
    """A base of 10 steps, and two arms of 5 that start from it."""
    (tmp_path / "base.yaml").write_text(recipe_text.replace("tokens: 20480", "tokens: 10240"))
    arm = recipe_text.replace("tokens: 20480", "tokens: 5120").replace("evaluate: 5", "evaluate: 1")
    model = arm[arm.index("model:") : arm.index("data:")]
    root = tmp_path / "study"
    arm = arm.replace(model, f"model: {{base: {root}/bases/up}}\n")
    (tmp_path / "arm.yaml").write_text(arm)
    path = tmp_path / "study.yaml"
    path.write_text(f"""\
study: {root}
recipe: arm.yaml
bases: {{up: base.yaml}}
arms:
  rewarm:
  constant: {{schedule: {{name: constant, lr: base}}}}
claims:
  constant forgets less: forgetting(upstream, constant) < forgetting(upstream, rewarm)
""")
    return path


def results(path):
    return json.loads((path.parent / "study" / "results.json").read_text())


def last_weights(path):
    """The last checkpoint's weights of every arm."""
    root = path.parent / "study"
    weights = sorted(root.glob("*/17/checkpoints/step-*/model.safetensors"))
    return {file.parts[-5]: file.read_bytes() for file in weights}


@pytest.mark.slow
def test_a_study_runs_completely_and_only_once(study, command):
    code, out, err = command("compare", study)
    assert code == 0, err
    assert err.split("\n")[-2].startswith("constant/17  done  loss ")
    assert "undecided" in out
    assert "a single seed gives no interval" in out
    assert "seed 17: the same tokens for rewarm, constant" in out
    assert (
        len(re.findall(r"^front .*: the Pareto front of upstream and downstream", out, re.M)) == 1
    )
    content = results(study)
    assert content["batches"] == {"17": [["rewarm", "constant"]]}
    final = content["arms"]["constant"]["over seeds"]["upstream"]["final"]
    assert final["seeds"] == 1
    metrics = (study.parent / "study" / "constant" / "17" / "metrics.jsonl").read_text()
    assert json.loads(metrics.splitlines()[-1])["upstream/loss"] == final["mean"]
    before = {path: path.stat().st_mtime_ns for path in study.parent.glob("study/*/17/**/*")}
    code, again, err = command("compare", study)
    assert (code, again) == (0, out)
    assert "running" not in err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    code, _, err = command("compare", study, "--set", "arms.constant.schedule.lr=2e-3")
    assert code == 3
    assert "constant/17" in err
    assert "schedule.lr: 0.001 → 0.002" in err
    changed = load_study(study, ["arms.constant.schedule.lr=2e-3"]).runs_of("constant")[0]
    expected = "stale: already complete, but by another recipe: schedule.lr: 0.001 → 0.002"
    with pytest.raises(CheckpointError, match=expected):
        is_complete(changed.recipe)


def test_a_resumed_run_shows_no_speed_of_its_earlier_start(study):
    runner = StudyRunner(load_study(study))
    job = runner._jobs[1]
    job.run.directory.mkdir(parents=True)
    metrics = job.run.directory / "metrics.jsonl"
    line = {"kind": "train", "step": 2, "tokens": 9, "loss": 3.5, "tokens_per_second": 1024.0}
    metrics.write_text(f"{json.dumps(line)}\n")
    job.state, job.step_at_start = "running", 2
    status = runner._status(job)
    assert (status.step, status.loss) == (2, 3.5)
    assert (status.tokens_per_second, status.seconds_left) == (None, None)
    with metrics.open("a") as file:
        file.write(f"{json.dumps({**line, 'step': 3})}\n")
    status = runner._status(job)
    assert (status.step, status.tokens_per_second, status.seconds_left) == (3, 1024.0, 2.0)


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(study, command):
    text = study.read_text()
    diverging = "  diverging: {schedule: {name: constant, lr: 1e+30}}\n"
    study.write_text(text.replace("arms:\n", f"arms:\n{diverging}"))
    code, out, err = command("compare", study)
    assert code == 3
    assert "1 of 4 runs failed, the others are done:" in err
    assert re.search(r"diverging/17: error: .*: steps 2 to 4 were not finite", err)
    assert "constant/17  done" in err
    assert "rewarm" in out


@pytest.mark.slow
def test_each_worker_gives_its_gpus_to_its_runs(study, command, monkeypatch):
    """The CPU build of PyTorch finds no GPU; what the runs see is in their processes."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    environments = []
    popen = subprocess.Popen

    def start(*arguments, env, **options):
        environments.append(env["CUDA_VISIBLE_DEVICES"])
        return popen(*arguments, env=env, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    code, _, err = command("compare", study, "--workers", 2)
    assert code == 0, err
    assert "GPUs      2 for each of 2 workers: 4,5 | 6,7; not used: 8\n" in err
    assert len(environments) == 3
    assert set(environments) == {"4,5", "6,7"}
    assert re.search(r"^constant/17  running on GPU (4,5|6,7)$", err, re.M)


def training_processes(study):
    """The ids of the processes that train a run of a study."""
    root = str(study.parent / "study").encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if root in arguments and b"train" in arguments:
            yield int(folder.name)


def wait_until_a_run_is_halfway(study, process):
    """Waits until a run of a study has trained and is not done."""
    while process.poll() is None:
        for metrics in study.parent.glob("study/**/metrics.jsonl"):
            log = metrics.parent.with_name(metrics.parent.name + ".log").read_text()
            if "\nstep 30/" in log and "\nstep 150/" not in log:
                return
        time.sleep(0.005)
    pytest.fail("the study ended before it could be killed")


@pytest.mark.slow
def test_a_study_killed_twice_and_resumed_by_two_workers_ends_the_same(study, command, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the last bits depend on it
    for file in (study.parent / "base.yaml", study.parent / "arm.yaml"):
        text = file.read_text().replace("lanes: 2", "lanes: 2\n  max_epochs: null")
        text = re.sub("^tokens: .*", "tokens: 153_600", text, flags=re.M)
        file.write_text(re.sub("^every: .*", FREQUENT_SAVES, text, flags=re.M))
    code, _, err = command("compare", study)
    assert code == 0, err
    expected_weights, expected_results = last_weights(study), results(study)
    (study.parent / "study").rename(study.parent / "uninterrupted")
    arguments = [sys.executable, "-m", "rewarm", "compare", str(study), "--workers", "2"]
    for kill_the_runs in (True, False):
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_until_a_run_is_halfway(study, process)
        process.kill()
        process.wait()
        if kill_the_runs:  # otherwise they continue, and keep their locks
            for process_id in training_processes(study):
                os.kill(process_id, signal.SIGKILL)
    processes = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert last_weights(study) == expected_weights
    assert results(study) == expected_results  # metrics, digests, verdicts
    for arm in ("rewarm", "constant"):
        log = (study.parent / "study" / arm / "17.log").read_text()
        assert log.count("step 150/150") == 1  # no arm ran twice


@pytest.mark.slow
def test_a_closed_terminal_saves_every_run_and_leaves_none_behind(study):
    arm = study.parent / "arm.yaml"
    text = arm.read_text().replace("lanes: 2", "lanes: 2\n  max_epochs: null")
    arm.write_text(re.sub("^tokens: .*", "tokens: 20M", text, flags=re.M))
    arguments = [sys.executable, "-m", "rewarm", "compare", str(study), "--workers", "2"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True) as process:
        logs = [study.parent / "study" / arm / "17.log" for arm in ("rewarm", "constant")]
        while not all(log.exists() and "\nstep 3/" in log.read_text() for log in logs):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 75
        assert "SIGHUP: stopped, everything saved" in process.stderr.read().decode()
    assert not list(training_processes(study))
    for log in logs:
        assert re.search(r"SIGTERM: stopped after step \d+, saved in", log.read_text())
