import json
import math
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.load_weights import load_weights
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights

# parallel residual, rotary share, tied, activation, attention bias, (layers, hidden, heads)
SHAPES = [
    (True, 0.25, False, "gelu", True, (2, 32, 4)),
    (True, 1.0, False, "gelu", True, (3, 48, 4)),
    (False, 0.25, False, "gelu", True, (2, 64, 4)),
    (False, 1.0, True, "gelu_new", True, (2, 32, 2)),
    (True, 0.25, True, "gelu_fast", True, (1, 64, 8)),
    (True, 0.5, False, "gelu_pytorch_tanh", False, (2, 32, 2)),
    (False, 0.5, True, "relu", False, (2, 40, 5)),
    (True, 0.25, False, "silu", True, (4, 32, 4)),
]


def theirs(shape, *, old_spelling, **more):
    parallel, rotary, tied, activation, bias, (layers, hidden, heads) = shape
    rotation = (
        {"rotary_pct": rotary, "rotary_emb_base": 5000}
        if old_spelling
        else {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000.0,
                "partial_rotary_factor": rotary,
            }
        }
    )
    config = GPTNeoXConfig(
        vocab_size=97, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=3 * hidden, max_position_embeddings=48, hidden_act=activation,
        use_parallel_residual=parallel, tie_word_embeddings=tied, attention_bias=bias,
        bos_token_id=0, eos_token_id=0, **rotation, **more,
    )  # fmt: skip
    torch.manual_seed(layers)
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():  # fresh biases are 0 and norms 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def by_disk_name(model):
    """Newer transformers call the head lm_head in memory, and embed_out on disk as ever."""
    return {
        name.replace("lm_head.", "embed_out."): tensor
        for name, tensor in model.state_dict().items()
    }


def ours(directory):
    model = NeoX(read_architecture(directory))
    load_weights(model, directory)
    return model


@pytest.mark.parametrize("old_spelling", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_transformers(shape, old_spelling, tmp_path):
    reference = theirs(shape, old_spelling=old_spelling)
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if old_spelling:  # as files written before the new spelling have it
        rope = config.pop("rope_parameters")
        config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": 5000}
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = ours(tmp_path)
    tokens = torch.randint(0, 97, (3, 49))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = reference(inputs).logits
    assert (model(inputs) - expected).abs().max() < 1e-5

    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    model.loss(inputs, targets).backward()
    gradients = {
        name.replace("lm_head.", "embed_out."): parameter
        for name, parameter in reference.named_parameters()
    }
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name].grad).abs().max() < 1e-4, name


def test_the_loss_is_hand_worked_on_uniform_logits():
    model = NeoX(Architecture(layers=1, hidden=8, heads=1, vocabulary=50, positions=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    tokens = torch.randint(0, 50, (2, 9))
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(50), rel=1e-6)


def test_targets_that_do_not_count_do_not_count():
    model = NeoX(Architecture(layers=1, hidden=8, heads=1, vocabulary=50, positions=8))
    initialize_weights(model, 0)
    tokens = torch.randint(0, 50, (2, 9))
    one = model.loss(tokens[:1, :-1], tokens[:1, 1:], reduction="sum")
    targets = tokens[:, 1:].clone()
    targets[1] = -100
    assert model.loss(tokens[:, :-1], targets, reduction="sum").item() == pytest.approx(
        one.item(), rel=1e-6
    )


def test_separate_documents_do_not_see_each_other():
    model = NeoX(Architecture(layers=2, hidden=32, heads=4, vocabulary=50, positions=32))
    initialize_weights(model, 1)
    documents = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 14, 0]]
    packed = torch.tensor([[token for one in documents for token in one]])
    alone = torch.cat([model(torch.tensor([one]))[0] for one in documents])
    assert (model(packed, separator=0)[0] - alone).abs().max() < 1e-5
    assert (model(packed)[0] - alone).abs().max() > 1e-3  # across, they do


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_separate_documents_on_a_gpu_are_those_on_a_cpu():
    torch.manual_seed(0)
    model = NeoX(Architecture(layers=2, hidden=256, heads=4, vocabulary=50, positions=256))
    initialize_weights(model, 1)
    tokens = torch.randint(0, 50, (4, 256))
    expected = model(tokens, separator=0)
    model.cuda().compile_layers()
    assert (model(tokens.cuda(), separator=0).cpu() - expected).abs().max() < 2e-2


