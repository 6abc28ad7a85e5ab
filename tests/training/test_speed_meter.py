import io
import time

import pytest
import torch
from rich.console import Console

from rewarm.estimates.throughput import peak_flops
from rewarm.training.progress_line import ProgressLine
from rewarm.training.speed_meter import SpeedMeter


def test_peaks_are_found_by_the_devices_own_name():
    assert peak_flops("NVIDIA H200") == 989.4e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("cpu") is None


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


def test_a_terminal_shows_a_bar_with_loss_rate_speed_and_time_left():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with ProgressLine(steps=40, done=10, console=console) as screen:
        numbers = {"loss": 2.5, "lr": 3e-4, "tokens_per_second": 1234.5, "mfu": None}
        screen.trained(20, numbers)
        screen.evaluated(20, {"upstream": 2.0}, {"upstream": 1.5})
        screen._bar.refresh()
    text = shown.getvalue()
    for part in ("20/40", "loss 2.5000", "lr 3.000e-04", "tokens/s", "left", "(+0.5000)"):
        assert part in text


def test_elsewhere_there_are_plain_lines(capsys):
    with ProgressLine(steps=40, done=0) as screen:
        screen.trained(20, {"loss": 2.5, "lr": 3e-4, "tokens_per_second": 1234.5, "mfu": 0.4})
    said = capsys.readouterr().err
    assert said == "step 20/40  loss 2.5000  lr 3.000e-04  1,234 tokens/s  mfu 40.0%\n"
