"""Continuations of prompts, against those of transformers."""

import pytest
import torch

from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.load_weights import load_model
from rewarm.data.prompts import EncodedPrompts, encode_prompts
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import CheckpointError, DataError
from rewarm.training.text_samples import continue_prompts

PROMPTS = ["ein neues Korpus", "the", "das Modell lernt es"]


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    return trained_run / "checkpoints" / "step-00000020"


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(read_architecture(checkpoint), checkpoint)[0]


def encoded(checkpoint, texts=PROMPTS, tokens=12) -> EncodedPrompts:
    tokenizer = load_tokenizer(str(checkpoint))
    return encode_prompts(tokenizer, texts, tokens=tokens, limit=64, limit_name="data.context")


def test_greedy_texts_are_those_of_transformers(checkpoint, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for prompt, text in continue_prompts(model, encoded(checkpoint)):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        assert prompt + text == tokenizer.decode(ids, skip_special_tokens=True)
        assert text


def test_a_temperature_near_zero_draws_the_most_probable_tokens(checkpoint, model):
    greedy = continue_prompts(model, encoded(checkpoint))
    assert continue_prompts(model, encoded(checkpoint), temperature=1e-320, seed=3) == greedy


def test_other_prompts_do_not_change_a_text(checkpoint, model):
    together = continue_prompts(model, encoded(checkpoint), temperature=1.0, seed=3)
    alone = [
        continue_prompts(model, encoded(checkpoint, [prompt]), temperature=1.0, seed=3)[0]
        for prompt in PROMPTS
    ]
    assert together == alone


def test_draws_depend_on_their_seed_only(checkpoint, model):
    def drawn(seed):
        return continue_prompts(model, encoded(checkpoint), temperature=1.0, seed=seed)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert drawn(3) == drawn(3) != drawn(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_text_ends_before_end_of_text(checkpoint, model):
    prompts = encoded(checkpoint)
    [first, *_] = continue_prompts(model, prompts)
    third_id = prompts.tokenizer.encoder.encode(PROMPTS[0] + first.text).ids[
        len(prompts.ids[0]) + 2
    ]
    ends = prompts._replace(tokenizer=prompts.tokenizer._replace(eos_token_id=third_id))
    [shorter, *_] = continue_prompts(model, ends)
    assert first.text.startswith(shorter.text)
    assert len(shorter.text) < len(first.text)


def test_prompts_that_cannot_be_continued_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"has 1 token, and 64 more make 65; expected at"):
        encoded(checkpoint, ["the"], tokens=64)
    with pytest.raises(DataError, match="the prompt '' has no tokens"):
        encoded(checkpoint, [""])
