"""Which rate, which moments and which data a run really began with."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from training_runs import metrics, run

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError, Preempted, ScheduleError
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.fields import OptimizerSettings
from rewarm.training.applied_rate_check import AppliedRateProbe
from rewarm.training.loop import take_step
from rewarm.training.optimizer import build_adamw, set_lr


def applied(directory):
    """The rates that were measured on the weights, by step."""
    lines = [json.loads(x) for x in (directory / "events.jsonl").read_text().splitlines()]
    return {x["step"]: x["measured"] for x in lines if x["kind"] == "rate"}


@pytest.fixture
def base(recipe_text, tmp_path):
    """A run that ended at 1e-3, of 20 steps."""
    return run(recipe_text, tmp_path / "base")


# The recipe's own curve: up to 1e-2 over 10 % of 20 steps, so 5e-3 and 1e-2 at steps 1 and 2.
@pytest.mark.parametrize("carry", ["false", "true"])
def test_a_base_brings_no_rate_with_it(recipe_text, tmp_path, base, carry):
    start = {"model": f"{{base: {base}}}", "optimizer__carry": carry}
    run(recipe_text, tmp_path / "run", **start)
    rates = applied(tmp_path / "run")
    assert rates.keys() == {1, 2, 3, 20}
    assert rates[1] == pytest.approx(5e-3, rel=1e-3)
    assert rates[2] == pytest.approx(1e-2, rel=1e-3)
    assert rates[20] == pytest.approx(1e-3, rel=1e-3)


def test_the_step_behind_a_resume_has_the_schedules_rate(recipe_text, tmp_path):
    with pytest.raises(Preempted):
        _until(recipe_text, tmp_path / "run", 11)
    run(recipe_text, tmp_path / "run", resume=True)
    rates = applied(tmp_path / "run")
    # Step k of the decay: 1e-3 + 9e-3 · (1 + cos(π (k/20 − 0.1) / 0.9)) / 2.
    for step in (12, 13):
        wanted = 1e-3 + 9e-3 * (1 + math.cos(math.pi * (step / 20 - 0.1) / 0.9)) / 2
        assert rates[step] == pytest.approx(wanted, rel=1e-3)


def test_a_resume_with_another_schedule_uses_that_one(recipe_text, tmp_path):
    with pytest.raises(Preempted):
        _until(recipe_text, tmp_path / "run", 11)
    other = {"schedule": "{name: constant, lr: 4e-4}"}
    run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **other)
    rates = applied(tmp_path / "run")
    assert [rates[12], rates[13], rates[20]] == pytest.approx([4e-4] * 3, rel=1e-3)


def _until(text, directory, step, **settings):
    from rewarm.recipe.recipe import validate_recipe
    from rewarm.recipe.yaml_document import YamlDocument
    from rewarm.training.loop import train

    document = YamlDocument(text, "recipe.yaml")
    for name, value in {"run": str(directory), **settings}.items():
        document.apply_override(f"{name.replace('__', '.')}={value}")
    return train(validate_recipe(document), until=step)


@pytest.fixture
def tiny():
    model = NeoX(Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16))
    initialize_weights(model, 3)
    return model, build_adamw(model, OptimizerSettings())


TOKENS = {"microbatch": 4, "clip": 1.0, "cast": torch.autocast("cpu", enabled=False)}


def test_a_hook_that_sets_another_rate_is_caught(tiny):
    model, optimizer = tiny
    optimizer.register_step_pre_hook(lambda *_: set_lr(optimizer, 3e-5))
    with pytest.raises(ScheduleError, match=r"at a rate of 3e-05, and the schedule says 0\.001"):
        take_step(model, optimizer, torch.randint(0, 64, (4, 17)), lr=1e-3, **TOKENS)


def test_a_hook_that_puts_the_rate_back_is_caught_on_the_weights(tiny):
    model, optimizer = tiny
    optimizer.register_step_pre_hook(lambda *_: set_lr(optimizer, 3e-5))
    optimizer.register_step_post_hook(lambda *_: set_lr(optimizer, 1e-3))
    probe = AppliedRateProbe(model, optimizer)
    take_step(model, optimizer, torch.randint(0, 64, (4, 17)), lr=1e-3, **TOKENS)
    with pytest.raises(ScheduleError, match=r"at a rate of 3e-05, .* says 0\.001"):
        probe.insist(1e-3, step=1)


def test_pre_heating_fills_the_moments_and_moves_no_bit(recipe_text, tmp_path, base):
    """Also that the first real step is smaller for it: fresh moments make every step's a sign."""
    start = {"model": f"{{base: {base}}}", "every__save": 20, "tokens": 40960}
    hot = {"schedule": "{name: rewarm, peak_lr: 1e-3, min_lr: 1e-4, warmup: 0, preheat: 50%}"}
    cold = {"schedule": "{name: rewarm, peak_lr: 1e-3, min_lr: 1e-4, warmup: 0}"}
    run(recipe_text, tmp_path / "hot", **start, **hot)
    with pytest.raises(Preempted):
        _until(recipe_text, tmp_path / "cold", 1, **start, **cold)
    heated = tmp_path / "hot" / "checkpoints" / "step-00000020"
    before, after = load_file(base / "model.safetensors"), load_file(heated / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.int32), after[name].view(torch.int32)), name
    moments = load_file(heated / "optimizer.safetensors")
    assert moments["updates"].item() == 20
    # Of the embeddings, rows of tokens that never came have none.
    filled = [t for n, t in moments.items() if n.startswith("exp_avg_sq/gpt_neox.layers")]
    assert torch.cat([t.flatten() for t in filled]).gt(0).float().mean() > 0.99
    with pytest.raises(Preempted):
        _until(recipe_text, tmp_path / "behind", 21, **start, **hot)
    first = load_file(last_checkpoint(tmp_path / "behind") / "model.safetensors")
    colder = load_file(last_checkpoint(tmp_path / "cold") / "model.safetensors")

    def moved(there, name, step):
        norm = sum((there[n] - t).square().sum().item() for n, t in before.items()) ** 0.5
        return norm / applied(tmp_path / name)[step]

    warm, fresh = moved(first, "behind", 21), moved(colder, "cold", 1)
    print(f"norm of the first update, by its rate: {warm:.1f} pre-heated, {fresh:.1f} not")
    assert 0 < warm < 0.85 * fresh


