import math

import pytest
import torch

from rewarm.model.architecture import Architecture
from rewarm.model.kernels.pytorch_reference import rotate
from rewarm.model.rotary_embedding import rotary_angles

ARCHITECTURE = Architecture(
    layers=1, hidden=16, heads=1, rotary=0.25, rotary_base=100.0, positions=64
)


def test_angles_by_hand():
    # Four rotary dimensions are two pairs, with frequencies 100⁰ = 1 and 100^(-1/2) = 0.1.
    cos_TR, sin_TR = rotary_angles(ARCHITECTURE, 3)
    assert cos_TR.shape == sin_TR.shape == (3, 4)
    assert cos_TR.dtype == torch.float32
    for position in range(3):
        angles = [position * 1.0, position * 0.1] * 2
        assert cos_TR[position].tolist() == pytest.approx([math.cos(a) for a in angles])
        assert sin_TR[position].tolist() == pytest.approx([math.sin(a) for a in angles])


def test_dot_products_of_rotated_vectors_depend_on_the_difference_of_positions():
    torch.manual_seed(0)
    q, k = torch.randn(2, 16)
    cos_TR, sin_TR = rotary_angles(ARCHITECTURE, 64)
    q_TK, k_TK = (rotate(x.expand(1, 1, 64, 16), cos_TR, sin_TR)[0, 0] for x in (q, k))
    scores_TT = q_TK @ k_TK.T
    for difference in (1, 7, 30):
        diagonal = scores_TT.diagonal(difference)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
