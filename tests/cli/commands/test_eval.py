"""`rewarm eval`: losses of checkpoints as a table and as JSON."""

import json
import math
import re
import shutil

import pytest
from training_runs import metrics, run

from rewarm.data.shard_source import ShardSource
from rewarm.training import evaluate_checkpoint
from rewarm.training.validation_loss import SetLoss


@pytest.fixture
def trained(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    return tmp_path / "run"


def test_losses_are_those_of_the_metrics(trained, corpora, command):
    sets = [
        f"--data=upstream={corpora}/upstream/val",
        f"--data=downstream={corpora}/downstream/val",
    ]
    tenth_step = trained / "checkpoints" / "step-00000010"
    code, output, errors = command("eval", trained, tenth_step, *sets, "--json")
    assert code == 0, errors
    last, tenth = json.loads(output)
    assert last["checkpoint"] == str(trained)
    measured = {line["step"]: line for line in metrics(trained, "evaluate")}
    assert last["downstream/loss"] == pytest.approx(measured[20]["downstream/loss"], abs=1e-6)
    assert tenth["downstream/loss"] == pytest.approx(measured[10]["downstream/loss"], abs=1e-6)
    for unit in ("perplexity", "bits_per_byte"):
        logged = measured[20][f"downstream/{unit}"]
        assert last[f"downstream/{unit}"] == pytest.approx(logged, rel=1e-6)


def test_the_table_has_the_difference_to_the_first(trained, corpora, command):
    data = f"--data=upstream={corpora}/upstream/val"
    _, output, _ = command("eval", trained / "checkpoints" / "step-00000010", trained, data)
    header, first, second = output.splitlines()
    assert header.split() == [
        *("checkpoint", "set", "loss", "perplexity", "bits/byte", "tokens", "vs", "first")
    ]
    difference = float(second.split()[-1])
    first_loss, second_loss = (float(row.split()[2]) for row in (first, second))
    assert difference == pytest.approx(second_loss - first_loss, abs=1.1e-4)
    assert difference < 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--data=a={val}"], 3, "nowhere); correct the path"),
        (["{val}", "--data=nonsense"], 2, "should be NAME=DIR"),
        (["{val}", "--data=a=nowhere"], 3, "nowhere: no such folder"),
        (
            ["{val}", "--data=a={empty}"],
            3,
            "an empty folder; expected a folder that",
        ),
        (["{val}", "--data=a=b", "--precision=int4"], 2, "should be fp32, bf16 or fp16"),
    ],
)
def test_bad_input_ends_with_one_message(corpora, tmp_path, command, arguments, code, message):
    paths = {"val": corpora / "third" / "val", "empty": tmp_path}
    exit_code, _, errors = command("eval", *(argument.format(**paths) for argument in arguments))
    assert exit_code == code
    # Typer wraps usage errors into a box.
    assert message in " ".join(errors.replace("│", "").split())
    assert "Traceback" not in errors


def test_documents_and_context_are_those_of_the_run(recipe_text, tmp_path, corpora, command):
    """A model of 64 positions that was trained on separate documents, 32 tokens at once."""
    settings = {"data__documents": "separate", "data__context": 32, "tokens": 2048}
    run(recipe_text, tmp_path / "run", **settings)
    [*_, last] = metrics(tmp_path / "run", "evaluate")

    def measured(*options):
        data = f"--data=downstream={corpora}/downstream/val"
        code, output, errors = command("eval", tmp_path / "run", data, "--json", *options)
        assert code == 0, errors
        [result] = json.loads(output)
        return result, errors

    result, errors = measured()
    assert (result["context"], result["documents"]) == (32, "separate")
    assert result["downstream/loss"] == pytest.approx(last["downstream/loss"], abs=1e-6)
    assert "measured with context 32 (its recipe), documents separate (its recipe), fp32" in errors
    across, errors = measured("--documents=attend-across")
    assert "context 32 (its recipe), documents attend-across (--documents)" in errors
    assert abs(across["downstream/loss"] - last["downstream/loss"]) > 1e-4
    long, errors = measured("--context=64")
    assert (long["context"], long["documents"]) == (64, "separate")
    assert abs(long["downstream/loss"] - last["downstream/loss"]) > 1e-4
    # The weights alone, as another program saves them, have no recipe.
    model = tmp_path / "model"
    model.mkdir()
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(checkpoint / name, model / name)
    data = f"--data=downstream={corpora}/downstream/val"
    code, table, errors = command("eval", tmp_path / "run", model, data)
    assert code == 0
    assert not re.search(r"[+-]\d\.\d{4}\s*$", table, re.MULTILINE)  # vs first
    assert f"documents attend-across (the default), fp32: {model}" in errors
    assert "context 64 (the model's positions)" in errors
    assert "measured differently, so their losses do not compare" in errors


def test_a_loss_that_is_not_finite_is_null_and_an_error(trained, corpora, command, monkeypatch):
    losses = {"upstream": SetLoss(math.nan, 640), "downstream": SetLoss(800.0, 640)}
    monkeypatch.setattr(
        evaluate_checkpoint, "measure_losses", lambda _, sets, **__: {k: losses[k] for k in sets}
    )
    data = [f"--data={name}={corpora}/{name}/val" for name in losses]
    code, output, errors = command("eval", trained, *data, "--json")
    assert code == 4
    [result] = json.loads(output, parse_constant=pytest.fail)
    assert result["upstream/loss"] is None
    assert result["upstream/perplexity"] is None
    assert result["downstream/loss"] == 800.0
    assert result["downstream/perplexity"] is None  # too large for a number
    assert f"{trained}: its loss is not finite on upstream; use an earlier" in errors
    code, output, _ = command("eval", trained, *data)
    assert code == 4
    assert "nan" in output


def test_shards_are_opened_once_for_all_checkpoints(trained, corpora, command, monkeypatch):
    opened = []
    open_shard = ShardSource.open_shard
    monkeypatch.setattr(
        ShardSource, "open_shard", lambda *args: opened.append(args) or open_shard(*args)
    )
    checkpoints = sorted((trained / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    code, _, _ = command("eval", *checkpoints, f"--data=a={corpora}/upstream/val")
    assert code == 0
    assert len(opened) == len(list((corpora / "upstream" / "val").glob("*.tar")))
