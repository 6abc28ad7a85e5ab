"""Outcomes of runs and metrics over seeds, against hand-computed values."""

import json
import os
import shutil
from pathlib import Path

import pytest
from loss_histories import outcome

from rewarm.checkpoints.training_state import Ancestor
from rewarm.errors import RecipeError
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.study.claimed_metrics import MetricRequest
from rewarm.study.loss_history import LossPoint, final_loss
from rewarm.study.run_outcomes import (
    StudyResults,
    outcome_notes,
    pareto_front,
    read_outcome,
    same_batches,
)


def test_pareto_front():
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (2.5, 2.5), "d": (3.0, 1.0), "e": (1.0, 3.5)}
    assert pareto_front(points) == ["a", "b", "d"]


def test_differences_are_paired_by_seed():
    results = StudyResults(
        {
            ("a", 1): outcome(stream_digest="s1", x=[3.0, 2.0]),
            ("a", 2): outcome(stream_digest="s2", x=[3.0, 2.4]),
            ("b", 1): outcome(stream_digest="s1", x=[3.0, 2.1]),
            ("b", 2): outcome(stream_digest="other", x=[3.0, 2.5]),
            ("b", 3): outcome(stream_digest="s3", x=[3.0, 9.9]),
        }
    )
    difference = results.paired_difference("b", "a", "x", final_loss)
    assert difference == (pytest.approx(0.1), pytest.approx(0.0), 2)
    assert results.mean_over_seeds("a", "x", final_loss).mean == pytest.approx(2.2)
    adaptation = MetricRequest("adaptation", ("x",), ("a",))
    assert results.claimed_metric(adaptation, 1) == pytest.approx(1.0)
    assert results.claimed_metric(adaptation, 3) is None
    assert results.claimed_metric(MetricRequest("overtakes", ("x",), ("a", "b")), 1) == 0.0
    assert same_batches(results, ["a", "b"]) == {1: [["a", "b"]], 2: [["a"], ["b"]], 3: [["b"]]}


def test_other_weights_of_a_base_and_other_threads_are_noted():
    def started_from(sha256, name="base", threads=1):
        base = Ancestor(name=name, directory="x", sha256=sha256)
        return outcome(x=[3.0, 2.0])._replace(base=base, cpu_threads=threads)

    results = StudyResults({("a", 1): started_from("s1"), ("b", 1): started_from("s1")})
    assert outcome_notes(results) == []
    results = StudyResults(
        {
            ("a", 1): started_from("s1"),
            ("a", 2): started_from("s2"),
            ("b", 1): started_from("s1", threads=2),
            ("c", 1): started_from("s3", name="another base on purpose"),
            ("d", 1): outcome(x=[3.0, 2.0]),
        }
    )
    assert outcome_notes(results) == [
        "The base base differs between a seed 1, b; a seed 2: do not compare these runs.",
        "The number of CPU threads (1, 2) differs between a, c; b: so do the last bits of their "
        "losses.",
    ]


def test_read_outcome(tmp_path):
    assert read_outcome(tmp_path) is None
    lines = [
        {"kind": "evaluate", "step": 0, "tokens": 0, "x/loss": 3.0, "y/loss": 4.0},
        {"kind": "train", "step": 1, "tokens": 10, "stream": "aa", "tokens_per_second": 100.0},
        {"kind": "train", "step": 2, "tokens": 20, "stream": "bb", "tokens_per_second": 300.0},
        {"kind": "evaluate", "step": 2, "tokens": 20, "x/loss": 2.0, "y/loss": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_outcome(tmp_path)
    assert (run.stream_digest, run.steps_done, run.seconds_per_token) == ("bb", 2, 1 / 200)
    assert run.losses["x"].points == [LossPoint(0, 0, 3.0), LossPoint(2, 20, 2.0)]
    assert run.losses["y"].final == 4.0


@pytest.mark.timeout(20)
def test_a_recipe_that_cannot_be_read_is_not_waited_for(trained_run, tmp_path):
    """A pipe would be, for ever: the benchmark of mutated files found that."""
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    before = read_outcome(run)
    (run / "recipe.yaml").unlink()
    os.mkfifo(run / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: not a regular file"):
        load_saved_document(run / "recipe.yaml")
    assert read_outcome(run).losses == before.losses
