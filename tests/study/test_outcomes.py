"""Figures of runs, by hand."""

import json

import pytest

from rewarm.study.claims import FigureRequest
from rewarm.study.outcomes import (
    LossPoint,
    Outcome,
    RunOutcome,
    StudyResults,
    fit_line,
    overtakes,
    pareto_front,
    read_outcome,
    same_batches,
)


def outcome(*losses, every=100):
    return Outcome([LossPoint(i, i * every, loss) for i, loss in enumerate(losses)])


def test_a_loss_that_rises_and_comes_back():
    one = outcome(3.0, 3.4, 3.2, 2.9, 2.8)
    assert (one.start, one.final) == (3.0, 2.8)
    assert one.forgetting == pytest.approx(-0.2)
    assert one.adaptation == pytest.approx(0.2)
    assert one.bump == pytest.approx(0.4)
    assert one.top == (1, 100, 3.4)
    assert one.recovered == 300
    # Trapezoids: (3.0/2 + 3.4 + 3.2 + 2.9 + 2.8/2) / 4.
    assert one.area == pytest.approx(12.4 / 4)


def test_a_loss_that_never_rises_and_one_that_never_comes_back():
    assert outcome(3.0, 2.9).recovered == 0
    assert outcome(3.0, 3.4, 3.1).recovered is None
    assert outcome(3.0, 2.5, 3.4, 3.1).recovered is None
    assert outcome(3.0).area == 3.0


def test_an_arm_overtakes_where_lines_cross_for_good():
    early, late = outcome(3.0, 2.5, 2.4, 2.4, 2.4), outcome(3.0, 2.8, 2.6, 2.3, 2.1)
    # 0.2 above at half, 0.1 below at three quarters: two thirds of the way between them.
    assert overtakes(late, early) == pytest.approx(0.5 + 0.25 * 2 / 3)
    assert overtakes(early, late) is None
    assert overtakes(outcome(2.0, 2.0), outcome(3.0, 3.0)) == 0
    assert overtakes(outcome(3.0, 3.0), outcome(3.0, 3.0)) is None


def test_a_straight_line():
    x = outcome(1.0, 2.0, 3.0)
    assert fit_line(x, outcome(5.0, 3.0, 1.0)) == pytest.approx((-2.0, 7.0, 1.0))
    assert fit_line(x, outcome(1.0, 1.0, 1.0)) is None
    assert fit_line(outcome(1.0, 2.0), outcome(1.0, 2.0)) is None


def test_the_front_of_pareto():
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (2.5, 2.5), "d": (3.0, 1.0), "e": (1.0, 3.5)}
    assert pareto_front(points) == ["a", "b", "d"]


def test_differences_are_paired_by_seed():
    ran = {
        ("a", 1): RunOutcome({"x": outcome(3.0, 2.0)}, "s1", 5, None),
        ("a", 2): RunOutcome({"x": outcome(3.0, 2.4)}, "s2", 5, None),
        ("b", 1): RunOutcome({"x": outcome(3.0, 2.1)}, "s1", 5, None),
        ("b", 2): RunOutcome({"x": outcome(3.0, 2.5)}, "other", 5, None),
        ("b", 3): RunOutcome({"x": outcome(3.0, 9.9)}, "s3", 5, None),
    }
    results = StudyResults(ran)
    found = results.paired("b", "a", "x", lambda one: one.final)
    assert (found.mean, found.error, found.seeds) == (pytest.approx(0.1), pytest.approx(0.0), 2)
    assert results.over_seeds("a", "x", lambda one: one.final).mean == pytest.approx(2.2)
    assert results.known(FigureRequest("adaptation", "x", ("a",)), 1) == pytest.approx(1.0)
    assert results.known(FigureRequest("adaptation", "x", ("a",)), 3) is None
    assert results.known(FigureRequest("overtakes", "x", ("a", "b")), 1) == 0.0
    assert same_batches(results, ["a", "b"]) == {1: [["a", "b"]], 2: [["a"], ["b"]], 3: [["b"]]}


def test_metrics_are_read(tmp_path):
    assert read_outcome(tmp_path) is None
    lines = [
        {"kind": "evaluate", "step": 0, "tokens": 0, "x/loss": 3.0, "y/loss": 4.0},
        {"kind": "train", "step": 1, "tokens": 10, "stream": "aa", "tokens_per_second": 100.0},
        {"kind": "train", "step": 2, "tokens": 20, "stream": "bb", "tokens_per_second": 300.0},
        {"kind": "evaluate", "step": 2, "tokens": 20, "x/loss": 2.0, "y/loss": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = read_outcome(tmp_path)
    assert (ran.stream, ran.steps, ran.seconds_per_token) == ("bb", 2, 1 / 200)
    assert ran.sets["x"].losses == [(0, 0, 3.0), (2, 20, 2.0)]
    assert ran.sets["y"].final == 4.0
