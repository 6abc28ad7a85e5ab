"""Finding the files that hold the weights of a model, and computing their digest."""

import hashlib
import json

import pytest

from rewarm.checkpoints.weight_files import find_weight_files, weights_digest
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture

SMALL = Architecture(layers=1, hidden=8, heads=1, vocabulary=16, positions=8)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_one_file_is_preferred_and_safetensors_to_pickles(tmp_path):
    data = bytes(2 * SMALL.parameters)
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    assert find_weight_files(tmp_path, SMALL) == [tmp_path / "pytorch_model.bin"]
    (tmp_path / "model.safetensors").write_bytes(data)
    assert find_weight_files(tmp_path, SMALL) == [tmp_path / "model.safetensors"]


def test_the_files_of_an_index_are_found(tmp_path):
    weight_map = {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "a.safetensors").write_bytes(bytes(2 * SMALL.parameters))
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing; download"):
        find_weight_files(tmp_path, SMALL)
    (tmp_path / "b.safetensors").touch()
    names = [path.name for path in find_weight_files(tmp_path, SMALL)]
    assert names == ["a.safetensors", "b.safetensors"]


def test_files_that_are_too_small_for_the_architecture_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(2 * SMALL.parameters - 1))
    with pytest.raises(CheckpointError, match="too few for that"):
        find_weight_files(tmp_path, SMALL)


def test_digests(tmp_path):
    (tmp_path / "layer_00.pt").write_bytes(b"first")
    (tmp_path / "layer_01.pt").write_bytes(b"second")
    lines = f"{sha256(b'first')}  layer_00.pt\n{sha256(b'second')}  layer_01.pt\n"
    assert weights_digest(tmp_path) == sha256(lines.encode())
    (tmp_path / "model.safetensors").write_bytes(b"one file")
    assert weights_digest(tmp_path) == sha256(b"one file")
