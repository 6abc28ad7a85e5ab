"""The start record: where weights, optimizer state, data and rates come from."""

import json
import shutil

import pytest
from training_runs import events, run

from recipes import recipe_of
from rewarm.checkpoints.manifest import sha256_in_manifest
from rewarm.checkpoints.training_state import Ancestor
from rewarm.runs.start_record import StartRecord, describe_start


def test_check_and_train_print_the_same_record(recipe_text, tmp_path, command):
    base = run(recipe_text, tmp_path / "base")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    words = (path, "--set", f"model={{base: {base}}}", "--set", "tokens=2048")
    _, plan, _ = command("check", *words)
    code, _, log = command("train", *words)
    assert code == 0
    digest = sha256_in_manifest(base)[:12]
    for text in (plan, log):
        assert f"weights of {base} (rewarm checkpoint, step 20) (sha256 {digest})" in text
        assert "fresh optimizer state; data from the beginning" in text
        assert "lr 0.001 at the last step →" in text
        assert "trained on 20.48k tokens → 22.53k at the end of this run" in text
    assert "28 of 28 tensors matched" in log
    (start,) = events(tmp_path / "run", "start")
    assert StartRecord.model_validate(start).sha256.startswith(digest)


def test_what_the_base_asks_for_and_rewarm_leaves_out_is_printed(
    recipe_text, tmp_path, corpora, command, caplog
):
    base = run(recipe_text, tmp_path / "base")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, model)
    config = json.loads((base / "config.json").read_text()) | {"hidden_dropout": 0.1}
    (model / "config.json").write_text(json.dumps(config))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    _, plan, _ = command("check", path, "--set", f"model={{base: {model}}}")
    assert "warning: hidden_dropout 0.1 of its config.json is not applied" in plan
    code, _, _ = command("eval", model, "--data", f"a={corpora}/upstream/val", "--context", 16)
    assert code == 0
    assert f"{model}: hidden_dropout 0.1 of its config.json is not applied" in caplog.text


@pytest.fixture
def recipe(thousand_steps):
    return recipe_of(thousand_steps)


def test_new_weights(recipe):
    start = describe_start(recipe, [])
    assert start.lines() == [
        ("start", "new weights (seed 17), architecture of pythia-14m"),
        ("", "fresh optimizer state; data from the beginning"),
        ("", "trained on 0 tokens → 100M at the end of this run"),
    ]
    assert (start.base_lr, start.first_lr) == (None, pytest.approx(3e-6))


def test_rates_are_measured_at_the_start_the_marks_and_the_end(recipe):
    rates = describe_start(recipe, []).rates
    assert rates.keys() == {1, 2, 100, 101, 1000}  # the warm-up ends at step 100
    assert rates[1] == pytest.approx(3e-6)
    assert rates[100] == pytest.approx(3e-4)
    assert rates[1000] == pytest.approx(3e-5)


def test_tokens_of_all_ancestors_are_counted(recipe):
    ancestors = [Ancestor(name="a", directory="/a", tokens=5), Ancestor(name="b", directory="/b")]
    start = describe_start(recipe, ancestors[:1])
    assert (start.tokens_before, start.tokens_after) == (5, 100_000_005)
    assert describe_start(recipe, ancestors).tokens_before is None  # one is not known


@pytest.mark.parametrize(("peak", "is_high"), [("30", True), ("0.1", True), ("0.09", False)])
def test_a_learning_rate_that_no_model_survives_gets_a_warning(thousand_steps, peak, is_high):
    recipe = recipe_of(thousand_steps, f"schedule.peak_lr={peak}")
    text = "\n".join(line for _, line in describe_start(recipe, []).lines())
    warning = f"warning: the learning rate is {peak} at step 100; AdamW changes each weight"
    assert (warning in text) == is_high
    assert ("warning" in text) == is_high
