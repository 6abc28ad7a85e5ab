"""A base with new tokens: ids, rows, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from text_corpora import WORDS, write_texts
from training_runs import metrics, run

from recipes import recipe_of
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import Preempted
from rewarm.runs.resolve_run import preflight

EMBEDDING, HEAD = "gpt_neox.embed_in.weight", "embed_out.weight"
NEW = [f"{word}{number}" for number in range(20) for word in WORDS["downstream"].split()]


def extended(base, folder, words=NEW):
    """Writes the base's tokenizer with words as new entries."""
    encoder = load_tokenizer(str(base)).encoder
    encoder.add_tokens(words)
    folder.mkdir()
    encoder.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def base(trained_run):
    """A checkpoint of 512 rows, of which the tokenizer's entries use fewer."""
    return trained_run / "checkpoints" / "step-00000020"


@pytest.fixture
def continued(base, recipe_text, corpora, tmp_path):
    """A recipe that continues it with new tokens."""
    tokenizer = extended(base, tmp_path / "tokenizer")
    for name in ("downstream", "upstream"):
        text = write_texts(tmp_path / f"{name}.jsonl", name, documents=100)
        write_shards(
            [text], tmp_path / "new" / name, load_tokenizer(str(tokenizer)), validation=0.1
        )
    text = recipe_text.replace(
        "architecture: {layers: 2, hidden: 32, heads: 2, vocabulary: 512, positions: 64}",
        f"base: {base}\n  tokenizer: {tokenizer}",
    )
    return text.replace(str(corpora), str(tmp_path / "new"))


def test_new_rows_are_the_mean_and_the_checkpoint_has_the_new_tokenizer(
    base, continued, tmp_path, capsys
):
    checkpoint = run(
        continued, tmp_path / "run", tokens=1024, schedule="{name: constant, lr: 1e-9}"
    )
    said = " ".join(capsys.readouterr().err.split())
    entries = load_tokenizer(str(base)).vocabulary
    assert entries < 512 < entries + len(NEW) < 640
    assert (
        f"new tokens: {entries} → {entries + len(NEW)} entries in 640 rows; {512 - entries} that "
        "no entry of the base used and 128 added become the mean of those that the base's entries "
        "have"
    ) in said
    old, new = (load_file(folder / "model.safetensors") for folder in (base, checkpoint))
    for name in (EMBEDDING, HEAD):
        assert new[name].shape == (640, 32)
        torch.testing.assert_close(new[name][:entries], old[name][:entries], atol=1e-6, rtol=0)
        mean = old[name][:entries].mean(0).expand(640 - entries, -1)
        torch.testing.assert_close(new[name][entries:], mean, atol=1e-6, rtol=0)
    assert json.loads((checkpoint / "config.json").read_text())["vocab_size"] == 640
    assert load_tokenizer(str(checkpoint)).vocabulary == entries + len(NEW)
    run(continued, tmp_path / "longer", tokens=10240)
    losses = [line["downstream/loss"] for line in metrics(tmp_path / "longer", "evaluate")]
    assert losses[-1] < losses[0]


def test_a_resume_takes_the_rows_of_the_checkpoint(continued, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(continued, whole)
    with pytest.raises(Preempted, match="stopped after step 7"):
        run(continued, parts, until=7)
    run(continued, parts, resume=True)
    assert metrics(parts) == metrics(whole)


def test_rows_are_those_of_transformers(recipe_text, base, tmp_path):
    from transformers import AutoModelForCausalLM

    from rewarm.checkpoints.find_checkpoint import read_architecture
    from rewarm.checkpoints.load_weights import load_weights
    from rewarm.data.vocabulary_growth import find_growth
    from rewarm.model.neox import NeoX

    entries = load_tokenizer(str(base)).vocabulary  # a base without padding
    checkpoint = run(
        recipe_text, tmp_path / "run", tokens=4096, model__architecture__vocabulary=entries
    )
    growth = find_growth(str(extended(base, tmp_path / "t")), checkpoint, entries)
    assert growth.rows == entries + len(NEW)  # no padding where the base has none
    architecture = read_architecture(checkpoint).model_copy(update={"vocabulary": growth.rows})
    model = NeoX(architecture)
    load_weights(model, checkpoint, growth)
    other = AutoModelForCausalLM.from_pretrained(checkpoint)
    # It draws from a normal distribution around the mean, with a covariance of 1e-9 of the rows'.
    other.resize_token_embeddings(growth.rows, mean_resizing=True)
    ours = model.state_dict()
    theirs = other.get_input_embeddings().weight, other.get_output_embeddings().weight
    for name, tensor in zip((EMBEDDING, HEAD), theirs, strict=True):
        torch.testing.assert_close(ours[name], tensor.detach(), atol=1e-4, rtol=0)


def test_what_does_not_fit_together_is_refused(base, continued, corpora, tmp_path):
    def problems(*overrides):
        return [str(p) for p in preflight(recipe_of(continued, f"run={tmp_path}/x", *overrides))]

    assert problems() == []
    old = f"data.train.downstream.shards={corpora}/downstream/train"
    assert any("written with a different tokenizer than" in p for p in problems(old))
    old = f"data.validation.downstream.shards={corpora}/downstream/val"
    assert any("written with a different tokenizer than" in p for p in problems(old))
    [problem] = problems("optimizer.carry=true")
    assert "optimizer.carry: should be false with model.tokenizer" in problem
    same = extended(base, tmp_path / "same", [])
    assert any("no entry is new" in p for p in problems(f"model.tokenizer={same}"))
    document = json.loads((base / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (same / "tokenizer.json").write_text(json.dumps(document))
    [problem, *_] = problems(f"model.tokenizer={same}")
    assert "2 of the base's" in problem
    assert "have another id here or are missing, such as 'a'" in problem
    missing = problems(f"model.tokenizer={tmp_path}/none")
    assert any("no such file or folder; model.tokenizer should be a folder" in p for p in missing)
