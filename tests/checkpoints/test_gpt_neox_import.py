"""Checkpoints of the GPT-NeoX library give the logits of transformers, and run no code."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.checkpoints.find_checkpoint import locate_base
from rewarm.checkpoints.gpt_neox_import import find_gpt_neox_checkpoint
from rewarm.checkpoints.load_weights import load_weights
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train

LAYERS, HIDDEN, HEADS, VOCABULARY = 3, 32, 4, 512

# As in the library's own configs: JSON with comments and Python's True, dashes in one file and
# underscores in the other.
MODEL = """\
# a small one
{
  "pipe-parallel-size": 1,
  "model-parallel-size": 1,
  "num-layers": 3,
  "hidden-size": 32,
  "num-attention-heads": 4,
  "seq-length": 64,
  "max-position-embeddings": 64,
  "norm": "layernorm",
  "pos-emb": "rotary",
  "rotary-pct": 0.5,
  "no-weight-tying": True,
  "gpt-j-residual": True,
}
"""
TRAINING = """\
{
  "attention_config": [[["flash"], 3]],
  "scaled_upper_triang_masked_softmax_fusion": true,
  "optimizer": {"type": "Adam", "params": {"lr": 0.0003, "betas": [0.9, 0.95]}},
  "fp16": {"enabled": true, "loss_scale": 0},
  "hidden_dropout": 0, "attention_dropout": 0,
  "train_iters": 143000, "wall_clock_breakdown": true
}
"""


def reference(**changes):
    """Returns a transformers model with random biases and norms, so that each of them matters."""
    settings = {"intermediate_size": 4 * HIDDEN, "rotary_pct": 0.5} | changes
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        **settings,
    )  # fmt: skip
    torch.manual_seed(7)
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def layer_files(model, *, tied=False, new_names=False):
    """Returns the tensors of a model as GPT-NeoX saves them, keyed by the number of the file."""
    trunk = model.gpt_neox
    files = {0: {"word_embeddings.weight": trunk.embed_in.weight.data}}
    for number, layer in enumerate(trunk.layers):
        attention, mlp = layer.attention, layer.mlp
        first, second = ("linear1", "linear2") if new_names else ("dense_h_to_4h", "dense_4h_to_h")
        modules = {
            "input_layernorm": layer.input_layernorm,
            "attention.query_key_value": attention.query_key_value,
            "attention.dense": attention.dense,
            "post_attention_layernorm": layer.post_attention_layernorm,
            f"mlp.{first}": mlp.dense_h_to_4h,
            f"mlp.{second}": mlp.dense_4h_to_h,
        }
        files[2 + number] = {
            f"{name}.{parameter}": tensor
            for name, module in modules.items()
            for parameter, tensor in module.state_dict().items()
        }
        files[2 + number]["attention.rotary_emb.inv_freq"] = torch.rand(1)  # derived
    norm = trunk.final_layer_norm
    files[LAYERS + 3] = {"norm.weight": norm.weight.data, "norm.bias": norm.bias.data}
    if not tied:
        files[LAYERS + 4] = {"final_linear.weight": model.get_output_embeddings().weight.data}
    return files


def write_checkpoint(folder, files, **configs):
    (folder / "configs").mkdir(parents=True)
    for number, tensors in files.items():
        torch.save(tensors, folder / f"layer_{number:02}-model_00-model_states.pt")
    for name, text in configs.items():
        (folder / "configs" / f"{name}.yml").write_text(text)
    # Other files of a checkpoint, which must not be opened: unpickling them ends the process.
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (folder / name).write_bytes(pickle.dumps(ExitWhenUnpickled()))
    return folder


class ExitWhenUnpickled:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickled code ran')",))


@pytest.fixture
def saved(tmp_path):
    return write_checkpoint(
        tmp_path / "neox" / "global_step10",
        layer_files(reference()),
        model=MODEL,
        training=TRAINING,
    )


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def load(folder):
    base = locate_base(str(folder))
    assert base.kind == "GPT-NeoX checkpoint"
    model = NeoX(base.architecture)
    return model, load_weights(model, base.directory)


def distance(model, other):
    tokens = torch.randint(0, VOCABULARY, (3, 64), generator=torch.Generator().manual_seed(1))
    return (model(tokens) - other(tokens).logits).abs().max().item()


@pytest.mark.parametrize("new_names", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_logits_equal_transformers(tmp_path, parallel, new_names):
    expected = reference(use_parallel_residual=parallel)
    config = MODEL.replace('"gpt-j-residual": True', f'"gpt-j-residual": {parallel}')
    files = layer_files(expected, new_names=new_names)
    model, counts = load(
        write_checkpoint(tmp_path / "step", files, model=config, training=TRAINING)
    )
    assert counts == (12 * LAYERS + 4, LAYERS)
    assert distance(model, expected) < 1e-5


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ('"no-weight-tying": False', {"tie_word_embeddings": True}),
        ('"rotary_emb_base": 500', {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0,
                                                        "partial_rotary_factor": 0.5}}),
        ('"rotary-pct": 1.0', {"rotary_pct": 1.0}),
        ('"layernorm-epsilon": 1e-02', {"layer_norm_eps": 0.01}),  # as json.dump writes it
        ('"intermediate-size": 40', {"intermediate_size": 40}),
        ('"expansion-factor": 1.5', {"intermediate_size": 48}),
        ('"intermediate-size": 70, "mlp-multiple-of": 16', {"intermediate_size": 96}),
        ('"activation": "relu"', {"hidden_act": "relu"}),
        ('"activation": "swish"', {"hidden_act": "silu"}),
        ('"bias-gelu-fusion": true', {"hidden_act": "gelu_fast"}),
        ('"use_bias_in_attn_linear": false', {"attention_bias": False}),
        ('"num_kv_heads": 4, "sliding_window_width": null', {}),
        ('"padded_vocab_size": 512', {}),
    ],
)  # fmt: skip
def test_every_setting_that_rewarm_builds_reaches_the_model(tmp_path, config, changes):
    expected = reference(**changes)
    key = config.partition(":")[0]
    kept = [line for line in MODEL.splitlines() if key not in line]
    folder = write_checkpoint(
        tmp_path / "step",
        layer_files(expected, tied="tie_word_embeddings" in changes),
        model="\n".join(kept)[:-1] + f"  {config}\n}}",
    )
    model, _ = load(folder)
    assert distance(model, expected) < 1e-5


def test_a_missing_position_count_is_the_sequence_length(saved):
    rewrite(saved / "configs" / "model.yml", '  "max-position-embeddings": 64,\n', "")
    rewrite(saved / "configs" / "model.yml", '"seq-length": 64', '"seq-length": 128')
    assert locate_base(str(saved)).architecture.positions == 128


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [97, 512, 70_000])
def test_the_vocabulary_is_read_from_the_shape_of_the_embeddings(saved, rows, dtype):
    # A slice of one flat buffer, as older versions of DeepSpeed saved every tensor.
    flat = torch.zeros(1000 + rows * HIDDEN, dtype=dtype)
    tensors = {"word_embeddings.weight": flat[1000:].view(rows, HIDDEN)}
    torch.save(tensors, saved / "layer_00-model_00-model_states.pt")
    assert locate_base(str(saved)).architecture.vocabulary == rows


def test_the_vocabulary_is_read_after_an_offset_of_billions(saved):
    path = saved / "layer_00-model_00-model_states.pt"
    with zipfile.ZipFile(path) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    assert members[name].count(b"QK\0") == 1  # the tensor's bytes by name, then its offset in them
    members[name] = members[name].replace(b"QK\0", b"Q\x8a\x05" + (2**33).to_bytes(5, "little"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert locate_base(str(saved)).architecture.vocabulary == VOCABULARY


def test_a_vocabulary_of_another_size_is_reported_in_rows(saved):
    rewrite(saved / "configs" / "model.yml", '"norm"', '"padded_vocab_size": 640, "norm"')
    with pytest.raises(CheckpointError, match="vocabulary has 512 rows, the model's 640") as raised:
        load(saved)
    assert "gpt_neox.embed_in.weight  512 × 32     640 × 32" in str(raised.value)


def test_a_folder_with_latest_refers_to_the_checkpoint_it_names(saved):
    (saved.parent / "latest").write_text("global_step10\n")
    shutil.copytree(saved, saved.parent / "global_step9")
    assert locate_base(str(saved.parent)).directory == saved


@pytest.mark.parametrize("name", ["../neox/global_step10", "..", ".", "", "/", "a/b", "a\0b"])
def test_a_latest_that_is_a_path_is_refused(saved, name):
    (saved.parent / "latest").write_text(name)
    with pytest.raises(CheckpointError, match="expected the plain name of a folder beside it"):
        locate_base(str(saved.parent))


def test_a_latest_that_names_a_missing_folder_is_refused(saved):
    (saved.parent / "latest").write_text("global_step11")
    with pytest.raises(CheckpointError, match="no such folder beside it"):
        locate_base(str(saved.parent))


def test_a_hugging_face_model_with_deepspeed_files_is_read_as_such(saved):
    expected = reference()
    expected.save_pretrained(saved.parent)
    (saved.parent / "latest").write_text("global_step10")
    base = locate_base(str(saved.parent))
    assert base.kind == "local model"
    model = NeoX(base.architecture)
    load_weights(model, base.directory)
    assert distance(model, expected) < 1e-5


@pytest.mark.parametrize("only_pickle", [False, True])
@pytest.mark.parametrize("number", [0, 3])
def test_a_layer_file_that_runs_code_is_refused_and_not_run(saved, tmp_path, number, only_pickle):
    created = tmp_path / "created"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(created),))

    path = saved / f"layer_{number:02}-model_00-model_states.pt"
    if only_pickle:
        path.write_bytes(pickle.dumps(Payload()))
    else:
        torch.save(torch.load(path, weights_only=True) | {"payload": Payload()}, path)
    with pytest.raises(CheckpointError, match="nothing in it was run") as raised:
        load(saved)
    assert str(path) in str(raised.value)
    assert not created.exists()
    pickle.loads(path.read_bytes()) if only_pickle else torch.load(path, weights_only=False)
    assert created.exists()  # without protection the payload runs


@pytest.mark.parametrize("number", [0, 3])
def test_a_truncated_layer_file_is_refused(saved, number):
    path = saved / f"layer_{number:02}-model_00-model_states.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=path.name):
        load(saved)


@pytest.mark.parametrize("number", [0, 2, 4, 6, 7])
def test_a_missing_layer_file_is_named(saved, number):
    (saved / f"layer_{number:02}-model_00-model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=f"layer_0{number}-model_00-.* is missing; expected"):
        locate_base(str(saved))


def test_an_unexpected_layer_file_is_named(saved):
    rewrite(saved / "configs" / "model.yml", '"num-layers": 3', '"num-layers": 2')
    with pytest.raises(CheckpointError, match=r"layer_07-model_00-model_states.pt is unexpected"):
        locate_base(str(saved))


def test_model_parallel_parts_are_refused_naming_the_converter(saved):
    for path in list(saved.glob("layer_*")):
        shutil.copy(path, saved / path.name.replace("model_00", "model_01"))
    with pytest.raises(CheckpointError, match=r"model_01.*convert_neox_to_hf.py"):
        locate_base(str(saved))


def test_a_folder_of_pickles_only_is_refused_naming_the_converter(saved):
    for path in saved.glob("layer_*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_.*never opens.*convert_neox_to_hf.py"):
        locate_base(str(saved))


def test_a_missing_config_is_refused(saved):
    shutil.rmtree(saved / "configs")
    with pytest.raises(CheckpointError, match=r"no configs/.*copy the files there"):
        locate_base(str(saved))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"norm": "layernorm"', '"norm": "rmsnorm"', "norm: .*'layernorm', got 'rmsnorm' .*:10:3"),
        ('"rotary"', '"alibi"', "pos_emb: .*'rotary', got 'alibi'"),
        ('  "pos-emb": "rotary",\n', "", "pos_emb: .*'rotary', got 'learned'"),
        ('"norm"', '"activation": "geglu", "norm"', "activation: .*got 'geglu'"),
        ('"norm"', '"num_kv_heads": 2, "norm"', "num_kv_heads: .*4 .no grouped.*got 2"),
        ('"norm"', '"gpt_j_tied": true, "norm"', "gpt_j_tied: .*got True"),
        ('"norm"', '"sliding_window_width": 9, "norm"', "sliding_window_width: .*got 9"),
        ('"norm"', '"moe_num_experts": 8, "norm"', "moe_num_experts: .*got 8"),
        ('"norm"', '"use_mup": true, "norm"', "use_mup: .*got True"),
        ('  "num-layers": 3,\n', "", "num_layers: Field required"),
        ('"num-layers": 3', '"num-layers": 1000000000000', "num_layers: .*less than"),
        ('"hidden-size": 32', '"hidden-size": "wide"', "hidden_size: .*got 'wide'"),
        ('"hidden-size": 32', '"hidden-size": 34', "34 should divide evenly among 4 heads"),
        ('"model-parallel-size": 1', '"model-parallel-size": 2', "model_parallel_size: .*got 2"),
    ],
)
def test_settings_that_rewarm_cannot_build_are_named(saved, old, new, message):
    rewrite(saved / "configs" / "model.yml", old, new)
    with pytest.raises(CheckpointError, match=message) as raised:
        locate_base(str(saved))
    assert "convert_neox_to_hf.py" in str(raised.value)


def test_attention_that_is_not_global_is_refused(saved):
    rewrite(saved / "configs" / "training.yml", '"flash"', '"global", "local"')
    with pytest.raises(
        CheckpointError, match=r"attention_config: .*'global' or 'flash', got 'local'"
    ):
        locate_base(str(saved))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"num_layers": 4', r"num_layers is 4, and 3 at .*model.yml:5:3; keep one"),
        ("a: &a [b]\nc: *a", "aliases"),
        ("a: !!python/object/apply:os.getcwd []", "tags"),
        ("# " + 1_000_000 * "x", "larger than 1,000,000 bytes"),
        ("[", "not valid YAML"),
    ],
)
def test_an_unsafe_or_contradictory_config_is_refused(saved, text, message):
    (saved / "configs" / "overlay.yml").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        locate_base(str(saved))


CHECK = """
import json, sys
from rewarm.cli.app import main
sys.argv = ["rewarm", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    print("\\n" + json.dumps([ended.code, "torch" in sys.modules]))
"""


def test_check_reads_its_architecture_without_torch(saved, recipe_file):
    (saved.parent / "latest").write_text("global_step10")
    base = f"model={{base: {saved.parent}}}"
    ended = subprocess.run(
        [sys.executable, "-c", CHECK, "check", str(recipe_file), "--set", base],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout.splitlines()[-1]) == [0, False], ended.stderr
    assert f"weights of {saved.parent} (GPT-NeoX checkpoint)" in ended.stdout
    numbers = sum(parameter.numel() for parameter in reference().parameters())
    assert f"{numbers:,} parameters: 3 layers × 32 wide, 4 heads, 512 embedding" in ended.stdout


def test_a_run_from_it_saves_a_hugging_face_model(saved, recipe_file):
    rewrite(saved / "configs" / "model.yml", '"norm"', '"bias_gelu_fusion": true, "norm"')
    settings = [f"model={{base: {saved}}}", "tokens=2048", "schedule.peak_lr=1e-20"]
    settings += ["schedule.min_lr=1e-20", "every.evaluate=null"]
    checkpoint = train(load_recipe(recipe_file, settings))
    expected = GPTNeoXForCausalLM.from_pretrained(checkpoint)
    model, _ = load(saved)
    assert distance(model, expected) < 1e-5


def test_its_optimizer_state_cannot_be_carried(saved, recipe_file):
    settings = [f"model={{base: {saved}}}", "optimizer.carry=true"]
    with pytest.raises(CheckpointError, match=r"GPT-NeoX pickles its own.*carry: false"):
        train(load_recipe(recipe_file, settings))


def test_unknown_tensors_in_a_layer_file_are_named(saved):
    path = saved / "layer_03-model_00-model_states.pt"
    torch.save(torch.load(path, weights_only=True) | {"lora_a.weight": torch.ones(4, 2)}, path)
    with pytest.raises(CheckpointError, match=r"layers.1.lora_a.weight +4 × 2 +—"):
        load(saved)


def test_other_folders_are_not_gpt_neox_checkpoints(tmp_path):
    assert find_gpt_neox_checkpoint(tmp_path) is None
    assert find_gpt_neox_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="global_step folder of GPT-NeoX"):
        locate_base(str(tmp_path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["layer_00-model_00-model_states.pt", "configs/model.yml"])
@pytest.mark.parametrize("pipe", [True, False])
def test_links_out_of_the_folder_and_pipes_are_refused(saved, tmp_path, name, pipe):
    path = saved / name
    path.rename(tmp_path / "outside")
    if pipe:
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "outside")
    with pytest.raises(
        CheckpointError, match=r"not a regular file, or a broken link|a link out of its"
    ):
        load(saved)
