"""A study that is really run: processes, locks, kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EVERY = "every: {log: 10, evaluate: 50, save: 20}"


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


def learnt(path):
    """Every last checkpoint's weights."""
    root = path.parent / "study"
    found = sorted(root.glob("*/17/checkpoints/step-*/model.safetensors"))
    return {one.parts[-5]: one.read_bytes() for one in found}


def test_a_study_runs_whole_and_then_not_again(study, command):
    code, out, err = command("compare", study)
    assert code == 0, err
    assert err.split("\n")[-2] == "constant/17  done"
    assert "undecided" in out
    assert "(one seed has no interval)" in out
    assert "seed 17: the same tokens for rewarm, constant" in out
    assert "front     downstream: " in out
    assert "front     upstream: " not in out
    found = results(study)
    assert found["batches"] == {"17": [["rewarm", "constant"]]}
    final = found["arms"]["constant"]["over seeds"]["upstream"]["final"]
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
    assert "is complete, by another recipe: schedule.lr: 0.001 → 0.002" in err


def test_a_run_that_fails_does_not_stop_the_rest(study, command):
    text = study.read_text()
    broken = "  broken: {data.train.downstream.shards: nowhere}\n"
    study.write_text(text.replace("arms:\n", f"arms:\n{broken}"))
    code, out, err = command("compare", study)
    assert code == 3
    assert "1 of 4 runs failed, the others are done:" in err
    assert "broken/17: error: nowhere: no such folder" in err
    assert "constant/17  done" in err
    assert "rewarm" in out


def at_work(study):
    """The processes that train something of a study."""
    root = str(study.parent / "study").encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:  # it is gone
            continue
        if root in words and b"train" in words:
            yield int(folder.name)


def wait_for_the_middle(study, process):
    """Waits until a run of a study has trained and is not done."""
    while process.poll() is None:
        for metrics in study.parent.glob("study/**/metrics.jsonl"):
            log = metrics.parent.with_name(metrics.parent.name + ".log").read_text()
            if "\nstep 30/" in log and "\nstep 150/" not in log:
                return
        time.sleep(0.005)
    pytest.fail("it was done before")


def test_killed_thrice_and_gone_on_with_by_two_workers_it_ends_the_same(
    study, command, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of which the last bits depend
    for file in (study.parent / "base.yaml", study.parent / "arm.yaml"):
        text = file.read_text().replace("lanes: 2", "lanes: 2\n  max_epochs: null")
        text = re.sub("^tokens: .*", "tokens: 153_600", text, flags=re.M)
        file.write_text(re.sub("^every: .*", EVERY, text, flags=re.M))
    code, _, err = command("compare", study)
    assert code == 0, err
    whole, said = learnt(study), results(study)
    (study.parent / "study").rename(study.parent / "whole")
    words = [sys.executable, "-m", "rewarm", "compare", str(study), "--workers", "2"]
    for everything in (True, False, True):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for_the_middle(study, process)
        process.kill()
        process.wait()
        if everything:  # else what it started goes on, and keeps its lock
            for one in at_work(study):
                os.kill(one, signal.SIGKILL)
    others = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(timeout=300) for one in others] == [0, 0]
    assert learnt(study) == whole
    assert results(study) == said  # figures, digests, verdicts
    for arm in ("rewarm", "constant"):
        log = (study.parent / "study" / arm / "17.log").read_text()
        assert log.count("step 150/150") == 1  # no arm twice