def test_data_carry_goes_on_where_the_base_stopped(recipe_text, tmp_path):
    long = run(recipe_text, tmp_path / "long", tokens=40960)
    base = run(recipe_text, tmp_path / "base")
    start = {"model": f"{{base: {base}}}", "data__carry": "true"}
    carried = run(recipe_text, tmp_path / "carried", **start)
    # Block 640 + n of the long run is block n of the run that carries on; losses of a first step
    # are of the same batch and, the curves being others, of other weights: the data is compared.
    assert read_training_state(carried).carried == read_training_state(base).blocks
    whole = read_training_state(long).blocks
    both = read_training_state(carried)
    assert {n: both.carried[n] + both.blocks[n] for n in whole} == whole
    first = [x for x in metrics(tmp_path / "carried") if x["kind"] == "train"]
    assert first[0]["downstream/tokens"] > 0
    with pytest.raises(CheckpointError, match=r"seed was 5 and is 6; make them the same"):
        run(recipe_text, tmp_path / "other", seed=6, **start)
    (base / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"this is a local model, which says nothing"):
        run(recipe_text, tmp_path / "plain", model=f"{{base: {base}}}", data__carry="true")


def test_the_stream_that_is_carried_is_the_one_behind(recipe_text, corpora):
    from rewarm.data.corpus import Corpus
    from rewarm.data.shard_source import ShardSource

    place = ShardSource(str(corpora / "upstream" / "train"))
    whole = Corpus("upstream", place, context=64, seed=5, lanes=2)
    behind = Corpus("upstream", place, context=64, seed=5, lanes=2, skip=37)
    for number in (0, 1, 200):
        assert (behind.block(number) == whole.block(37 + number)).all()


def test_check_and_train_print_the_contract(recipe_text, tmp_path, base, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    words = (path, "--set", f"model={{base: {base}}}", "--set", "tokens=2048")
    _, out, _ = command("check", *words)
    code, _, err = command("train", *words)
    assert code == 0
    digest = load_manifest(base)["files"]["model.safetensors"]["sha256"]
    for said in (out, err):
        assert f"the weights of {base} (rewarm checkpoint, step 20) (sha256 {digest[:12]})" in said
        assert "fresh Adam moments; the data from its beginning" in said
        assert "lr 0.001 at the last step →" in said
        assert "trained on 20.48k tokens → 22.53k at the end of this run" in said
    assert "28 of 28 tensors matched" in err


def load_manifest(checkpoint):
    return json.loads((checkpoint / "MANIFEST.json").read_text())
