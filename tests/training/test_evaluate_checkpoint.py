"""Losses of checkpoints on named validation sets."""

import pytest
import torch
from training_runs import run

from rewarm.data.shard_source import ShardSource
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.stored_blocks import TextBytes
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import CheckpointError, DataError
from rewarm.model.attention_backend import (
    cudnn_version,
    observed_backend,
    preferred_backend,
    set_first_backend,
)
from rewarm.quantities import perplexity
from rewarm.training.evaluate_checkpoint import CheckpointEvaluator
from rewarm.training.validation_loss import SetLoss


@pytest.fixture
def checkpoint(recipe_text, tmp_path):
    return run(recipe_text, tmp_path / "run", tokens=2048)


def measure(name, shards, *, context=None, microbatch=1, tokens=None):
    """The loss of a checkpoint on one folder of shards."""
    sources = {"set": ShardSource(str(shards))}
    evaluator = CheckpointEvaluator(
        sources, context=context, microbatch=microbatch, tokens=tokens, precision="fp32"
    )
    return evaluator.measure(str(name)).losses["set"]


def test_the_microbatch_does_not_matter(checkpoint, corpora):
    shards = corpora / "upstream" / "val"
    one, seven = (measure(checkpoint, shards, context=32, microbatch=n) for n in (1, 7))
    assert one.loss == pytest.approx(seven.loss, abs=1e-6)
    assert one.tokens == seven.tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_preferred_attention_runs(checkpoint, corpora):
    shards = {"set": ShardSource(str(corpora / "upstream" / "val"))}
    capability = torch.cuda.get_device_capability()
    set_first_backend("math")
    observed = observed_backend(
        lambda: CheckpointEvaluator(shards, context=64, microbatch=1, precision="bf16").measure(
            str(checkpoint)
        )
    )
    assert observed == preferred_backend(capability, cudnn_version(), deterministic=False)


def test_perplexity_is_of_the_loss():
    assert SetLoss(2.0, 640).perplexity == perplexity(2.0) == pytest.approx(7.389056)


def test_bits_per_byte():
    # 640 tokens of 2 nats are 1,280 nats, or 1,846.6 bits, on 1,600 bytes.
    loss = SetLoss(2.0, 640, TextBytes(1600, is_counted=True))
    assert loss.bits_per_byte == pytest.approx(1.154156, abs=1e-6)
    assert SetLoss(2.0, 640).bits_per_byte is None
    assert SetLoss(2.0, 640, TextBytes(0, is_counted=True)).bits_per_byte is None


def test_a_set_smaller_than_a_block_is_refused(checkpoint, corpora, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "the rate"}\n')
    write_shards([text], tmp_path / "small", load_tokenizer(str(corpora / "third" / "train")))
    with pytest.raises(DataError, match="too little data to measure a loss on"):
        measure(checkpoint, tmp_path / "small", context=60, tokens=60)
    with pytest.raises(DataError, match="30 tokens, less than one sequence of 60"):
        measure(checkpoint, tmp_path / "small", context=60, tokens=30)


def test_a_model_that_is_not_neox_is_refused(tmp_path, corpora):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type is 'bert'; rewarm trains 'gpt_neox'"):
        measure(tmp_path / "bert", corpora / "third" / "val")
