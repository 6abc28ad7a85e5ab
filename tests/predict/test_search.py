"""A search against what is known of the law, and against all of its runs one by one."""

from functools import cache

import numpy as np
import pytest
from predicted_studies import BATCH, PEAK, STARTS
from searched_arms import ARMS, fitted_arms, known_arms, recipe_of_arm
from synthetic_probes import Arm

from rewarm.predict.constraints import parse_constraint
from rewarm.predict.search import keeps, search
from rewarm.predict.search_space import choice_of, default_space, recipe_of, setting_names
from rewarm.predict.searched_runs import nondominated_runs, searched_runs

RECIPE = recipe_of_arm(Arm(replay=0.05))
FIXED = {"minimum": [0.1], "warmup": [0.05], "decay": ["cosine"]}


SMALL = {
    "peak": np.geomspace(PEAK / 16, PEAK, 25).tolist(),
    "minimum": [0.0, 0.1],
    "warmup": [0.02, 0.05],
    "decay": ["cosine", "linear"],
}


FINE = np.geomspace(PEAK / 16, PEAK, 120).tolist()


def searched(*constraints, recipe=RECIPE, fitted=None, most_tokens=None, **ranges):
    """The result of a search over a few values of each setting."""
    fitted = fitted or fitted_arms()
    known = setting_names(recipe.schedule)
    small = {name: values for name, values in SMALL.items() if name in known}
    space = default_space(fitted.arms, recipe, small | ranges, most_tokens=most_tokens)
    return search(fitted, recipe, space, [parse_constraint(one, ARMS) for one in constraints])


@cache
def limited():
    """The result for a limit that about half of the front keeps."""
    return searched("upstream rise <= 0.5", most_tokens=600 * BATCH)


def last_losses(prediction, level=None):
    """The last losses, or the upper bounds of their intervals."""
    return {
        loss.name: float((loss.intervals[level][1] if level else loss.loss)[-1])
        for loss in prediction.losses
    }


def test_undominated_rows_by_hand():
    losses = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [2.0, 2.5], [3.0, 1.0], [3.5, 0.9]])
    assert sorted(nondominated_runs(losses).tolist()) == [0, 1, 2, 5]
    third = np.array([0.0, 0.0, 0.0, -1.0, 0.0, 0.0])
    assert sorted(nondominated_runs(np.column_stack([losses, third])).tolist()) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("schedule", ["rewarm", "no-warmup"])
def test_runs_are_those_that_predict_gives(schedule):
    """From sampled rates, within a thousandth of a nat."""
    changes = {} if schedule == "rewarm" else {"schedule": {"name": schedule, "peak_lr": PEAK}}
    if changes:
        changes["schedule__min_lr"] = PEAK / 10
    recipe = recipe_of_arm(Arm(replay=0.05, steps=600), **changes)
    fitted = fitted_arms()
    runs = searched_runs(fitted, recipe, default_space(ARMS, recipe))
    for run in np.random.default_rng(0).integers(len(runs.row), size=6):
        choice = runs.choice(run)
        own = recipe_of(ARMS, recipe, choice)
        assert ARMS.replay_share(own) == pytest.approx(choice.replay)
        prediction = fitted.predict("", own, choice.replay)
        for name, loss in last_losses(prediction).items():
            assert runs.losses[name][run] == pytest.approx(loss, abs=1e-3)


def test_the_best_run_is_that_of_brute_force():
    """Of all combinations of six peaks and three shares, each predicted by itself."""
    peaks, shares = np.geomspace(PEAK / 8, PEAK, 6).tolist(), [0.0, 0.05, 0.25]
    limit = "upstream rise <= 0.6"
    result = searched(limit, **FIXED, peak=peaks, replay=shares)
    fitted, constraint = fitted_arms(), parse_constraint(limit, ARMS)
    allowed = {}
    for peak in peaks:
        for share in shares:
            choice = choice_of(ARMS, RECIPE)._replace(peak=peak, replay=share)
            prediction = fitted.predict("", recipe_of(ARMS, RECIPE, choice), share)
            if constraint.excess(last_losses(prediction, 0.8)) <= 0:
                allowed[peak, share] = last_losses(prediction)["downstream"]
    assert 3 < len(allowed) < 15
    best = min(allowed, key=allowed.get)
    assert (result.recommended.choice.peak, result.recommended.choice.replay) == best
    assert result.searched == 18


