"""What rewarm saves is taken by others as it is: transformers, lm_eval, vLLM's loader."""

import json
import logging
import math
import os
import random
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from text_corpora import WORDS
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, pipeline
from transformers.utils import logging as transformers_logging

from rewarm.checkpoints.find_checkpoint import locate_base, read_architecture
from rewarm.checkpoints.load_weights import load_weights
from rewarm.data.shard_writer import ShardWriter
from rewarm.data.tokenizer import load_tokenizer
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train

EOS = 0  # of the conftest tokenizer


@pytest.fixture(params=["untied", "tied"])
def saved(request, recipe_file):
    """A checkpoint two steps old."""
    tied = f"model.architecture.tied={json.dumps(request.param == 'tied')}"
    return train(load_recipe(recipe_file, ["tokens=2048", "data.validation={}", tied]))


@pytest.fixture
def without_a_word(caplog):
    """Fails the test if transformers logs a warning; what Python warns of is an error anyway."""
    transformers_logging.warning_once.cache_clear()  # an earlier test may have heard it
    transformers_logging.enable_propagation()
    yield
    transformers_logging.disable_propagation()
    # The pipelines of transformers 5.3 and 5.17 warn of their own defaults so, whatever the model.
    of_itself = (
        *("Passing `generation_config` together with", "Both `max_new_tokens` (="),
        "Ignoring clean_up_tokenization_spaces=True",
    )
    warned = [one.message for one in caplog.get_records("call") if one.levelno >= logging.WARNING]
    assert not [message for message in warned if not message.startswith(of_itself)]


@pytest.mark.usefixtures("without_a_word")
def test_transformers_reads_and_writes_it_back_bit_for_bit(saved, tmp_path):
    stored = load_file(saved / "model.safetensors")
    theirs, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())  # missing, unexpected, mismatched
    assert theirs.dtype == torch.float32
    # transformers calls the output layer embed_out or lm_head, as its version likes.
    read = {f"gpt_neox.{name}": tensor for name, tensor in theirs.base_model.state_dict().items()}
    if not theirs.config.tie_word_embeddings:
        read["embed_out.weight"] = theirs.get_output_embeddings().weight
    assert read.keys() == stored.keys()
    assert all(torch.equal(read[name], stored[name]) for name in stored)

    theirs.save_pretrained(tmp_path / "back")
    AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "back")
    again = load_file(tmp_path / "back" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)

    base = locate_base(str(tmp_path / "back"))
    assert base.kind == "local model"
    assert base.architecture == read_architecture(saved)
    ours = NeoX(base.architecture)
    load_weights(ours, base.directory)
    embedding = stored["gpt_neox.embed_in.weight"]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, stored.get(name, embedding)), name
    assert load_tokenizer(str(base.directory)).digest == load_tokenizer(str(saved)).digest


@pytest.mark.usefixtures("without_a_word")
def test_its_tokenizer_gives_the_tokens_of_the_shards(saved, corpora):
    text = "the learning rate<|endoftext|>ein neues Korpus  kommt"
    theirs = AutoTokenizer.from_pretrained(saved)
    ours = load_tokenizer(str(corpora / "upstream" / "train")).encoder
    assert theirs(text)["input_ids"] == ours.encode(text, add_special_tokens=False).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (EOS, EOS)
    assert theirs.model_max_length == 64


@pytest.mark.usefixtures("without_a_word")
def test_a_pipeline_writes_text(saved):
    """With max_new_tokens, without which transformers warns for every model.

    A max_length in generation_config.json would still that, and warn all who give max_new_tokens.
    """
    said = json.loads((saved / "generation_config.json").read_text())
    assert said == {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}
    writer = pipeline("text-generation", model=str(saved))
    greedily = {"max_new_tokens": 5, "do_sample": True, "top_k": 1}
    (alone,) = writer("the learning rate", **greedily)
    assert alone["generated_text"].startswith("the learning rate")
    assert len(alone["generated_text"]) > len("the learning rate")

    # Like Pythia's, the tokenizer names no pad token: one that is end-of-text would make the usual
    # fine-tuning collators leave end-of-text out of the loss. Who wants batches says so.
    writer.tokenizer.pad_token = writer.tokenizer.eos_token
    prompts = ["the learning rate", "ein neues Korpus kommt und das Modell"]
    batched = writer(prompts, batch_size=2, **greedily)
    assert batched[0] == [alone]


