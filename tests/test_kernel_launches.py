"""The kernels that a step launches on a Hopper GPU: an unintended pass over memory fails here."""

import re
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

import pytest
from repository import ROOT

SCRIPT = ROOT / "benchmarks" / "kernel_launches.py"
TOKENS, HIDDEN, INNER = 16 * 2048, 1024, 4096
STREAM = 2 * TOKENS * HIDDEN / 1e6  # MB of the residual stream
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed"),
]


class Launch(NamedTuple):
    where: str
    family: str
    name: str
    mb: float
    gflop: float


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Returns what a layer of Pythia-410M launches, and all of the output."""
    cache = tmp_path_factory.mktemp("triton")

    def run(precision, memory):
        ended = subprocess.run(
            [sys.executable, SCRIPT, "--precision", precision, "--memory", memory, "--list"],
            env={"TRITON_CACHE_DIR": str(cache), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        pattern = r"^\| (forward|backward) \| (.+?) \| (.+?) \| ([\d.]+) \| ([\d.]+) \|"
        rows = re.findall(pattern, ended.stdout, re.MULTILINE)
        return [Launch(*row[:3], float(row[3]), float(row[4])) for row in rows], ended.stdout

    return run


def passes(rows):
    """Inductor's own passes over something as large as the residual stream: direction and MB."""
    fused = [launch for launch in rows if launch.family == "casts, sums, residual"]
    return [(launch.where, launch.mb) for launch in fused if launch.mb > STREAM / 2]


def counted(rows, family):
    """The numbers of launches of a family in the forward and in the backward pass."""
    directions = [launch.where for launch in rows if launch.family == family]
    return directions.count("forward"), directions.count("backward")


def test_bf16_layer_makes_one_extra_pass_per_direction_and_no_copy(launched):
    rows, output = launched("bf16", "fast")
    # Adds both branches to the residual stream; sums the gradient for both biases at once.
    assert passes(rows) == [
        ("forward", pytest.approx(4 * STREAM, rel=0.01)),
        ("backward", pytest.approx(STREAM, rel=0.01)),
    ]
    for family, times in {
        "norms": (1, 1),
        "GELU": (1, 1),
        "rotary": (1, 1),
        "matmuls": (4, 8),
    }.items():
        assert counted(rows, family) == times
    # By hand: one layer's four matmuls take 2 FLOPs per parameter and token forward, 4 backward.
    flops = sum(launch.gflop for launch in rows if launch.family == "matmuls")
    assert flops == pytest.approx(6 * HIDDEN * (4 * HIDDEN + 2 * INNER) * TOKENS / 1e9, rel=1e-3)
    assert "| matmuls | 93.0 |" in output  # as measured on an H100: see the script's docstring


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_fp8_layer_compiles_and_rounds_each_tensor_once(launched, memory):
    rows, _ = launched("fp8", memory)
    # memory: lean recomputes the matmul that widens to the MLP.
    assert counted(rows, "matmuls") == (4, 9 if memory == "lean" else 8)
    assert not [launch for launch in rows if "clone" in launch.name and launch.mb > 1]
    assert [direction for direction, _ in passes(rows)] == ["forward", "backward"]
    if memory == "fast":
        # Forward: four weights, both norms' outputs, attention's output; backward: the gradient of
        # the residual stream, for each of the two matmuls that write to it.
        assert counted(rows, "rounding to fp8") == (7, 2)
