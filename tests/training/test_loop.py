import json
import math
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError, DataError, Diverged
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.fields import OptimizerSettings
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.training.loop import take_step, train
from rewarm.training.optimizer import build_adamw
from rewarm.training.validation_loss import SetLoss

SHAPE = Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16)


def fresh():
    model = NeoX(SHAPE)
    initialize_weights(model, 3)
    return model


def step(model, optimizer, tokens, **changed):
    settings = {"microbatch": 4, "lr": 1e-3, "clip": 1.0, "cast": nullcontext()} | changed
    return take_step(model, optimizer, tokens, **settings)


def test_accumulation_is_one_large_batch():
    tokens = torch.randint(0, 64, (8, 17))
    parameters, losses = [], []
    for microbatch in (2, 8):
        model = fresh()
        losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]).item())
        # The large eps keeps rounding in tiny gradients from mattering.
        optimizer = build_adamw(model, OptimizerSettings(eps=1e-3))
        taken = step(model, optimizer, tokens, microbatch=microbatch)
        losses.append(taken.loss.item())
        parameters.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*parameters, atol=1e-6)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_a_step_is_adamw_with_clipping_and_decay_on_matrices_only():
    tokens = torch.randint(0, 64, (4, 17))
    model, reference = fresh(), fresh()
    optimizer = build_adamw(model, OptimizerSettings(weight_decay=0.3, eps=1e-3))
    step(model, optimizer, tokens, lr=2e-3, clip=0.5)

    # Written out: in Adam's first step, bias-corrected, m̂ = g and v̂ = g². The large eps keeps
    # rounding in tiny gradients from mattering.
    reference.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in reference.parameters()))
    for (name, p), found in zip(reference.named_parameters(), model.parameters(), strict=True):
        g = p.grad.double() * min(1, 0.5 / norm)
        decay = 0.3 if p.ndim == 2 else 0.0
        wanted = p.double() * (1 - 2e-3 * decay) - 2e-3 * g / (g.abs() + 1e-3)
        assert (wanted - found.double()).abs().max() < 2e-6, name


def test_at_rate_0_no_bit_moves_and_the_moments_fill():
    model, before = fresh(), fresh().state_dict()
    optimizer = build_adamw(model, OptimizerSettings())
    step(model, optimizer, torch.randint(0, 64, (4, 17)), lr=0.0)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(state["exp_avg_sq"].abs().sum() > 0 for state in optimizer.state.values())


def test_a_step_without_a_rate_cannot_pass_unnoticed():
    model = fresh()
    optimizer = build_adamw(model, OptimizerSettings())
    assert all(math.isnan(group["lr"]) for group in optimizer.param_groups)


def test_metrics_say_what_happened(recipe_file, tmp_path):
    checked = load_recipe(recipe_file)
    train(checked)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    measured = [line for line in lines if line["kind"] == "evaluate"]
    assert [line["step"] for line in trained] == [3, 6, 9, 12, 15, 18, 20]
    assert [line["step"] for line in measured] == [0, 5, 10, 15, 20]
    for line in trained:
        assert line["tokens"] == 1024 * line["step"]
        assert line["lr"] == checked.lr(line["step"])
        assert line["tokens_per_second"] > 0
        assert line["grad_norm"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["downstream/tokens"] + line["upstream/tokens"] == line["tokens"]
        assert abs(line["upstream/tokens"] - 0.3 * line["tokens"]) < 64  # less than one block
    first, last = measured[0], measured[-1]
    for name in ("upstream", "downstream"):
        assert first[f"{name}/forgetting"] == 0
        assert last[f"{name}/forgetting"] == last[f"{name}/loss"] - first[f"{name}/loss"]
        assert last[f"{name}/perplexity"] == pytest.approx(math.exp(last[f"{name}/loss"]))
    assert last["downstream/loss"] < first["downstream/loss"] - 1  # it learns
    assert first["upstream/loss"] == pytest.approx(math.log(512), rel=0.1)


def test_the_last_step_is_evaluated_and_saved_whatever_the_plan(recipe_file, tmp_path):
    train(load_recipe(recipe_file, ["every.save=null", "every.evaluate=null", "every.log=7"]))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(x["kind"], x["step"]) for x in lines] == [
        ("evaluate", 0), ("train", 7), ("train", 14), ("train", 20), ("evaluate", 20),
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000020"]


def test_a_run_from_a_base_starts_with_its_loss_and_a_fresh_clock(recipe_file, tmp_path):
    base = train(load_recipe(recipe_file, [f"run={tmp_path}/base"]))
    ended = read_metrics(tmp_path / "base" / "metrics.jsonl")[-1]
    arms = [f"model={{base: {tmp_path}/base}}", "tokens=4096", "schedule.start_lr=1e-3"]
    train(load_recipe(recipe_file, [f"run={tmp_path}/arm", *arms]))
    begun = read_metrics(tmp_path / "arm" / "metrics.jsonl")[0]
    assert (begun["step"], begun["tokens"]) == (0, 0)
    for name in ("upstream/loss", "downstream/loss"):
        assert begun[name] == ended[name]
    progress = read_training_state(last_checkpoint(tmp_path / "arm"))
    assert (progress.step, progress.tokens) == (4, 4096)
    assert base.name == "step-00000020"


def test_fresh_keeps_the_shape_and_draws_new_weights(recipe_file, tmp_path):
    train(load_recipe(recipe_file, [f"run={tmp_path}/base"]))
    fresh_arm = [f"model={{base: {tmp_path}/base, fresh: true}}", f"run={tmp_path}/fresh"]
    train(load_recipe(recipe_file, fresh_arm))
    a, b = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("base", "fresh"))
    timeless = [
        [
            {
                k: v
                for k, v in x.items()
                if k not in ("tokens_per_second", "data_wait", "save_stall")
            }
            for x in one
        ]
        for one in (a, b)
    ]
    assert timeless[0] == timeless[1]  # the same seed, data and shape: the same run


