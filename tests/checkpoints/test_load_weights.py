"""Weights from other libraries are loaded exactly, and wrong or unsafe ones are refused."""

import pickle
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers_models import (
    ARCHITECTURES,
    load_model,
    same_tensors,
    state_dict_on_disk,
    transformers_model,
)

from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.load_weights import load_weights
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX


def test_sharded_safetensors_are_read(tmp_path):
    reference = transformers_model(ARCHITECTURES[0])
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same_tensors(load_model(tmp_path).state_dict(), state_dict_on_disk(reference))


def test_a_pickled_state_dict_of_plain_tensors_is_read(tmp_path):
    reference = transformers_model(ARCHITECTURES[0])
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    # Buffers that old Pythia revisions contain.
    state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    state["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    state["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert same_tensors(load_model(tmp_path).state_dict(), state_dict_on_disk(reference))
    counts = load_weights(NeoX(read_architecture(tmp_path)), tmp_path)
    assert counts == (28, 3)  # two layers of 12, two embeddings, a norm of two; three buffers


def test_the_output_layer_may_have_its_name_in_memory(tmp_path):
    """transformers 5 renames it when it saves; accelerate saves the state dict as it is."""
    reference = transformers_model(ARCHITECTURES[0])
    reference.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    if "embed_out.weight" in state:  # an earlier transformers
        state["lm_head.weight"] = state.pop("embed_out.weight")
    assert "lm_head.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    loaded, expected = load_model(tmp_path).state_dict(), state_dict_on_disk(reference)
    assert same_tensors({name: loaded[name] for name in expected}, expected)
    assert torch.equal(loaded["embed_out.weight"], state["lm_head.weight"])


def test_both_names_of_the_output_layer_at_once_are_refused(tmp_path):
    reference = transformers_model(ARCHITECTURES[0])
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state["embed_out.weight"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight +97 × 32 +—"):
        load_model(tmp_path)


def test_a_file_of_torch_saves_legacy_format_is_named_as_such(tmp_path, monkeypatch):
    reference = transformers_model(ARCHITECTURES[0])
    reference.save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch\.save's legacy format .* python -c") as error:
        load_model(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-c", str(path)])
    exec(str(error.value).split("'")[2], {})  # the command in the message
    assert same_tensors(load_model(tmp_path).state_dict(), state_dict_on_disk(reference))


def test_half_precision_weights_become_fp32(tmp_path):
    reference = transformers_model(ARCHITECTURES[0]).half()
    reference.save_pretrained(tmp_path)
    loaded = load_model(tmp_path).state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert same_tensors(
        loaded, {name: t.float() for name, t in state_dict_on_disk(reference).items()}
    )


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    transformers_model(ARCHITECTURES[0]).save_pretrained(tmp_path)
    model = NeoX(read_architecture(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    target = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(target), "w"))

    # large enough for the parameters that the configuration describes
    pickled = pickle.dumps([Payload(), b"x" * 200_000])
    (tmp_path / "pytorch_model.bin").write_bytes(pickled)
    with pytest.raises(CheckpointError, match="not plain tensors"):
        load_weights(model, tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "table"),
    [
        (
            lambda s: s.pop("embed_out.weight"),
            """\
  tensor            in the file  in the model
  embed_out.weight  missing      97 × 32
""",
        ),
        (
            lambda s: s.update(extra=torch.ones(1), of_no_shape=torch.tensor(1.0)),
            """\
  tensor       in the file  in the model
  extra        1            —
  of_no_shape  one number   —
""",
        ),
        (
            lambda s: s.update({"gpt_neox.embed_in.weight": torch.ones(5000, 32)}),
            """\
  tensor                    in the file  in the model
  gpt_neox.embed_in.weight  5000 × 32    97 × 32
  the file's vocabulary has 5,000 rows, the model's 97
""",
        ),
        (
            lambda s: s.update({f"extra_{i}": torch.ones(2, 3) for i in range(10)}),
            "".join(f"  extra_{i}  2 × 3        —\n" for i in range(8)) + "  ... and 2 more\n",
        ),
    ],
)
def test_tensors_that_do_not_match_the_model_are_listed(tmp_path, change, table):
    transformers_model(ARCHITECTURES[0]).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(table)):
        load_model(tmp_path)


def test_a_truncated_file_and_a_folder_without_weights_are_refused(tmp_path):
    transformers_model(ARCHITECTURES[0]).save_pretrained(tmp_path)
    model = NeoX(read_architecture(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(model, tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_weights(model, tmp_path)
