"""What stands in results.json, of losses by hand."""

import pytest

from rewarm.study.outcomes import LossPoint, Outcome, RunOutcome, StudyResults
from rewarm.study.results_json import results_as_json
from rewarm.study.study_file import load_study


@pytest.fixture
def plan(tmp_path, thousand_steps):
    """Two arms on other data, one on the old, and one that is half as long."""
    (tmp_path / "recipe.yaml").write_text(thousand_steps)
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
""")
    return load_study(path)


def ran(upstream, downstream, tokens=100):
    sets = {"upstream": upstream, "downstream": downstream}
    return RunOutcome(
        {
            on: Outcome([LossPoint(i, i * tokens, loss) for i, loss in enumerate(losses)])
            for on, losses in sets.items()
        },
        "digest",
        2,
        None,
    )


@pytest.fixture
def said(plan):
    return results_as_json(
        plan,
        StudyResults(
            {
                ("low", 1): ran([2.0, 2.1, 2.2], [4.0, 3.0, 2.9]),
                ("low", 2): ran([2.0, 2.1, 2.4], [4.0, 3.0, 2.9]),
                ("high", 1): ran([2.0, 2.6, 2.5], [4.0, 3.2, 2.5]),
                ("high", 2): ran([2.0, 2.6, 2.9], [4.0, 3.1, 2.5]),
                ("old", 1): ran([2.0, 2.2, 1.9], [4.0, 4.0, 4.0]),
                ("old", 2): ran([2.0, 2.2, 1.9], [4.0, 4.0, 4.0]),
                ("short", 1): ran([2.0, 2.6, 2.7], [4.0, 3.4, 3.1], 50),
            }
        ),
    )


def test_the_control_is_as_long_and_the_reference_too(said):
    arms = said["arms"]
    assert arms["low"]["against"].keys() == {"old"}
    assert arms["high"]["against"].keys() == {"low", "old"}
    assert arms["old"]["against"].keys() == {"low"}
    assert arms["short"]["against"] == {}
    beside = arms["high"]["against"]["old"]["upstream"]["final"]
    assert beside["mean"] == pytest.approx((0.6 + 1.0) / 2)
    assert beside["error"] == pytest.approx(0.2)


def test_an_arm_overtakes_another_with_every_seed_or_not_at_all(said):
    found = said["overtakes"]["downstream"]
    assert found["high"].keys() == {"low"}
    # 0.2 above, then 0.4 below: a third of the way; 0.1 above: a fifth.
    assert found["high"]["low"]["mean"] == pytest.approx((100 + 100 / 3 + 100 + 20) / 2)
    # From 0.1 below to 0.3 and 0.5 below: low never was above.
    assert "low" not in said["overtakes"]["upstream"]


def test_the_front_is_of_the_arms_trained_on_that_corpus(said):
    assert said["pareto"] == {"downstream": ["low", "high"]}
    assert said["lines"]["downstream"]["low"]["1"]["slope"] < 0
    assert "short" in said["lines"]["downstream"]
