"""Other programs read rewarm's checkpoints unchanged: transformers, lm_eval, vLLM's loader."""

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
from rewarm.data.sharding.shard_folder import ShardWriter
from rewarm.data.tokenizer import load_tokenizer
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train

EOS = 0  # of the tokenizer in conftest.py


@pytest.fixture(params=["untied", "tied"])
def checkpoint(request, recipe_file):
    """A checkpoint after two steps."""
    tied = f"model.architecture.tied={json.dumps(request.param == 'tied')}"
    return train(load_recipe(recipe_file, ["tokens=2048", "data.validation={}", tied]))


@pytest.fixture
def no_warnings(caplog):
    """Fails the test if transformers logs a warning; Python's own warnings are errors anyway."""
    transformers_logging.warning_once.cache_clear()  # an earlier test may have triggered it
    transformers_logging.enable_propagation()
    yield
    transformers_logging.disable_propagation()
    # The pipelines of transformers 5.3 and 5.17 warn about their own defaults, for every model.
    allowed = (
        *("Passing `generation_config` together with", "Both `max_new_tokens` (="),
        "Ignoring clean_up_tokenization_spaces=True",
    )
    records = [r for r in caplog.get_records("call") if r.levelno >= logging.WARNING]
    assert not [r.message for r in records if not r.message.startswith(allowed)]


@pytest.mark.usefixtures("no_warnings")
def test_transformers_reads_and_writes_it_bit_for_bit(checkpoint, tmp_path):
    stored = load_file(checkpoint / "model.safetensors")
    reference, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())  # missing, unexpected, mismatched
    assert reference.dtype == torch.float32
    # Versions of transformers differ in the name of the output layer: embed_out or lm_head.
    trunk = reference.base_model.state_dict()
    read = {f"gpt_neox.{name}": tensor for name, tensor in trunk.items()}
    if not reference.config.tie_word_embeddings:
        read["embed_out.weight"] = reference.get_output_embeddings().weight
    assert read.keys() == stored.keys()
    assert all(torch.equal(read[name], stored[name]) for name in stored)

    reference.save_pretrained(tmp_path / "written")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "written")
    written = load_file(tmp_path / "written" / "model.safetensors")
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)

    base = locate_base(str(tmp_path / "written"))
    assert base.kind == "local model"
    assert base.architecture == read_architecture(checkpoint)
    model = NeoX(base.architecture)
    load_weights(model, base.directory)
    embedding = stored["gpt_neox.embed_in.weight"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored.get(name, embedding)), name
    assert load_tokenizer(str(base.directory)).digest == load_tokenizer(str(checkpoint)).digest


@pytest.mark.usefixtures("no_warnings")
def test_its_tokenizer_is_that_of_the_shards(checkpoint, corpora):
    text = "the learning rate<|endoftext|>ein neues Korpus  kommt"
    reference = AutoTokenizer.from_pretrained(checkpoint)
    encoder = load_tokenizer(str(corpora / "upstream" / "train")).encoder
    assert reference(text)["input_ids"] == encoder.encode(text, add_special_tokens=False).ids
    assert reference.decode(reference(text)["input_ids"]) == text
    assert (reference.bos_token_id, reference.eos_token_id) == (EOS, EOS)
    assert reference.model_max_length == 64


@pytest.mark.usefixtures("no_warnings")
def test_a_pipeline_generates_text(checkpoint):
    """With max_new_tokens: without it transformers warns for every model.

    A max_length in generation_config.json would silence that warning, but cause another one for
    everyone who sets max_new_tokens.
    """
    config = json.loads((checkpoint / "generation_config.json").read_text())
    assert config == {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}
    generator = pipeline("text-generation", model=str(checkpoint))
    greedy = {"max_new_tokens": 5, "do_sample": True, "top_k": 1}
    (single,) = generator("the learning rate", **greedy)
    assert single["generated_text"].startswith("the learning rate")
    assert len(single["generated_text"]) > len("the learning rate")

    # Like Pythia's, the tokenizer has no pad token: with end-of-text as the pad token, the usual
    # fine-tuning collators would exclude end-of-text from the loss. Batches need it to be set.
    generator.tokenizer.pad_token = generator.tokenizer.eos_token
    prompts = ["the learning rate", "ein neues Korpus kommt und das Modell"]
    batched = generator(prompts, batch_size=2, **greedy)
    assert batched[0] == [single]


