"""Training state: the change after a step, storage, and an ancestor as one line of text."""

import pytest

from rewarm.checkpoints.training_state import Ancestor, TrainingState, read_training_state
from rewarm.data.batch_loader import DataPosition
from rewarm.errors import CheckpointError

EMPTY = {name: {} for name in ("blocks", "carried", "corpora", "baseline", "losses", "guard")}
START = TrainingState(
    **EMPTY, step=0, tokens=0, lrs=None, stream="0" * 32, schedule={}, lineage=[], rewarm="0"
)


def test_after_step():
    assert START.lr is None
    first = START.after_step(1, 100, 2e-3, DataPosition({"a": 4}, "1" * 32), evaluation_owed=True)
    second = first.after_step(2, 100, 1e-3, DataPosition({"a": 8}, "2" * 32), evaluation_owed=False)
    assert (second.step, second.tokens, second.lr) == (2, 200, 1e-3)
    assert second.lrs == (2e-3, 2e-3, 1e-3)  # first, highest, last
    assert second.position == DataPosition({"a": 8}, "2" * 32)
    assert START.step == 0


def test_the_state_is_read_back_equal(tmp_path):
    (tmp_path / "progress.json").write_text(START.model_dump_json())
    assert read_training_state(tmp_path) == START
    (tmp_path / "progress.json").write_text('{"step": -1}')
    with pytest.raises(CheckpointError, match=r"progress\.json: cannot be read: step: .*use anoth"):
        read_training_state(tmp_path)


def test_states_of_earlier_versions_are_read(tmp_path):
    newer = {"cpu_threads", "evaluation_owed"}
    (tmp_path / "progress.json").write_text(START.model_dump_json(exclude=newer))
    state = read_training_state(tmp_path)
    assert (state.cpu_threads, state.evaluation_owed) == (None, False)


def test_an_ancestor_as_one_line():
    ancestor = Ancestor(
        name="EleutherAI/pythia-410m",
        directory="/cache",
        revision="step1000",
        step=1000,
        tokens=2_100_000_000,
        lrs=(1e-4, 3e-4, 3e-5),
        schedule={"name": "rewarm", "version": "1.0"},
        losses={"upstream": 2.5},
    )
    assert ancestor.one_line() == (
        "EleutherAI/pythia-410m at step1000  step 1,000  2.1B tokens  "
        "lr 0.0001 → peak 0.0003 → 3e-05  schedule rewarm 1.0  upstream 2.5000"
    )
    assert Ancestor(name="\x1b[2J", directory="/").one_line() == r"\x1b[2J"
