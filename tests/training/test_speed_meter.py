"""Tokens per second and MFU, without the time that other work took."""

import time

import pytest
import torch

from rewarm.training.speed_meter import SpeedMeter


def test_pauses_do_not_count():
    meter = SpeedMeter(flops_per_token=10, peak=1e6)
    meter.count(1000)
    with meter.paused(torch.device("cpu")):
        time.sleep(0.3)
    time.sleep(0.05)
    read = meter.read()
    assert 1000 / 0.2 < read["tokens_per_second"] < 1000 / 0.05
    assert read["mfu"] == pytest.approx(read["tokens_per_second"] * 10 / 1e6, rel=1e-2)
    assert SpeedMeter(flops_per_token=10, peak=None).read()["mfu"] is None


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0]` is the time."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_readings_by_hand(clock):
    meter = SpeedMeter(flops_per_token=10, peak=1e4)
    for _ in range(4):
        meter.count(500)
    with meter.waiting():
        clock[0] += 2
    with meter.paused(torch.device("cpu")):
        clock[0] += 50
    clock[0] += 6
    meter.add_stall(0.25)
    assert meter.read() == {
        "tokens_per_second": 250.0,  # 2,000 tokens in 2 + 6 seconds
        "mfu": 0.25,
        "data_wait": 0.25,
        "save_stall": 0.25,
    }
    assert meter.step_seconds == 2.0
    clock[0] += 1
    assert meter.read() == {
        "tokens_per_second": 0.0, "mfu": 0.0, "data_wait": 0.0, "save_stall": 0.0,
    }  # fmt: skip
    assert meter.step_seconds == 2.0  # no step since
