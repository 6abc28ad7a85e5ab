"""A checkpoint is a complete Hugging Face model; a failed save leaves no files."""

import errno
import json
import os
import shutil
import stat

import pytest
import torch
from training_runs import run
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rewarm.checkpoints import write_checkpoint
from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.load_weights import load_weights
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train
from rewarm.training.validation_loss import measure_loss


@pytest.fixture
def checkpoint(recipe_file):
    return train(load_recipe(recipe_file, ["tokens=2048", "every.evaluate=null"]))


def test_loss_equals_the_loss_of_transformers(checkpoint, corpora):
    blocks = StoredBlocks(ShardSource(str(corpora / "upstream" / "val")), context=64)
    model = NeoX(read_architecture(checkpoint))
    load_weights(model, checkpoint)
    measured = measure_loss(model, blocks, microbatch=3)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint)
    losses = []
    for block in blocks:
        tokens = torch.tensor(block.astype("int64"))[None]
        with torch.no_grad():
            losses.append(reference(tokens, labels=tokens).loss.item())  # it shifts the labels
    assert measured.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert measured.tokens == 64 * len(losses)


def test_another_gelu_than_the_bases_is_computed_and_written(checkpoint, recipe_file, tmp_path):
    """Pythia's config.json says exact GELU, and GPT-NeoX trained it with the approximation."""
    assert read_architecture(checkpoint).activation == "gelu"
    model = f"{{base: {checkpoint}, activation: gelu_pytorch_tanh}}"
    settings = [f"model={model}", f"run={tmp_path}/tanh", "tokens=2048", "every.evaluate=null"]
    continued = train(load_recipe(recipe_file, settings))
    assert read_architecture(continued).activation == "gelu_pytorch_tanh"
    reference = AutoModelForCausalLM.from_pretrained(continued)
    assert reference.config.hidden_act == "gelu_pytorch_tanh"
    tokens = torch.arange(32)[None]
    logits = {}
    for name in ("gelu", "gelu_pytorch_tanh"):
        architecture = read_architecture(continued).model_copy(update={"activation": name})
        ours = NeoX(architecture)
        load_weights(ours, continued)
        with torch.no_grad():
            logits[name] = ours(tokens)
    with torch.no_grad():
        expected = reference(tokens).logits
    assert (logits["gelu_pytorch_tanh"] - expected).abs().max() < 1e-6
    assert (logits["gelu"] - expected).abs().max() > 1e-5


def test_no_file_of_a_checkpoint_is_a_pickle(checkpoint):
    assert not [path for path in checkpoint.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_a_full_disk_leaves_the_earlier_checkpoints(recipe_file, checkpoint, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(load_recipe(recipe_file, ["tokens=4096"]), resume=True, accept_changes=True)
    verify_checkpoint(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_tokenizer_of_transformers_5_is_written_as_all_versions_read_it(
    recipe_text, corpora, tmp_path
):
    """transformers 4 has neither TokenizersBackend nor extra special tokens in a list."""
    shards = shutil.copytree(corpora / "downstream", tmp_path / "downstream")
    source = PreTrainedTokenizerFast(
        tokenizer_file=str(corpora / "downstream" / "train" / "tokenizer.json"),
        eos_token="<|endoftext|>",
        extra_special_tokens=["<|endoftext|>"],
    )
    source.save_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / "tokenizer_config.json"
    written = {
        "tokenizer_class": "TokenizersBackend",
        "extra_special_tokens": ["<|endoftext|>"],
    }
    assert json.loads(config.read_text()).items() >= written.items()
    shutil.copy(config, shards / "train")
    text = recipe_text.replace(f"{corpora}/downstream", str(shards))
    checkpoint = run(text, tmp_path / "run", tokens=1024, every__evaluate="null")
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    expected = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    expected["additional_special_tokens"] = expected.pop("extra_special_tokens")
    assert settings == expected
    reread = AutoTokenizer.from_pretrained(checkpoint)
    assert reread.extra_special_tokens == ["<|endoftext|>"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_allows(recipe_file, tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        checkpoint = train(load_recipe(recipe_file, ["tokens=1024", "every.evaluate=null"]))
    finally:
        os.umask(previous)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert checkpoint / "optimizer.safetensors" in files
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        path.name: oct(mode) for path in files
    }
