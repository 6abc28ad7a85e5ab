import json

import pytest

from rewarm.errors import RewarmError
from rewarm.plots.loss_figure import _loss_figure, save_losses


def write_metrics(run, losses, rates=()):
    """Writes a run without a recipe: a loss every 10 tokens, and rates every 10 tokens."""
    run.mkdir(parents=True)
    lines = [
        {"kind": "evaluate", "step": i, "tokens": 10 * i, "upstream/loss": loss}
        for i, loss in enumerate(losses)
    ]
    lines += [
        {"kind": "train", "step": i + 1, "tokens": 10 * (i + 1), "lr": lr}
        for i, lr in enumerate(rates)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_seeds_are_averaged_over_the_steps_that_all_have_reached(tmp_path):
    runs = [
        write_metrics(tmp_path / "1", [4.0, 3.0, 2.0]),
        write_metrics(tmp_path / "2", [4.0, 2.0]),
    ]
    losses, _ = _loss_figure({"arm": runs}).axes
    *seeds, mean = [line.get_xydata().tolist() for line in losses.lines]
    assert [len(seed) for seed in seeds] == [3, 2]
    assert mean == [[0, 4.0], [10, 2.5]]


def test_a_panel_names_the_role_of_its_set(tmp_path):
    run = write_metrics(tmp_path / "1", [4.0])
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("upstream/loss", "docs/loss"))
    (run / "recipe.yaml").write_text(
        "data: {validation: {docs: {shards: data/docs/val, role: upstream}}}"
    )
    losses, _ = _loss_figure({"arm": [run]}).axes
    assert losses.get_title("left") == "docs (upstream) loss (nats)"


def test_missing_losses_are_left_out(tmp_path):
    run = write_metrics(tmp_path / "1", [4.0, None, 2.0])
    losses, _ = _loss_figure({"arm": [run]}).axes
    assert losses.lines[0].get_xydata().tolist() == [[0, 4.0], [20, 2.0]]


def test_rates_are_as_logged_if_the_recipe_cannot_be_read(tmp_path):
    run = write_metrics(tmp_path / "1", [4.0], rates=[1e-3, 5e-4])
    *_, rates = _loss_figure({"arm": [run]}).axes
    assert rates.lines[0].get_xydata().tolist() == [[10, 1e-3], [20, 5e-4]]


def test_rates_are_those_of_every_step_if_the_recipe_can_be_read(tmp_path, thousand_steps):
    run = write_metrics(tmp_path / "1", [4.0], rates=[1e-3])
    (run / "recipe.yaml").write_text(thousand_steps)
    *_, rates = _loss_figure({"arm": [run]}).axes
    assert len(rates.lines[0].get_xdata()) == 1000


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_file_that_cannot_be_written_is_reported(tmp_path, suffix):
    run = write_metrics(tmp_path / "1", [4.0])
    with pytest.raises(RewarmError, match=rf"metrics.jsonl/curves\.{suffix}: cannot be written: "):
        save_losses({"arm": [run]}, run / "metrics.jsonl" / f"curves.{suffix}", suffix)
