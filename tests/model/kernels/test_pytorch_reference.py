import math

import pytest
import torch
from torch import nn

from rewarm.model.kernels import pytorch_reference


@pytest.mark.parametrize(
    ("name", "at_one"),
    [
        ("relu", 1.0),
        ("silu", 1 / (1 + math.exp(-1))),
        ("gelu", 0.5 * (1 + math.erf(1 / math.sqrt(2)))),
        *(
            (name, 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)))
            for name in pytorch_reference.TANH_GELUS
        ),
    ],
)
def test_activations_by_hand(name, at_one):
    assert pytorch_reference.activate(torch.tensor(1.0), name).item() == pytest.approx(at_one)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="no activation named 'tanh'"):
        pytorch_reference.activate(torch.tensor(1.0), "tanh")


def test_only_the_first_dimensions_are_rotated():
    # Two rotary dimensions of three, by a quarter turn: (1, 2) becomes (-2, 1).
    x_BHTK = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    cos_TR, sin_TR = torch.zeros(1, 2), torch.ones(1, 2)
    assert pytorch_reference.rotate(x_BHTK, cos_TR, sin_TR).flatten().tolist() == [-2.0, 1.0, 3.0]


def test_cross_entropy_by_hand():
    head = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1.0]]))
    x_BTD = torch.tensor([[[1.0], [2.0], [3.0]]])
    targets_BT = torch.tensor([[0, 1, -100]])
    losses = [math.log(1 + math.exp(1)), math.log(1 + math.exp(-2))]
    total = pytorch_reference.cross_entropy(x_BTD, head, targets_BT, "sum")
    mean = pytorch_reference.cross_entropy(x_BTD, head, targets_BT, "mean")
    assert total.item() == pytest.approx(sum(losses))
    assert mean.item() == pytest.approx(sum(losses) / 2)
