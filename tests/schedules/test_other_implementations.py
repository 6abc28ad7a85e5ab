"""The comparisons of benchmarks/schedules.py, which docs/schedules-reference.md shows."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from repository import ROOT

PATH = ROOT / "benchmarks" / "schedules.py"


def load_benchmark():
    spec = spec_from_file_location("benchmark_of_schedules", PATH)
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
PEERS = {peer.name: peer for peer in benchmark.peers()}


def test_every_schedule_is_exact():
    rows = benchmark.exactness()
    assert {name.partition(" ")[0] for name in rows} == set(benchmark.schedule_classes())
    assert {name: row.of_reference for name, row in rows.items() if row.of_reference > 1e-4} == {}
    assert {name: row.of_plain for name, row in rows.items() if row.of_plain > 1e-12} == {}
    assert all(row.values and row.steps for row in rows.values())


@pytest.mark.parametrize("name", PEERS)
def test_equivalent_schedules_have_equal_curves(name):
    peer = PEERS[name]
    assert (benchmark.difference(peer).largest < 1e-11) == peer.same


def test_the_documented_differences():
    differences = {name: benchmark.difference(peer) for name, peer in PEERS.items()}
    first_at_zero = {name for name, difference in differences.items() if difference.first[0] == 0}
    assert first_at_zero == {
        *("linear", "cosine", "cosine_with_min_lr", "cosine_with_restarts (3 cycles)"),
        *("polynomial (power 1)", "constant_with_warmup", "inverse_sqrt"),
    }
    assert all(difference.first[1] > 0 for difference in differences.values())
    past = {name: difference.past for name, difference in differences.items()}
    assert {name for name, (theirs, ours) in past.items() if theirs and theirs > ours * 1.01} == {
        *("cosine", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "CosineAnnealingLR"),
        *("SequentialLR of LinearLR and CosineAnnealingLR", "CosineAnnealingWarmRestarts"),
        "CyclicLR (triangular)",
    }
    assert {name for name, (theirs, _) in past.items() if theirs is None} == {
        "OneCycleLR (anneal_strategy linear)",
        "OneCycleLR (default: cosine)",
    }
    for name, (theirs, ours) in past.items():
        if theirs is not None and theirs < ours * 0.99:
            assert "keeps falling past the end" in PEERS[name].note


def test_the_cosine_of_one_cycle_differs_in_the_warm_up_only():
    peer = PEERS["OneCycleLR (default: cosine)"]
    assert benchmark.difference(peer._replace(but=tuple(range(1, 100)))).largest < 1e-11


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.but])
def test_their_restarts_are_one_step_earlier(name):
    """At the steps that are left out, theirs is already at the start of the next cycle."""
    peer = PEERS[name]
    assert benchmark.difference(peer._replace(but=())).largest > 0.5
