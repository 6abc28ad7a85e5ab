"""The states of a study's runs, with shell scripts instead of training processes."""

import subprocess

import pytest
from loss_histories import outcome

from rewarm.errors import CheckpointError
from rewarm.study import job, runner
from rewarm.study.runner import StudyRunner
from rewarm.study.study_file import load_study
from rewarm.study.worker_gpus import divide_gpus

COMPLETE = "touch $RUN.complete"


@pytest.fixture
def plan(tmp_path, thousand_steps):
    """Arms a, b and c."""
    (tmp_path / "recipe.yaml").write_text(thousand_steps)
    path = tmp_path / "study.yaml"
    path.write_text("study: runs\nrecipe: recipe.yaml\narms: {a: , b: , c: }\n")
    return load_study(path)


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The script of each arm; a run is complete when the file RUN.complete exists."""
    popen, chosen = subprocess.Popen, {}

    def start(command, *, env, **options):
        path = command[-2]
        script = chosen.get(path.split("/")[-2], COMPLETE)
        env = env | {"RUN": path.removesuffix(".yaml")}
        return popen(["sh", "-c", f"echo >> $RUN.starts; {script}"], env=env, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        job, "is_complete", lambda recipe: (tmp_path / f"{recipe.run}.complete").exists()
    )
    monkeypatch.setattr(job, "read_outcome", lambda _: outcome(x=[3.0, 2.0]))
    return chosen


def run_all(study_runner, workers=1):
    """Runs a study; returns its error, and the arms that are done."""
    error = ""
    try:
        study_runner.run_all(divide_gpus([], workers), lambda *_: None)
    except CheckpointError as raised:
        error = str(raised)
    return error, [arm for arm, _ in study_runner.results().outcomes]


def starts(tmp_path, arm):
    path = tmp_path / "runs" / arm / "17.starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_os_error_before_a_process_starts_fails_its_run_alone(plan, scripts, tmp_path, workers):
    (tmp_path / "runs" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "b" / "17.log").mkdir()
    (tmp_path / "runs" / "c").write_text("a file where a folder belongs")
    error, done = run_all(StudyRunner(plan), workers)
    summary, first, second = error.splitlines()
    assert summary == "2 of 3 runs failed, the others are done:"
    assert first.startswith(f"  b/17: {tmp_path}/runs/b/17.log: Is a directory; check the path")
    assert second.startswith(f"  c/17: {tmp_path}/runs/c: File exists; check the path")
    assert done == ["a"]
    (tmp_path / "runs" / "b" / "17.log").rmdir()
    (tmp_path / "runs" / "c").unlink()
    assert run_all(StudyRunner(plan), workers) == ("", ["a", "b", "c"])


def test_any_exception_fails_its_run(plan, scripts, monkeypatch):
    is_complete = job.is_complete

    def fail_for_b(recipe):
        if "/b/" in recipe.run:
            raise ZeroDivisionError("in a plug-in")
        return is_complete(recipe)

    monkeypatch.setattr(job, "is_complete", fail_for_b)
    error, done = run_all(StudyRunner(plan), 2)
    assert "  b/17: ZeroDivisionError: in a plug-in; " in error
    assert done == ["a", "c"]


def test_a_failed_run_is_started_once_by_all_processes_of_a_study(plan, scripts, tmp_path):
    scripts["a"] = "echo error: no data; exit 3"
    first, second = StudyRunner(plan), StudyRunner(plan)  # as two processes that start together
    error, done = run_all(first, 3)
    assert "  a/17: error: no data; " in error
    assert done == ["b", "c"]
    error, done = run_all(second, 3)
    assert "  a/17: in another process: error: no data; " in error
    assert done == ["b", "c"]
    assert starts(tmp_path, "a") == 1
    run_all(StudyRunner(plan))  # a later start tries again
    assert starts(tmp_path, "a") == 2
    scripts["a"] = COMPLETE
    assert run_all(StudyRunner(plan)) == ("", ["a", "b", "c"])
    assert starts(tmp_path, "b") == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -9 $$", "killed by SIGKILL (by the system, if memory ran out: see dmesg) after step "
         "0; the same command continues it"),
        ("kill -11 $$", "killed by SIGSEGV after step 0; the same command continues it"),
        ("exit 7", "ended with exit code 7 and no message"),
        ("true", "ended with exit code 0 and no message"),  # and the run is not complete
        ("echo warning; echo error: the recipe; echo '  lr'; exit 3", "error: the recipe lr"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_of_the_process_that_failed(plan, scripts, script, reason):
    scripts["a"] = "echo error: of an earlier start; exit 3"
    run_all(StudyRunner(plan))
    scripts["a"] = script
    error, _ = run_all(StudyRunner(plan))
    assert f"  a/17: {reason}; " in error


def test_a_complete_run_waits_for_its_base_to_be_compared_with_it(plan, scripts, tmp_path):
    run, base = plan.runs[0], job.Job(plan.runs[1])
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "17.complete").touch()
    waiting = job.Job(run, base)
    waiting.refresh()
    assert (waiting.state, waiting.can_start) == ("waiting", False)
    base.state = "failed"
    waiting.refresh()
    assert waiting.state == "done"  # its base cannot be compared, and its results are kept
    other = job.Job(plan.runs[2], base)
    other.refresh()
    assert (other.state, other.failure) == ("failed", "its base b/17 failed")
