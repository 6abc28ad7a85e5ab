"""Which runs are complete, and which are stale."""

import shutil

import pytest
from training_runs import recipe_with, run

from rewarm.errors import CheckpointError
from rewarm.study.stale_runs import check_started_from_base, is_complete
from rewarm.training.loop import train


def test_a_run_on_other_data_is_not_complete(recipe_text, corpora, tmp_path):
    """Its recipe is the same, and its losses are those of another text."""
    val = tmp_path / "val"
    shutil.copytree(corpora / "upstream" / "val", val)
    recipe = recipe_with(
        recipe_text, tmp_path / "run", tokens=2048, data__validation__upstream__shards=val
    )
    train(recipe)
    assert is_complete(recipe)
    shutil.rmtree(val)
    shutil.copytree(corpora / "third" / "val", val)
    with pytest.raises(CheckpointError, match=r"data.validation.upstream: other shards or tokens"):
        is_complete(recipe)


def test_a_run_without_its_metrics_is_not_complete(recipe_text, tmp_path):
    recipe = recipe_with(recipe_text, tmp_path / "run", tokens=2048)
    train(recipe)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot be read: No such file"):
        is_complete(recipe)


def test_a_run_is_stale_if_its_base_was_trained_again(recipe_text, tmp_path):
    base = tmp_path / "base"
    run(recipe_text, base, tokens=1024)
    model = recipe_text[recipe_text.index("model:") : recipe_text.index("data:")]
    text = recipe_text.replace(model, f"model: {{base: {base}}}\n")
    recipe = recipe_with(text, tmp_path / "arm", tokens=2048)
    train(recipe)
    assert is_complete(recipe)
    moved = base.rename(tmp_path / "moved")
    assert is_complete(recipe)  # a base that is gone is not compared
    shutil.copytree(moved, base)
    assert is_complete(recipe)
    shutil.rmtree(base)
    run(recipe_text, base, tokens=1024, seed=6)
    stale = "arm: stale: already complete, but from another base: the weights of .*base have sha256"
    with pytest.raises(CheckpointError, match=stale):
        is_complete(recipe)
    longer = recipe_with(text, tmp_path / "arm", tokens=4096)
    assert not is_complete(longer)
    with pytest.raises(CheckpointError, match="arm: stale: started from another base: the weights"):
        check_started_from_base(longer)
    check_started_from_base(recipe_with(text, tmp_path / "new", tokens=4096))


def test_the_digest_of_a_plain_model_directory_is_computed_again_when_it_changes(
    recipe_text, tmp_path
):
    base = tmp_path / "model"
    shutil.copytree(run(recipe_text, tmp_path / "base", tokens=1024), base)
    for name in ("MANIFEST.json", "progress.json"):
        (base / name).unlink()
    model = recipe_text[recipe_text.index("model:") : recipe_text.index("data:")]
    text = recipe_text.replace(model, f"model: {{base: {base}}}\n")
    recipe = recipe_with(text, tmp_path / "arm", tokens=2048)
    train(recipe)
    assert is_complete(recipe)
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="stale: already complete, but from another base"):
        is_complete(recipe)
