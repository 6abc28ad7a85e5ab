"""Numbers that the host reads some steps later from a GPU, and at once from a CPU."""

import pytest
import torch

from rewarm.training.delayed_number import MAX_STEPS_UNREAD, DelayedNumber


def test_a_cpu_has_each_number_at_once():
    numbers = DelayedNumber(torch.device("cpu"))
    assert [numbers.add(torch.tensor(float(step))) for step in range(3)] == [[0.0], [1.0], [2.0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_has_each_number_once_with_a_bounded_delay():
    numbers, busy = DelayedNumber(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    read = []
    for step in range(100):
        busy = busy @ busy
        read += numbers.add(torch.tensor(float(step), device="cuda"))
        assert step - MAX_STEPS_UNREAD <= len(read) <= step
    assert read == list(map(float, range(len(read))))
