"""GPT-NeoX models of transformers, the reference for architecture and weights."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.load_weights import load_weights
from rewarm.model.neox import NeoX

# parallel residual, rotary fraction, tied, activation, attention bias, (layers, hidden, heads)
ARCHITECTURES = [
    (True, 0.25, False, "gelu", True, (2, 32, 4)),
    (True, 1.0, False, "gelu", True, (3, 48, 4)),
    (False, 0.25, False, "gelu", True, (2, 64, 4)),
    (False, 1.0, True, "gelu_new", True, (2, 32, 2)),
    (True, 0.25, True, "gelu_fast", True, (1, 64, 8)),
    (True, 0.5, False, "gelu_pytorch_tanh", False, (2, 32, 2)),
    (False, 0.5, True, "relu", False, (2, 40, 5)),
    (True, 0.25, False, "silu", True, (4, 32, 4)),
]


def transformers_model(architecture, *, old_names=False, **settings):
    """A model of transformers with random weights; `old_names` of rotary settings."""
    parallel, rotary, tied, activation, bias, (layers, hidden, heads) = architecture
    rotation = (
        {"rotary_pct": rotary, "rotary_emb_base": 5000}
        if old_names
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
        bos_token_id=0, eos_token_id=0, **rotation, **settings,
    )  # fmt: skip
    torch.manual_seed(layers)
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():  # new biases are 0 and norms 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def state_dict_on_disk(model):
    """The state dict by the names on disk; newer transformers call the head lm_head in memory."""
    return {
        name.replace("lm_head.", "embed_out."): tensor
        for name, tensor in model.state_dict().items()
    }


def load_model(directory):
    """Rewarm's model with the weights of a directory."""
    model = NeoX(read_architecture(directory))
    load_weights(model, directory)
    return model


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
