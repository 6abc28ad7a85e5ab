"""The content of results.json, against hand-computed values."""

import json

import pytest
from loss_histories import outcome

from rewarm.study.results_json import StudySummary, read_summary, results_as_json
from rewarm.study.run_outcomes import StudyResults
from rewarm.study.study_file import load_study


@pytest.fixture
def plan(tmp_path, thousand_steps):
    """Two arms on new data, one on old data, and one of half the length."""
    validation = "  validation: {upstream: {shards: data/held-out}}"
    recipe = thousand_steps.replace("\nbatch:", f"\n{validation}\nbatch:")
    (tmp_path / "recipe.yaml").write_text(recipe)
    path = tmp_path / "study.yaml"
    path.write_text(f"""\
study: {tmp_path}/runs
recipe: recipe.yaml
arms:
  low: {{schedule.peak_lr: 1e-4}}
  high:
  old: {{data.train: {{upstream: {{shards: somewhere}}}}}}
  short: {{tokens: 50M}}
seeds: [1, 2]
reference: low
control: old
claims:
  high forgets more: forgetting(upstream, high) > forgetting(upstream, low)
  by zero: 1 / (final(upstream, low) - final(upstream, low)) > 2
""")
    return load_study(path)


def losses(upstream, downstream, tokens_per_step=100):
    return outcome(tokens_per_step, upstream=upstream, downstream=downstream)


@pytest.fixture
def content(plan):
    return results_as_json(
        plan,
        StudyResults(
            {
                ("low", 1): losses([2.0, 2.1, 2.2], [4.0, 3.0, 2.9]),
                ("low", 2): losses([2.0, 2.1, 2.4], [4.0, 3.0, 2.9]),
                ("high", 1): losses([2.0, 2.6, 2.5], [4.0, 3.2, 2.5]),
                ("high", 2): losses([2.0, 2.6, 2.9], [4.0, 3.1, 2.5]),
                ("old", 1): losses([2.0, 2.2, 1.9], [4.0, 4.0, 4.0]),
                ("old", 2): losses([2.0, 2.2, 1.9], [4.0, 4.0, 4.0]),
                ("short", 1): losses([2.0, 2.6, 2.7], [4.0, 3.4, 3.1], 50),
            }
        ),
    )


def test_arms_are_compared_with_reference_and_control_of_the_same_length(content):
    arms = content["arms"]
    assert arms["low"]["against"].keys() == {"old"}
    assert arms["high"]["against"].keys() == {"low", "old"}
    assert arms["old"]["against"].keys() == {"low"}
    assert arms["short"]["against"] == {}
    difference = arms["high"]["against"]["old"]["upstream"]["final"]
    assert difference["mean"] == pytest.approx((0.6 + 1.0) / 2)
    assert difference["error"] == pytest.approx(0.2)


def test_overtaking_needs_every_seed(content):
    overtakes = content["overtakes"]["downstream"]
    assert overtakes["high"].keys() == {"low"}
    # 0.2 above, then 0.4 below: a third of the way; 0.1 above: a fifth.
    assert overtakes["high"]["low"]["mean"] == pytest.approx((100 + 100 / 3 + 100 + 20) / 2)
    # From 0.1 below to 0.3 and 0.5 below: low never was above.
    assert "low" not in content["overtakes"]["upstream"]


def test_pareto_front_has_only_arms_trained_on_the_corpus(content):
    assert content["pareto"] == {"downstream": ["low", "high"]}
    assert content["lines"]["downstream"]["low"]["1"]["slope"] < 0
    assert "short" in content["lines"]["downstream"]


def test_a_report_reads_what_a_study_writes(content):
    summary = StudySummary.model_validate(content)
    assert (list(summary.arms), summary.reference) == (["low", "high", "old", "short"], "low")
    assert summary.claims["high forgets more"].verdict == "undecided"  # with two seeds
    assert summary.claims["high forgets more"].effect.mean == pytest.approx(0.4)
    assert summary.claims["by zero"].why == "with 2 of 2 seeds it divides by zero or overflows"


def test_a_study_with_a_claim_that_divides_by_zero_is_valid_json(content, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(content, allow_nan=False))
    assert read_summary(tmp_path / "results.json").claims["by zero"].effect is None
