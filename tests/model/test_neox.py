import json
import math

import pytest
import torch
from transformers_models import ARCHITECTURES, load_model, same_tensors, transformers_model

from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_gradients_equal_transformers(architecture, old_names, tmp_path):
    reference = transformers_model(architecture, old_names=old_names)
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if old_names:  # as in files written before the new names
        rope = config.pop("rope_parameters")
        config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": 5000}
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path)
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


def test_half_precision_rounds_the_residual_stream_once_per_layer():
    """x + (attention + MLP), the order of GPT-NeoX and transformers."""
    architecture = Architecture(layers=1, hidden=64, heads=4, vocabulary=50, positions=16)
    model = NeoX(architecture)
    initialize_weights(model, 0)
    (layer,) = model.gpt_neox.layers
    x_BTD = torch.randn(2, 16, 64).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        attended_BTD = layer.attention(layer.input_layernorm(x_BTD), model.cos, model.sin)
        added_BTD = attended_BTD + layer.mlp(layer.post_attention_layernorm(x_BTD))
        y_BTD = layer(x_BTD, model.cos, model.sin)
    assert y_BTD.dtype == torch.bfloat16
    assert torch.equal(y_BTD, x_BTD + added_BTD)


def test_the_loss_of_uniform_logits_is_the_log_of_the_vocabulary():
    model = NeoX(Architecture(layers=1, hidden=8, heads=1, vocabulary=50, positions=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    tokens = torch.randint(0, 50, (2, 9))
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(50), rel=1e-6)


def test_targets_of_minus_100_are_ignored():
    model = NeoX(Architecture(layers=1, hidden=8, heads=1, vocabulary=50, positions=8))
    initialize_weights(model, 0)
    tokens = torch.randint(0, 50, (2, 9))
    expected = model.loss(tokens[:1, :-1], tokens[:1, 1:], reduction="sum")
    targets = tokens[:, 1:].clone()
    targets[1] = -100
    assert model.loss(tokens[:, :-1], targets, reduction="sum").item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_initialized_weights_have_pythias_standard_deviations_and_depend_on_the_seed_alone():
    architecture = Architecture(layers=3, hidden=256, heads=4, vocabulary=512, positions=16)
    models = [NeoX(architecture) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialize_weights(model, seed)
    first, repeated, other = (model.state_dict() for model in models)
    assert same_tensors(first, repeated)
    assert not same_tensors(first, other)
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_number_of_parameters_is_that_of_the_architecture(architecture, tmp_path):
    transformers_model(architecture).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == model.architecture.parameters


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_compiled_layers_in_bf16_are_close_to_eager_fp32():
    torch.manual_seed(0)
    architecture = Architecture(layers=4, hidden=256, heads=4, vocabulary=512, positions=128)
    plain = NeoX(architecture)
    initialize_weights(plain, 0)
    compiled = NeoX(architecture)
    compiled.load_state_dict(plain.state_dict())
    plain.cuda()
    compiled.cuda().compile_layers()
    tokens = torch.randint(0, 512, (8, 129), device="cuda")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = plain.loss(inputs, targets)
    expected.backward()
    with torch.autocast("cuda", torch.bfloat16):
        loss = compiled.loss(inputs, targets)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (a.grad - b.grad).norm() / a.grad.norm() < 3e-2, name