@pytest.mark.usefixtures("no_warnings")
def test_generate_stops_at_end_of_text_and_pads_with_it(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts = AutoTokenizer.from_pretrained(checkpoint)(
        ["the learning rate of", "the rate of a"], return_tensors="pt"
    )
    start = prompts["input_ids"].shape[1]

    def end_first_sequence_after_two_tokens(tokens, scores):
        scores[:, EOS] = -math.inf
        if tokens.shape[1] == start + 2:
            scores[0, EOS] = math.inf
        return scores

    first, second = model.generate(
        **prompts,
        max_new_tokens=8,
        do_sample=False,
        logits_processor=LogitsProcessorList([end_first_sequence_after_two_tokens]),
    ).tolist()
    assert [token == EOS for token in first[start:]] == [False] * 2 + [True] * 6
    assert len(second) == start + 8
    assert EOS not in second


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("lm_eval") and find_spec("accelerate")), reason="needs the extra lm-eval"
)
def test_lm_eval_and_rewarm_eval_measure_the_same_loss(recipe_file, corpora, tmp_path):
    """`lm_eval --model hf` and `rewarm eval`, on the same tokens.

    For a rolling log-likelihood, lm_eval puts a prefix token (the tokenizer's beginning- or
    end-of-text) before a document of n tokens, and cuts the n + 1 into windows of max_length + 1
    that share one token; max_length is the config's max_position_embeddings.

        lm_eval    <prefix>       t1 ... tn                  windows of 64 + 1
        rewarm     <end-of-text>  t1 ... tn  <end-of-text>   blocks of 64 + 1, the context

    So the shards contain an empty document, which is a single end-of-text, and then the same text.
    n is a multiple of 64, because lm_eval measures a remainder and rewarm drops it. The text
    contains end-of-text tokens, as between documents that rewarm concatenates. lm_eval reports bits
    per byte of the text; times bytes times ln 2, over n, this is the loss per token.
    """
    checkpoint = train(load_recipe(recipe_file, ["data.validation={}"]))
    tokenizer = load_tokenizer(str(corpora / "upstream" / "train"))
    rng = random.Random(0)
    text = "<|endoftext|>".join(
        " ".join(rng.choices(words.split(), k=150)) for words in WORDS.values()
    )

    def encoded():
        return tokenizer.encoder.encode(text, add_special_tokens=False).ids

    while len(encoded()) % 64:
        text = text[:-1]
    count = len(encoded())
    assert count >= 5 * 64
    assert encoded().count(EOS) == len(WORDS) - 1

    with ShardWriter(tmp_path / "shards", tokenizer, shard_tokens=10**6) as writer:
        writer.write_document(np.array([EOS]))
        writer.write_document(np.array([*encoded(), EOS]))
        writer.finish()
    evaluation = subprocess.run(
        [
            sys.executable, "-m", "rewarm", "eval", checkpoint, f"--data=mini={tmp_path}/shards",
            "--json",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (measured,) = json.loads(evaluation.stdout)
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
    # In a process of its own, as users run it: warnings of its dependencies are not errors here.
    subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model=hf", f"--model_args=pretrained={checkpoint}",
            "--device=cpu", "--tasks=mini", f"--include_path={tmp_path}",
            f"--output_path={tmp_path}/results.json",
        ],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )  # fmt: skip
    (results_file,) = tmp_path.glob("results_*.json")
    bits = json.loads(results_file.read_text())["results"]["mini"]["bits_per_byte,none"]
    lm_eval_loss = bits * len(text.encode()) * math.log(2) / count
    print(f"rewarm eval {measured['mini/loss']:.8f}, lm_eval {lm_eval_loss:.8f}")
    assert measured["mini/loss"] == pytest.approx(lm_eval_loss, abs=1e-4)


VLLM_CONFIG_KEYS = {
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


def test_it_has_the_keys_and_tensors_that_vllm_reads(checkpoint):
    """vLLM itself is too large for the tests: this checks what its source code reads.

    Read at v0.12.0, which has its own GPT-NeoX model (the keys above, and the tensor names and
    shapes below), and at v0.33.0, which uses the model of transformers and reads fewer keys
    itself. Both load every *.safetensors of a folder as weights, unless
    model.safetensors.index.json lists them; optimizer.safetensors must not be loaded.

    Once, by hand, a CPU build of v0.32.0 loaded such checkpoints (with heads of 64): greedy text
    equals that of transformers, log-probabilities of the prompts are within 2e-6.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    assert {key: type(config.get(key)) for key in VLLM_CONFIG_KEYS} == VLLM_CONFIG_KEYS
    assert config["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": config["rotary_emb_base"],
        "partial_rotary_factor": config["rotary_pct"],
    }
    assert config["hidden_size"] % config["num_attention_heads"] == 0

    folder = {path.name for path in checkpoint.glob("*.safetensors")}
    assert folder == {"model.safetensors", "optimizer.safetensors"}
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    stored = load_file(checkpoint / "model.safetensors")
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())

    hidden, inner, vocabulary = 32, 128, 512
    layer_shapes = {
        "input_layernorm.weight": (hidden,),
        "input_layernorm.bias": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "post_attention_layernorm.bias": (hidden,),
        "attention.query_key_value.weight": (3 * hidden, hidden),
        "attention.query_key_value.bias": (3 * hidden,),
        "attention.dense.weight": (hidden, hidden),
        "attention.dense.bias": (hidden,),
        "mlp.dense_h_to_4h.weight": (inner, hidden),
        "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (hidden, inner),
        "mlp.dense_4h_to_h.bias": (hidden,),
    }
    expected = {
        "gpt_neox.embed_in.weight": (vocabulary, hidden),
        "gpt_neox.final_layer_norm.weight": (hidden,),
        "gpt_neox.final_layer_norm.bias": (hidden,),
        **{f"gpt_neox.layers.{n}.{k}": shape for n in (0, 1) for k, shape in layer_shapes.items()},
    }
    if not config["tie_word_embeddings"]:
        expected["embed_out.weight"] = (vocabulary, hidden)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == expected
