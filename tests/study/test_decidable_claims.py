"""Claims that are undecided whatever the runs measure."""

import pytest
from planned_studies import write_study

from rewarm.study.decidable_claims import smallest_decided_effect, undecidable_claims
from rewarm.study.study_file import load_study


@pytest.fixture
def study(tmp_path, thousand_steps):
    """A study of 1,000 steps, evaluated every 500."""
    settings = """\
seeds: [1, 2]
arms: {a: , b: {schedule.peak_lr: 1e-3}}
claims:
  final: final(upstream, a) < final(upstream, b)
  late: slope(upstream, a, last 20%) < 0
  early: bump(upstream, a, first 1%) > 0
  gap: gap(downstream, a, b, after 40%) < 0.1
"""
    return write_study(
        tmp_path, thousand_steps, "{upstream: {shards: x}, downstream: {shards: y}}", settings
    )


def undecided(path, *overrides):
    return set(undecidable_claims(load_study(path, list(overrides))))


def test_one_seed_decides_no_claim(study):
    assert undecided(study, "seeds=[1]") == {"final", "late", "early", "gap"}


def test_parts_of_runs_need_evaluations(study):
    assert undecided(study) == {"late", "early"}
    reason = undecidable_claims(load_study(study))["early"]
    assert reason.startswith("bump of a takes 2 evaluations in that part of the run, which has 1")
    dense = "[{until: 1%, every: 5}, {every: 100}]"
    arms = f"{{every.evaluate: {dense}}}"
    assert undecided(study, f"arms={{a: {arms}, b: {arms}}}") == set()


@pytest.mark.parametrize(("seeds", "effect"), [(2, 8.984643), (3, 2.484138), (4, 1.591223)])
def test_the_smallest_effect_that_is_decided(seeds, effect):
    assert smallest_decided_effect(seeds) == pytest.approx(effect, abs=1e-6)
