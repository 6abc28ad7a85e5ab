"""Which GPUs each worker of a study uses."""

import pytest

from rewarm.study.worker_gpus import divide_gpus, visible_gpus, worker_environment


@pytest.mark.parametrize(
    ("gpus", "workers", "sets", "unused", "text"),
    [
        ("01234567", 4, ["01", "23", "45", "67"], "",
         "2 for each of 4 workers: 0,1 | 2,3 | 4,5 | 6,7"),
        ("0123", 1, ["0123"], "", "4 for the runs, one after the other: 0,1,2,3"),
        ("01234567", 3, ["01", "23", "45"], "67",
         "2 for each of 3 workers: 0,1 | 2,3 | 4,5; not used: 6,7"),
        ("01", 3, ["0", "1", "0"], "", "fewer than the 3 workers, so that several share one: "
         "0 | 1 | 0"),
        ("", 2, ["", ""], "", ""),
    ],
)  # fmt: skip
def test_workers_get_equally_many(gpus, workers, sets, unused, text):
    divided = divide_gpus(list(gpus), workers)
    assert divided.sets == [list(names) for names in sets]
    assert divided.unused == list(unused)
    assert divided.per_worker == len(sets[0])
    assert divided.as_text() == text


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        ("2,3", ["2", "3"]),
        ("GPU-8932f937, MIG-b0c1", ["GPU-8932f937", "MIG-b0c1"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),  # CUDA ignores what follows an invalid one
    ],
)
def test_visible_gpus(variable, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


def test_environment_of_a_run(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environment(["2", "5"], None)["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert "OMP_NUM_THREADS" not in worker_environment(["2", "5"], None)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment([], 3)["OMP_NUM_THREADS"] == "3"
    assert worker_environment([], None)["OMP_NUM_THREADS"] == "5"
