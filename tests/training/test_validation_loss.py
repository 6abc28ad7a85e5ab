import json

import pytest

from rewarm.data.shard_source import ShardSource
from rewarm.errors import CheckpointError, DataError
from rewarm.runs.metrics_file import read_metrics
from rewarm.training.validation_loss import measure_checkpoint


def test_eval_gives_the_losses_of_the_metrics(trained_run, corpora, command):
    sets = [
        f"--data=upstream={corpora}/upstream/val",
        f"--data=downstream={corpora}/downstream/val",
    ]
    tenth_step = trained_run / "checkpoints" / "step-00000010"
    code, output, errors = command("eval", trained_run, tenth_step, *sets, "--json")
    assert code == 0, errors
    last, tenth = json.loads(output)
    assert last["checkpoint"] == str(trained_run)
    measured = {
        x["step"]: x for x in read_metrics(trained_run / "metrics.jsonl") if x["kind"] == "evaluate"
    }
    assert last["downstream/loss"] == pytest.approx(measured[20]["downstream/loss"], abs=1e-6)
    assert tenth["downstream/loss"] == pytest.approx(measured[10]["downstream/loss"], abs=1e-6)
    assert last["downstream/perplexity"] == pytest.approx(measured[20]["downstream/perplexity"])


def test_eval_prints_a_table_with_the_difference_to_the_first(trained_run, corpora, command):
    data = f"--data=upstream={corpora}/upstream/val"
    _, output, _ = command("eval", trained_run / "checkpoints" / "step-00000010", trained_run, data)
    header, first, second = output.splitlines()
    assert header.split() == ["checkpoint", "set", "loss", "perplexity", "tokens", "vs", "first"]
    difference = float(second.split()[-1])
    assert difference == pytest.approx(
        float(second.split()[2]) - float(first.split()[2]), abs=1.1e-4
    )
    assert difference < 0


def test_the_microbatch_does_not_matter(trained_run, corpora):
    sets = {"upstream": ShardSource(str(corpora / "upstream" / "val"))}
    settings = {"context": 32, "tokens": None, "precision": "fp32"}
    losses = [
        measure_checkpoint(str(trained_run), sets, microbatch=n, **settings)["upstream"]
        for n in (1, 7)
    ]
    assert losses[0].loss == pytest.approx(losses[1].loss, abs=1e-6)
    assert losses[0].tokens == losses[1].tokens


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "--data=a={val}"], 3, "no such folder, and not a hub name"),
        (["{run}", "--data=nonsense"], 2, "should be NAME=DIR"),
        (["{run}", "--data=a=nowhere"], 3, "nowhere: no such folder"),
        (["{run}", "--data=a={run}"], 3, "no index.json in this folder"),
        (["{run}", "--data=a=b", "--precision=int4"], 2, "should be fp32, bf16 or fp16"),
    ],
)
def test_bad_input_ends_with_one_message(trained_run, corpora, command, arguments, code, said):
    val = corpora / "third" / "val"
    words = (argument.format(run=trained_run, val=val) for argument in arguments)
    exit_code, _, errors = command("eval", *words)
    assert exit_code == code
    # Typer wraps usage errors into a box.
    assert said in " ".join(errors.replace("│", "").split())
    assert "Traceback" not in errors


def test_a_set_smaller_than_a_block_is_refused(trained_run, corpora, tmp_path):
    from text_corpora import write_texts

    from rewarm.data.shard_writer import write_shards
    from rewarm.data.tokenizer import load_tokenizer

    text = write_texts(tmp_path / "t.jsonl", "third", documents=1)
    write_shards([text], tmp_path / "small", load_tokenizer(str(corpora / "third" / "train")))
    with pytest.raises(DataError, match="too little data to measure on"):
        measure_checkpoint(
            str(trained_run), {"a": ShardSource(str(tmp_path / "small"))}, context=60, microbatch=1,
            tokens=30, precision="fp32",
        )  # fmt: skip


def test_a_model_that_is_not_neox_is_refused(trained_run, tmp_path, corpora):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type is 'bert'; rewarm trains 'gpt_neox'"):
        measure_checkpoint(
            str(tmp_path / "bert"),
            {"a": ShardSource(str(corpora / "third" / "val"))},
            context=None,
            microbatch=1,
            tokens=None,
            precision="fp32",
        )
