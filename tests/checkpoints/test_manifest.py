"""MANIFEST.json lists all files of a checkpoint, and a change of any file is detected."""

import json

import pytest
from training_runs import run

from rewarm.checkpoints.manifest import MANIFEST, build_manifest, sha256_in_manifest
from rewarm.checkpoints.manifest import verify_checkpoint as verify
from rewarm.errors import CheckpointError

FILES = (
    "config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "recipe.yaml",
)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text(name)
    (tmp_path / MANIFEST).write_text(json.dumps(build_manifest(tmp_path)))
    return tmp_path


def test_the_manifest_lists_every_file(recipe_text, tmp_path):
    checkpoint = run(recipe_text, tmp_path / "run", tokens=2048, every__evaluate="null")
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert {path.name for path in checkpoint.iterdir()} == {*files, MANIFEST}
    verify(checkpoint)


@pytest.mark.parametrize("content", ["config.jsoN", "longer than it was"])
def test_a_changed_file_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: changed since it was written"):
        verify(folder)
    verify(folder, only="recipe.yaml")


def test_a_missing_file_is_refused(folder):
    (folder / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"recipe\.yaml is missing; use another"):
        verify(folder)


def test_a_manifest_without_a_required_file_is_refused(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["progress.json"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"does not list progress\.json"):
        verify(folder)


def test_without_digests_only_sizes_are_compared(folder):
    (folder / "config.json").write_text("config.jsoN")
    verify(folder, digests=False)
    (folder / "config.json").write_text("longer than it was")
    with pytest.raises(CheckpointError, match="changed since it was written"):
        verify(folder, digests=False)


def test_sha256_in_manifest(folder):
    empty = folder / "empty"
    empty.mkdir()
    assert sha256_in_manifest(empty) is None
    # printf model.safetensors | sha256sum
    expected = "9d75c1098fc54a1f7bd270f148884f599765d894639c9c4ee891396968c60df2"
    assert sha256_in_manifest(folder) == expected
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged: KeyError"):
        sha256_in_manifest(folder)
