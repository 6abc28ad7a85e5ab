"""Speeds on a GPU in the table, and what they are for another model."""

import pytest
from repository import ROOT

from rewarm.estimates.throughput import (
    MEASURED_SPEEDS,
    gpu_memory,
    measured_gpus,
    peak_flops,
    speed_of_recipe,
)
from rewarm.model.architecture import PRESETS
from rewarm.recipe.recipe import load_recipe


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_peak_by_the_name_of_a_device(device, peak):
    assert peak_flops(device) == peak


def test_measured_gpus():
    assert measured_gpus() == ["h100"]
    assert gpu_memory("h100") == 80 * 10**9
    assert MEASURED_SPEEDS[0].mfu == pytest.approx(0.4796, abs=1e-4)


def test_another_architecture_has_the_same_mfu_and_its_source_says_so():
    recipe = load_recipe(
        ROOT / "recipes" / "pythia-410m-rewarm.yaml", ["model={preset: pythia-1b}"]
    )
    speed = speed_of_recipe("h100", recipe, PRESETS["pythia-1b"])
    small, large = (PRESETS[name].flops_per_token(2048) for name in ("pythia-410m", "pythia-1b"))
    assert 2_260_992 / speed.step == pytest.approx(174_000 * small / large)
    assert speed.evaluated_per_second == pytest.approx(3 * 174_000 * small / large)
    assert (
        "at an MFU of 48.0% that was not measured for this architecture and microbatch"
        in speed.source
    )
