"""The content of results.json, against hand-computed values."""

import json

import pytest
from loss_histories import outcome
from planned_studies import write_study

from rewarm.errors import RecipeError
from rewarm.study.claimed_metrics import MetricRequest
from rewarm.study.comparison_tables import start_to_end_table
from rewarm.study.results_json import StudySummary, read_summary, results_as_json
from rewarm.study.run_outcomes import StudyResults
from rewarm.study.study_file import load_study
from rewarm.study.study_plan import study_roles


@pytest.fixture
def plan(tmp_path, thousand_steps):
    """Two arms on new data, one on old data, and one of half the length."""
    settings = """\
arms:
  low: {schedule.peak_lr: 1e-4}
  high:
  old: {data.train: {upstream: {shards: somewhere}}}
  short: {tokens: 50M}
seeds: [1, 2]
reference: low
control: old
claims:
  high forgets more: forgetting(upstream, high) > forgetting(upstream, low)
  late: slope(upstream, low, last 1%) < 0
  by zero: 1 / (final(upstream, low) - final(upstream, low)) > 2
"""
    path = write_study(tmp_path, thousand_steps, "{upstream: {shards: data/held-out}}", settings)
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


def test_a_claim_that_no_run_can_decide_says_why(content):
    claim = content["claims"]["late"]
    assert claim["verdict"] == "undecided"
    assert claim["why"].startswith("slope of low takes ")


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


OTHER_NAMES = """\
study: {folder}/runs
recipe: recipe.yaml
bases: {{books: base.yaml}}
arms:
  low: {{schedule.peak_lr: 1e-4}}
  replay: {{data.train.books: {{shards: {folder}/books/train, weight: 0.05}}}}
seeds: [1, 2]
claims:
  replay forgets less: "forgetting(upstream, replay) < forgetting(upstream, low)"
"""


def other_names(folder, recipe):
    """A study whose sets are called books, poems and code; its base was trained on books."""
    text = recipe.replace("downstream: {shards: data/new, weight: 0.75}", "code: {shards: code}")
    text = text.replace("    upstream: {shards: data/old, weight: 0.25}\n", "")
    model = f"model: {{base: {folder}/runs/bases/books}}"
    validation = """\
  validation:
    books: {shards: books/val}
    poems: {shards: poems, role: upstream}
    code: {shards: code}
"""
    (folder / "recipe.yaml").write_text(
        text.replace("model: {preset: pythia-14m}", model).replace(
            "\nbatch:", f"\n{validation}batch:"
        )
    )
    (folder / "base.yaml").write_text(
        text.replace("code: {shards: code}", "b: {shards: books/train}")
    )
    path = folder / "study.yaml"
    path.write_text(OTHER_NAMES.format(folder=folder))
    return load_study(path)


def test_front_lines_and_claims_follow_the_roles_not_the_names(tmp_path, thousand_steps):
    plan = other_names(tmp_path, thousand_steps)
    assert {name: role.role for name, role in study_roles(plan).items()} == {
        "books": "upstream",
        "poems": "upstream",
        "code": "downstream",
    }
    roles = {"books": "upstream", "poems": "upstream", "code": "downstream"}
    low = outcome(books=[2.0, 2.5, 3.0], poems=[3.0, 3.0, 4.0], code=[4.0, 3.0, 2.0])
    replay = outcome(books=[2.0, 2.1, 2.0], poems=[3.0, 3.2, 3.5], code=[4.0, 3.5, 3.0])
    results = StudyResults(
        {
            (arm, seed): run._replace(roles=roles)
            for arm, run in (("low", low), ("replay", replay))
            for seed in (1, 2)
        }
    )
    content = results_as_json(plan, results)
    assert content["roles"] == roles
    assert content["pareto"] == {"code": ["replay", "low"]}
    # Of several upstream sets, their mean: low rises by (1.0 + 1.0) / 2, replay by (0.0 + 0.5) / 2.
    [claim] = content["claims"].values()
    assert claim["effect"]["mean"] == pytest.approx(0.25 - 1.0)
    assert claim["verdict"] == "held"
    # (2.5, 4), (2.75, 3), (3.5, 2)
    line = content["lines"]["code"]["low"]["1"]
    x = [2.5, 2.75, 3.5]
    slope = sum((a - 2.9166667) * (b - 3) for a, b in zip(x, [4, 3, 2], strict=True))
    assert line["slope"] == pytest.approx(slope / sum((a - 2.9166667) ** 2 for a in x), rel=1e-5)
    columns = start_to_end_table({"low": low._replace(roles=roles)}).columns
    assert columns == [
        *("arm", "books loss", "books forgetting", "poems loss", "poems forgetting"),
        *("code loss", "adaptation"),
    ]


@pytest.mark.parametrize(
    ("roles", "final"),
    [
        ({"upstream": "upstream", "alt": "upstream"}, 3.0),  # as the table of this set says
        ({"upstream": "downstream", "alt": "upstream"}, 6.0),
        ({"upstream": "downstream"}, 3.0),
        ({"books": "upstream", "alt": "upstream"}, 4.5),
    ],
)
def test_a_claim_about_a_role_is_about_the_set_of_this_name_or_else_about_all_of_the_role(
    roles, final
):
    name = "books" if "books" in roles else "upstream"
    run = outcome(**{name: [2.0, 3.0], "alt": [4.0, 6.0]})._replace(roles=roles)
    results = StudyResults({("a", 1): run})
    assert results.claimed_metric(MetricRequest("final", ("upstream",), ("a",)), 1) == final


def test_a_claim_about_a_role_that_no_set_has_is_refused(tmp_path, thousand_steps):
    text = thousand_steps.replace("\nbatch:", "\n  validation: {books: {shards: books}}\nbatch:")
    (tmp_path / "recipe.yaml").write_text(text)
    path = tmp_path / "study.yaml"
    path.write_text(
        f"study: {tmp_path}/runs\nrecipe: recipe.yaml\narms: {{a: }}\n"
        'claims: {b: "final(upstream, a) < 3"}\n'
    )
    with pytest.raises(RecipeError, match=r"no validation set named 'upstream' \(sets: books"):
        load_study(path)