def test_the_largest_peak_that_a_limit_allows_is_known():
    """Without replay both losses are monotone in the peak, so the best one is at the limit."""
    limit = 1.0
    result = searched(
        f"upstream rise <= {limit}", fitted=known_arms(), **FIXED, replay=[0.0], peak=FINE
    )
    best = result.recommended
    highest = last_losses(best.prediction, 0.8)["upstream"] - STARTS["upstream"]
    assert limit - 0.05 < highest <= limit
    own = choice_of(ARMS, RECIPE)._replace(peak=best.choice.peak * 1.05, replay=0.0)
    above = known_arms().predict("", recipe_of(ARMS, RECIPE, own), 0.0)
    assert last_losses(above, 0.8)["upstream"] - STARTS["upstream"] > limit


def test_the_front_is_sorted_and_none_dominates_another():
    result = limited()
    losses = [tuple(last_losses(one.prediction).values()) for one in result.front]
    assert len(losses) == pytest.approx(12, abs=2)
    others = [
        one for one, run in zip(losses, result.front, strict=True) if run is not result.recommended
    ]
    assert others == sorted(others)
    assert [new for _, new in others] == sorted((new for _, new in others), reverse=True)


def test_constraints_hold_at_the_bounds_of_intervals():
    result = limited()
    highest = last_losses(result.recommended.prediction, 0.8)["upstream"]
    assert STARTS["upstream"] + 0.4 < highest <= STARTS["upstream"] + 0.5
    for one in result.front:
        assert one.holds is (last_losses(one.prediction, 0.8)["upstream"] <= 4.0)
    assert {one.holds for one in result.front} == {True, False}
    assert "best adaptation" in result.rule


def test_a_limit_of_adaptation_asks_for_the_least_forgetting():
    result = searched("downstream fall >= 1.2")
    loose = searched("downstream fall >= 0.9")
    best = last_losses(result.recommended.prediction, 0.8)["downstream"]
    assert best <= STARTS["downstream"] - 1.2
    forgetting = [last_losses(one.recommended.prediction)["upstream"] for one in (loose, result)]
    assert forgetting[0] < forgetting[1]
    assert "least forgetting" in result.rule


def test_without_limits_it_is_as_good_as_the_best_within_its_interval():
    result = searched()
    best = min(result.front, key=lambda one: last_losses(one.prediction)["downstream"])
    most = last_losses(best.prediction, 0.8)["downstream"]
    chosen = last_losses(result.recommended.prediction)
    assert chosen["downstream"] <= most + 1e-3
    assert chosen["upstream"] < last_losses(best.prediction)["upstream"] - 0.5
    lower = [one for one in result.front if last_losses(one.prediction)["downstream"] <= most]
    assert (
        chosen["upstream"] <= min(last_losses(one.prediction)["upstream"] for one in lower) + 0.01
    )
    assert "within the 80% interval of the best" in result.rule


def test_a_limit_that_no_run_keeps_gives_the_closest():
    result = searched("upstream rise <= -0.5")
    assert result.recommended is None
    assert not any(one.holds for one in result.front)
    lowest = min(last_losses(one.prediction, 0.8)["upstream"] for one in result.front)
    assert last_losses(result.closest.prediction, 0.8)["upstream"] == pytest.approx(
        lowest, abs=1e-3
    )


def test_the_shape_of_the_schedule_stays_where_another_gains_little():
    result = searched("upstream rise <= 0.5", peak=FINE)
    own, chosen = choice_of(ARMS, RECIPE), result.recommended.choice
    assert (chosen.decay, chosen.warmup, chosen.minimum) == (own.decay, own.warmup, own.minimum)
    assert chosen.replay != own.replay
    other = searched("upstream rise <= 0.5", decay=["1-sqrt"], minimum=[0.0, 0.2])
    assert other.recommended.choice.decay == "1-sqrt"


def test_a_search_is_deterministic():
    result = searched("upstream rise <= 0.5", most_tokens=600 * BATCH)
    assert [one.choice for one in result.front] == [one.choice for one in limited().front]
    assert result.recommended.choice == limited().recommended.choice


def test_edges_are_named():
    result = searched("upstream rise <= 0.5", replay=[0.02, 0.05])
    assert result.recommended.choice.replay == 0.05
    assert "its replay is the highest that was tried: a better one may lie beyond" in result.edges
    assert not any("tokens" in edge or "decay" in edge for edge in result.edges)


def test_more_tokens_are_better_where_the_limit_allows_them():
    result = limited()
    assert result.recommended.recipe.steps == 600
    assert result.recommended.prediction.reach.is_longer
    assert keeps(result.recommended.prediction, [parse_constraint("upstream rise <= 0.5", ARMS)])


def test_nothing_that_reach_refuses_is_proposed():
    assert not any(one.prediction.reach.refusals for one in limited().front)