def test_any_neox_model_of_hugging_face_is_a_base(recipe_file, tmp_path):
    torch.manual_seed(0)
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=640, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, use_parallel_residual=False,
            bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(tmp_path / "base")  # fmt: skip
    saved = train(load_recipe(recipe_file, [f"model={{base: {tmp_path}/base}}", "tokens=2048"]))
    assert GPTNeoXForCausalLM.from_pretrained(saved).config.vocab_size == 640


def test_a_vocabulary_that_is_too_small_is_refused(recipe_file, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"its tokenizer has .* entries, and the model only 64"
    ):
        train(load_recipe(recipe_file, ["model.architecture.vocabulary=64"]))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_shards_of_another_tokenizer_than_the_bases_are_refused(recipe_file, tmp_path):
    base = train(load_recipe(recipe_file, [f"run={tmp_path}/base", "tokens=1024"]))
    path = base / "tokenizer.json"
    other = json.loads(path.read_text())
    other["model"]["merges"].reverse()
    path.write_text(json.dumps(other))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (copy / name).write_bytes((base / name).read_bytes())
    with pytest.raises(CheckpointError, match="not written with the tokenizer of"):
        train(load_recipe(recipe_file, [f"model={{base: {copy}}}"]))


def test_a_context_beyond_the_bases_positions_is_refused(recipe_file, tmp_path):
    base = train(load_recipe(recipe_file, [f"run={tmp_path}/base", "tokens=1024"]))
    with pytest.raises(CheckpointError, match="longer than the model's 64 positions"):
        train(load_recipe(recipe_file, [f"model={{base: {base}}}", "data.context=128"]))


def test_a_missing_corpus_is_refused_before_anything_is_written(recipe_file, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        train(load_recipe(recipe_file, ["data.train.upstream.shards=nowhere"]))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_five_percent_of_replay_is_five_percent_of_the_tokens(recipe_file, tmp_path):
    train(
        load_recipe(recipe_file, [
            "tokens=64000", "batch={tokens: 64, microbatch: 1}", "data.max_epochs=null",
            "data.train.downstream.weight=95%", "data.train.upstream.weight=5%",
            "every={log: 100, evaluate: null, save: null}",
        ])
    )  # fmt: skip
    trained = [x for x in read_metrics(tmp_path / "run" / "metrics.jsonl") if x["kind"] == "train"]
    # 1,000 steps of one block of 64 tokens: by hand, 50 blocks are replay, 5 in every 100 steps.
    assert [x["upstream/tokens"] for x in trained] == [64 * 5 * n for n in range(1, 11)]
    assert [x["downstream/tokens"] for x in trained] == [64 * 95 * n for n in range(1, 11)]


def test_more_epochs_than_wanted_are_refused_with_the_arithmetic(recipe_file, corpora):
    with pytest.raises(DataError, match=r"the run needs .* and it has .*: 0\.\d+ epochs"):
        train(load_recipe(recipe_file, ["data.max_epochs=0.1"]))


def test_separate_documents_train_and_measure(recipe_file, tmp_path):
    train(load_recipe(recipe_file, ["data.documents=separate"]))
    train(load_recipe(recipe_file, [f"run={tmp_path}/across"]))
    separate, across = (
        read_metrics(tmp_path / run / "metrics.jsonl")[-1] for run in ("run", "across")
    )
    assert separate["upstream/loss"] < 4
    assert separate["upstream/loss"] != across["upstream/loss"]


def test_divergence_names_the_step_and_the_last_good_checkpoint(recipe_file, tmp_path):
    with pytest.raises(Diverged, match=r"not finite: loss") as error:
        train(
            load_recipe(recipe_file, [
                "schedule={name: constant, lr: 1e38}", "every.save=1", "optimizer.clip=null",
            ])
        )  # fmt: skip
    assert error.value.exit_code == 4
    assert "steps 2 to 4 were not finite" in str(error.value)
    assert "downstream: " in str(error.value)
    assert last_checkpoint(tmp_path / "run").name == "step-00000001"
    assert "the last checkpoint before it is" in str(error.value)
    assert "step-00000001; try" in str(error.value)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(
            tensor.isfinite().all() for tensor in load_file(path / "optimizer.safetensors").values()
        )


def test_a_loss_that_is_not_finite_leaves_a_checkpoint_that_can_be_read(recipe_file, monkeypatch):
    measured = {"downstream": SetLoss(math.nan, 1), "upstream": SetLoss(2.0, 1)}
    monkeypatch.setattr("rewarm.training.loop.measure_all", lambda *_: measured)
    saved = train(load_recipe(recipe_file, ["tokens=2048"]))
    assert read_training_state(saved).losses == {"upstream": 2.0}