def test_sharded_safetensors_are_read(tmp_path):
    reference = theirs(SHAPES[0], old_spelling=False)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(ours(tmp_path).state_dict(), by_disk_name(reference))


def test_a_pickled_state_dict_is_read_as_plain_tensors(tmp_path):
    reference = theirs(SHAPES[0], old_spelling=False)
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    # What old Pythia revisions carry beside the parameters.
    state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    state["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    state["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert same(ours(tmp_path).state_dict(), by_disk_name(reference))
    matched = load_weights(NeoX(read_architecture(tmp_path)), tmp_path)
    assert matched == (28, 3)  # two layers of 12, two embeddings, a norm of two; the three above


def test_half_precision_weights_become_fp32(tmp_path):
    reference = theirs(SHAPES[0], old_spelling=False).half()
    reference.save_pretrained(tmp_path)
    loaded = ours(tmp_path).state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert same(loaded, {name: t.float() for name, t in by_disk_name(reference).items()})


class Payload:
    def __reduce__(self):
        return (open, ("/tmp/rewarm-was-here", "w"))


def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path):
    theirs(SHAPES[0], old_spelling=False).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    target = tmp_path / "ran"
    Payload.__reduce__ = lambda self: (open, (str(target), "w"))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match="not plain tensors"):
        ours(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_weights_of_another_model_are_refused_by_name(tmp_path, change, said):
    theirs(SHAPES[0], old_spelling=False).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(said)):
        ours(tmp_path)


def test_a_folder_without_weights_and_one_with_a_cut_file_are_refused(tmp_path):
    theirs(SHAPES[0], old_spelling=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        ours(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights; expected one of"):
        ours(tmp_path)


def test_new_weights_have_pythias_spread_and_are_the_same_each_time():
    shape = Architecture(layers=3, hidden=256, heads=4, vocabulary=512, positions=16)
    models = [NeoX(shape) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialize_weights(model, seed)
    first, again, other = (model.state_dict() for model in models)
    assert same(first, again)
    assert not same(first, other)
    # √(2 / (5 · 256)) = 0.0395285; 2 / (3 · √256) = 0.0416667
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    assert first[name].std().item() == pytest.approx(0.0395285, rel=0.02)
    assert first["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"].std().item() == pytest.approx(
        0.0416667, rel=0.02
    )
    assert first["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"].abs().max() == 0
    assert first["gpt_neox.final_layer_norm.weight"].unique().tolist() == [1.0]


def test_tied_embeddings_are_one_parameter():
    model = NeoX(Architecture(layers=1, hidden=8, heads=1, vocabulary=50, positions=8, tied=True))
    assert model.embed_out.weight is model.gpt_neox.embed_in.weight
    assert sum(p.numel() for p in model.parameters()) == model.architecture.parameters


@pytest.mark.parametrize("shape", SHAPES)
def test_the_counted_parameters_are_the_ones_there(shape, tmp_path):
    theirs(shape, old_spelling=False).save_pretrained(tmp_path)
    model = ours(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == model.architecture.parameters


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_layers_in_bf16_agree_with_eager_fp32_on_a_gpu():
    torch.manual_seed(0)
    shape = Architecture(layers=4, hidden=256, heads=4, vocabulary=512, positions=128)
    plain = NeoX(shape)
    initialize_weights(plain, 0)
    compiled = NeoX(shape)
    compiled.load_state_dict(plain.state_dict())
    plain.cuda()
    compiled.cuda().compile_layers()
    tokens = torch.randint(0, 512, (8, 129), device="cuda")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = plain.loss(inputs, targets)
    expected.backward()
    with torch.autocast("cuda", torch.bfloat16):
        found = compiled.loss(inputs, targets)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (a.grad - b.grad).norm() / a.grad.norm() < 3e-2, name


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
