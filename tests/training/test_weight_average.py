"""`optimizer.ema`: against PyTorch's AveragedModel; resumed, evaluated, and as a checkpoint."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import random_tokens, take_tiny_step, tiny_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_runs import events, metrics, run, trained_files

from rewarm.checkpoints.find_checkpoint import locate_base, resolve_checkpoint_reference
from rewarm.checkpoints.lineage import model_lineage
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.data.shard_source import ShardSource
from rewarm.errors import CheckpointError, Preempted
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.report.collect_runs import collect_runs
from rewarm.report.loss_tables import final_losses_table
from rewarm.training.evaluate_checkpoint import CheckpointEvaluator
from rewarm.training.optimizer import build_adamw
from rewarm.training.weight_average import WeightAverage

EMA = {"optimizer__ema": "{decay: 0.8}"}


def test_the_average_is_that_of_pytorch_and_skips_what_was_skipped():
    model = tiny_model()
    optimizer, average = build_adamw(model, OptimizerSettings()), WeightAverage(model, 0.8)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    reference.update_parameters(model)  # the first call copies
    for step in range(1, 6):
        skip = step == 3
        take_tiny_step(
            model,
            optimizer,
            random_tokens(),
            average=average,
            should_skip=lambda loss, norm, skip=skip: torch.tensor(float(skip)),
        )
        if not skip:
            reference.update_parameters(model)
    for name, expected in reference.module.named_parameters():
        torch.testing.assert_close(average.tensors[name], expected.data, rtol=1e-6, atol=1e-8)


def test_a_step_that_is_not_finite_leaves_the_average(monkeypatch):
    model = tiny_model()
    optimizer, average = build_adamw(model, OptimizerSettings()), WeightAverage(model, 0.8)
    take_tiny_step(model, optimizer, random_tokens(), average=average)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda *words, **names: loss(*words, **names) * math.nan)
    result = take_tiny_step(model, optimizer, random_tokens(), average=average)
    assert result.skipped.item() == 1
    assert all(torch.equal(before[name], average.tensors[name]) for name in before)


def test_weights_and_average_are_exchanged_and_restored_also_after_an_error():
    model = tiny_model()
    average = WeightAverage(model, 0.8)
    take_tiny_step(model, build_adamw(model, OptimizerSettings()), random_tokens(), average=average)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    averages = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with pytest.raises(ZeroDivisionError, match="True"), average.in_model():
        raise ZeroDivisionError(
            all(torch.equal(p, averages[name]) for name, p in model.named_parameters())
        )
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(torch.equal(average.tensors[name], averages[name]) for name in averages)


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory, trained_run):
    directory = tmp_path_factory.mktemp("averaged") / "run"
    run((trained_run / "recipe.yaml").read_text(), directory, **EMA)
    return directory


def test_the_average_is_evaluated_and_changes_nothing_else(averaged_run, trained_run, corpora):
    with_ema, without = metrics(averaged_run, "evaluate"), metrics(trained_run, "evaluate")
    names = ("downstream/ema_loss", "upstream/ema_loss")
    assert [[line.pop(name, None) is not None for name in names] for line in with_ema] == [
        [line["step"] > 0] * 2 for line in with_ema
    ]
    assert with_ema == without
    last = metrics(averaged_run, "evaluate")[-1]
    table = final_losses_table(collect_runs([averaged_run]))
    column = table.columns.index("downstream EMA loss")
    assert table.rows[0][column].text == f"{last['downstream/ema_loss']:.4f}"
    assert "EMA" not in "".join(final_losses_table(collect_runs([trained_run])).columns)
    sets = {"downstream": ShardSource(str(corpora / "downstream" / "val"))}
    measured = CheckpointEvaluator(sets).measure(f"{averaged_run}@ema").losses["downstream"].loss
    assert measured == pytest.approx(last["downstream/ema_loss"], rel=1e-5)
    assert abs(measured - last["downstream/loss"]) > 1e-3


def test_the_average_is_a_checkpoint(averaged_run):
    directory = resolve_checkpoint_reference(averaged_run, "ema")
    assert directory == averaged_run / "checkpoints" / "step-00000020" / "ema"
    verify_checkpoint(directory)
    line = model_lineage(locate_base(f"{averaged_run}@ema"))[-1].one_line()
    assert "ema with decay 0.8 of the weights of all steps" in line
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).state_dict()
    ours = load_file(directory / "model.safetensors")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    assert torch.equal(theirs[name], ours[name])


def test_a_stopped_and_resumed_run_has_the_same_average(averaged_run, recipe_text, tmp_path):
    directory = tmp_path / "stopped"
    with pytest.raises(Preempted):
        run(recipe_text, directory, until=7, **EMA)
    run(recipe_text, directory, resume=True, **EMA)
    last = [folder / "checkpoints" / "step-00000020" for folder in (averaged_run, directory)]
    assert trained_files(last[0]) == trained_files(last[1])
    averages = [(path / "ema" / "model.safetensors").read_bytes() for path in last]
    assert averages[0] == averages[1]
    assert metrics(averaged_run) == metrics(directory)


def test_a_missing_or_damaged_average_is_noticed(averaged_run, recipe_text, tmp_path):
    for name, damage, problem in (
        ("missing", shutil.rmtree, "has no folder ema"),
        ("damaged", lambda ema: (ema / "model.safetensors").write_bytes(b""), "changed since it"),
    ):
        directory = shutil.copytree(averaged_run, tmp_path / name)
        shutil.rmtree(directory / "checkpoints" / "step-00000020")
        damage(directory / "checkpoints" / "step-00000010" / "ema")
        with pytest.raises(CheckpointError, match=problem):
            run(recipe_text, directory, resume=True, **EMA)


def test_an_average_can_be_added_to_a_run(trained_run, recipe_text, tmp_path):
    directory = shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints" / "step-00000020")
    with pytest.raises(CheckpointError, match=r"optimizer\.ema"):
        run(recipe_text, directory, resume=True, **EMA)
    run(recipe_text, directory, resume=True, accept_changes=True, **EMA)
    steps = [line["step"] for line in metrics(directory, "evaluate") if "upstream/ema_loss" in line]
    assert steps == [15, 20]
    assert events(directory, "save")[-1]["error"] is None


def test_a_run_without_an_average_has_no_ema(trained_run):
    with pytest.raises(CheckpointError, match="has no average of the weights; it is saved with"):
        locate_base(f"{trained_run}@ema")