@pytest.mark.usefixtures("without_a_word")
def test_generate_stops_at_end_of_text_and_pads_with_it(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    prompts = AutoTokenizer.from_pretrained(saved)(
        ["the learning rate of", "the rate of a"], return_tensors="pt"
    )
    start = prompts["input_ids"].shape[1]

    def end_the_first_after_two(tokens, scores):
        scores[:, EOS] = -math.inf
        if tokens.shape[1] == start + 2:
            scores[0, EOS] = math.inf
        return scores

    first, second = model.generate(
        **prompts,
        max_new_tokens=8,
        do_sample=False,
        logits_processor=LogitsProcessorList([end_the_first_after_two]),
    ).tolist()
    assert [token == EOS for token in first[start:]] == [False] * 2 + [True] * 6
    assert len(second) == start + 8
    assert EOS not in second


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("lm_eval") and find_spec("accelerate")), reason="needs the extra lm-eval"
)
def test_lm_eval_measures_the_loss_that_rewarm_eval_does(recipe_file, corpora, tmp_path):
    """`lm_eval --model hf` and `rewarm eval`, on the same tokens.

    A rolling log-likelihood of lm_eval puts its prefix token, which is the tokenizer's
    beginning- or end-of-text, before a document of n tokens, and cuts the n + 1 into windows of
    max_length + 1 that share one token; max_length is the config's max_position_embeddings.

        lm_eval    <prefix>       t1 ... tn                  windows of 64 + 1
        rewarm     <end-of-text>  t1 ... tn  <end-of-text>   blocks of 64 + 1, the context

    So the shards hold an empty document, which is an end-of-text alone, and then the same text.
    Its n is a multiple of 64, because of the rest lm_eval measures it and rewarm drops it. There
    are end-of-text tokens inside too, where rewarm would join documents. lm_eval says bits per
    byte of the text; times bytes times ln 2, over n, is the loss per token.
    """
    saved = train(load_recipe(recipe_file, ["data.validation={}"]))
    ours = load_tokenizer(str(corpora / "upstream" / "train"))
    draw = random.Random(0)
    text = "<|endoftext|>".join(
        " ".join(draw.choices(words.split(), k=150)) for words in WORDS.values()
    )

    def encoded():
        return ours.encoder.encode(text, add_special_tokens=False).ids

    while len(encoded()) % 64:
        text = text[:-1]
    count = len(encoded())
    assert count >= 5 * 64
    assert encoded().count(EOS) == len(WORDS) - 1

    with ShardWriter(tmp_path / "shards", ours, shard_tokens=10**6) as writer:
        writer.write(np.array([EOS]))
        writer.write(np.array([*encoded(), EOS]))
        writer.finish()
    said = subprocess.run(
        [sys.executable, "-m", "rewarm", "eval", saved, f"--data=mini={tmp_path}/shards", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (measured,) = json.loads(said.stdout)
    assert measured["mini/tokens"] == count

    (tmp_path / "mini.jsonl").write_text(json.dumps({"text": text}) + "\n")
    task = {
        "task": "mini",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "mini.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "mini.yaml").write_text(json.dumps(task))  # JSON is YAML too
    # In a process of its own, as people run it; what it and its dependencies warn of is not ours.
    subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model=hf", f"--model_args=pretrained={saved}",
            "--device=cpu", "--tasks=mini", f"--include_path={tmp_path}",
            f"--output_path={tmp_path}/said.json",
        ],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )  # fmt: skip
    (results,) = tmp_path.glob("said_*.json")
    bits = json.loads(results.read_text())["results"]["mini"]["bits_per_byte,none"]
    theirs = bits * len(text.encode()) * math.log(2) / count
    print(f"rewarm eval {measured['mini/loss']:.8f}, lm_eval {theirs:.8f}")
    assert measured["mini/loss"] == pytest.approx(theirs, abs=1e-4)


VLLM_READS = {
    "architectures": list,
    "model_type": str,
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "max_position_embeddings": int,
    "hidden_act": str,
    "layer_norm_eps": float,
    "use_parallel_residual": bool,
    "attention_bias": bool,
    "tie_word_embeddings": bool,
    "rotary_pct": float,
    "rope_parameters": dict,
    "torch_dtype": str,
    "bos_token_id": int,
    "eos_token_id": int,
}


def test_vllm_finds_the_keys_and_tensors_that_its_loader_reads(saved):
    """vLLM itself is not run here: it is too large for the tests. This is what its source reads.

    Read at v0.12.0, which has a GPT-NeoX model of its own (the keys above, and the tensor names
    and shapes below), and at v0.33.0, which hands the model to transformers and reads fewer keys
    by itself. Both take every *.safetensors of a folder for weights, unless
    model.safetensors.index.json says which are; optimizer.safetensors is not.

    Once, by hand, a CPU build of v0.32.0 loaded checkpoints like these (heads of 64): greedy text
    as transformers writes it, log-probabilities of the prompts within 2e-6.
    """
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    assert {key: type(config.get(key)) for key in VLLM_READS} == VLLM_READS
    assert config["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": config["rotary_emb_base"],
        "partial_rotary_factor": config["rotary_pct"],
    }
    assert config["hidden_size"] % config["num_attention_heads"] == 0

    folder = {path.name for path in saved.glob("*.safetensors")}
    assert folder == {"model.safetensors", "optimizer.safetensors"}
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    stored = load_file(saved / "model.safetensors")
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())

    wide, inner, vocabulary = 32, 128, 512
    a_layer = {
        "input_layernorm.weight": (wide,),
        "input_layernorm.bias": (wide,),
        "post_attention_layernorm.weight": (wide,),
        "post_attention_layernorm.bias": (wide,),
        "attention.query_key_value.weight": (3 * wide, wide),
        "attention.query_key_value.bias": (3 * wide,),
        "attention.dense.weight": (wide, wide),
        "attention.dense.bias": (wide,),
        "mlp.dense_h_to_4h.weight": (inner, wide),
        "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (wide, inner),
        "mlp.dense_4h_to_h.bias": (wide,),
    }
    wanted = {
        "gpt_neox.embed_in.weight": (vocabulary, wide),
        "gpt_neox.final_layer_norm.weight": (wide,),
        "gpt_neox.final_layer_norm.bias": (wide,),
        **{f"gpt_neox.layers.{n}.{k}": shape for n in (0, 1) for k, shape in a_layer.items()},
    }
    if not config["tie_word_embeddings"]:
        wanted["embed_out.weight"] = (vocabulary, wide)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == wanted
