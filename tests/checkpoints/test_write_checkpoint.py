import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rewarm.checkpoints import write_checkpoint
from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.load_weights import load_weights
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.data.shard_source import ShardSource
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train
from rewarm.training.validation_loss import measure_loss


@pytest.fixture
def saved(recipe_file):
    return train(load_recipe(recipe_file, ["tokens=2048", "every.evaluate=null"]))


def test_its_loss_is_the_one_that_transformers_computes(saved, corpora):
    folder = corpora / "upstream" / "val"
    model = NeoX(read_architecture(saved))
    load_weights(model, saved)
    ours = measure_loss(model, ShardSource(str(folder)), context=64, microbatch=3)
    from rewarm.data.stored_blocks import StoredBlocks

    theirs = AutoModelForCausalLM.from_pretrained(saved)
    total = 0.0
    blocks = list(StoredBlocks(ShardSource(str(folder)), context=64))
    for block in blocks:
        tokens = torch.tensor(block.astype("int64"))[None]
        with torch.no_grad():
            total += theirs(tokens, labels=tokens).loss.item()  # shifts the labels by itself
    assert ours.loss == pytest.approx(total / len(blocks), abs=1e-5)
    assert ours.tokens == 64 * len(blocks)


def test_the_manifest_names_every_file(saved):
    files = json.loads((saved / "MANIFEST.json").read_text())["files"]
    assert {path.name for path in saved.iterdir()} == {*files, "MANIFEST.json"}
    assert not [path for path in saved.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    verify_checkpoint(saved)


def test_no_rate_is_stored_with_the_moments(saved):
    names = {name.split("/")[0] for name in load_file(saved / "optimizer.safetensors")}
    assert names == {"exp_avg", "exp_avg_sq", "updates"}


def test_a_full_disk_leaves_the_earlier_checkpoints(recipe_file, saved, monkeypatch, tmp_path):
    import errno

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        write_checkpoint, "save_file", full
    )  # stands for the disk, which cannot be filled here
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(load_recipe(recipe_file, ["tokens=4096"]), resume=True, accept_changes=True)
    verify_checkpoint(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
