"""The number of CPU threads of a study's runs: fixed at its first start, and recorded."""

import os

import pytest

from rewarm.errors import CheckpointError
from rewarm.study.worker_threads import fix_threads


@pytest.fixture(autouse=True)
def _six_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))


def test_cores_are_divided_at_the_first_start_only(tmp_path):
    study = tmp_path / "runs" / "study"
    assert fix_threads(study, 2) == (3, "3 for each run (6 cores, workers: 2)")
    path = study / "cpu-threads.json"
    assert path.read_text() == '{"cpu_threads": 3}\n'
    earlier = f"3 for each run (as when the study first started: {path}"
    assert fix_threads(study, 1) == (3, f"{earlier})")
    assert fix_threads(study, 4) == (3, f"{earlier}; more than the 6 cores: use fewer workers)")
    assert fix_threads(tmp_path / "other", 8).per_run == 1


def test_another_number_in_the_environment_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert fix_threads(tmp_path, 1) == (2, "2 for each run (OMP_NUM_THREADS)")
    assert fix_threads(tmp_path, 1) == (2, "2 for each run (OMP_NUM_THREADS)")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    threads, note = fix_threads(tmp_path, 1)
    assert threads == 4
    assert note.startswith("warning: 4 for each run now (OMP_NUM_THREADS), 2 when the study first ")
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # of nested loops: not a number for a whole run
    assert fix_threads(tmp_path, 1).per_run == 2


@pytest.mark.parametrize("text", ["", "{}", '{"cpu_threads": 0}', "[1]"])
def test_a_damaged_record_is_an_error(tmp_path, text):
    (tmp_path / "cpu-threads.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cpu-threads.json: cannot be read: .*; restore"):
        fix_threads(tmp_path, 1)
