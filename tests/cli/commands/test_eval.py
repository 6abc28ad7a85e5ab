"""`rewarm eval`: losses of checkpoints as a table and as JSON."""

import json

import pytest
from training_runs import metrics, run


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
    assert last["downstream/perplexity"] == pytest.approx(measured[20]["downstream/perplexity"])


def test_the_table_has_the_difference_to_the_first(trained, corpora, command):
    data = f"--data=upstream={corpora}/upstream/val"
    _, output, _ = command("eval", trained / "checkpoints" / "step-00000010", trained, data)
    header, first, second = output.splitlines()
    assert header.split() == ["checkpoint", "set", "loss", "perplexity", "tokens", "vs", "first"]
    difference = float(second.split()[-1])
    first_loss, second_loss = (float(row.split()[2]) for row in (first, second))
    assert difference == pytest.approx(second_loss - first_loss, abs=1.1e-4)
    assert difference < 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--data=a={val}"], 3, "no such folder, and not a hub name"),
        (["{val}", "--data=nonsense"], 2, "should be NAME=DIR"),
        (["{val}", "--data=a=nowhere"], 3, "nowhere: no such folder"),
        (["{val}", "--data=a={empty}"], 3, "no index.json in this folder"),
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
