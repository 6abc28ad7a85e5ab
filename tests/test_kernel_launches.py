"""What a step would have a Hopper GPU do: a pass over memory that nobody meant shows here."""

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
pytestmark = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")


class Launch(NamedTuple):
    where: str
    family: str
    name: str
    mb: float
    gflop: float


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Returns what a layer of Pythia-410M launches, and all that was printed."""
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
        row = r"^\| (forward|backward) \| (.+?) \| (.+?) \| ([\d.]+) \| ([\d.]+) \|"
        rows = re.findall(row, ended.stdout, re.MULTILINE)
        return [Launch(*one[:3], float(one[3]), float(one[4])) for one in rows], ended.stdout

    return run


def passes(rows):
    """Inductor's own passes over something as large as the stream: direction and MB."""
    own = [one for one in rows if one.family == "casts, sums, residual"]
    return [(one.where, one.mb) for one in own if one.mb > STREAM / 2]


def counted(rows, family):
    """How many launches of a family there are forward, and how many back."""
    found = [one.where for one in rows if one.family == family]
    return found.count("forward"), found.count("backward")


def test_in_bf16_a_layer_makes_two_passes_of_its_own_and_no_copy(launched):
    rows, said = launched("bf16", "fast")
    # The two branches are added to the stream; the gradient is summed up for both biases at once.
    assert passes(rows) == [
        ("forward", pytest.approx(4 * STREAM, rel=0.01)),
        ("backward", pytest.approx(STREAM, rel=0.01)),
    ]
    for family, times in {
        "norms": (1, 1),
        "GELU": (1, 1),
        "rotary": (1, 1),
        "products": (4, 8),
    }.items():
        assert counted(rows, family) == times
    # By hand: of one layer's four products, 2 FLOPs a parameter and token forward, 4 back.
    flops = sum(one.gflop for one in rows if one.family == "products")
    assert flops == pytest.approx(6 * HIDDEN * (4 * HIDDEN + 2 * INNER) * TOKENS / 1e9, rel=1e-3)
    assert "| products | 93.0 |" in said  # as was seen on an H100: see the head of the script


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_in_fp8_a_layer_compiles_and_rounds_each_number_once(launched, memory):
    rows, _ = launched("fp8", memory)
    # Lean makes the product as wide as the MLP again.
    assert counted(rows, "products") == (4, 9 if memory == "lean" else 8)
    assert not [one for one in rows if "clone" in one.name and one.mb > 1]
    assert [way for way, _ in passes(rows)] == ["forward", "backward"]
    if memory == "fast":
        # Forward: four weights, what both norms gave, what attention gave; back: the gradient of
        # the stream, for each of the two products that write to it.
        assert counted(rows, "rounding to fp8") == (7, 2)
