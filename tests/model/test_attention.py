import pytest
import torch

from rewarm.model.architecture import Architecture
from rewarm.model.attention import Attention, document_mask
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.model.rotary_embedding import rotary_angles


def test_the_document_mask_by_hand():
    mask = document_mask(torch.tensor([[5, 0, 6, 7]]), separator_id=0)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],  # a separator belongs to the document that it ends
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


def test_attention_is_causal():
    torch.manual_seed(0)
    architecture = Architecture(layers=1, hidden=32, heads=4, vocabulary=50, positions=8)
    attention, angles = Attention(architecture), rotary_angles(architecture, 8)
    x_BTD = torch.randn(2, 8, 32)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 5:] += 1
    before, after = attention(x_BTD, *angles), attention(changed_BTD, *angles)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amin(dim=(0, 2)).min() > 0


def test_separate_documents_do_not_attend_to_each_other():
    model = NeoX(Architecture(layers=2, hidden=32, heads=4, vocabulary=50, positions=32))
    initialize_weights(model, 1)
    documents = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 14, 0]]
    packed = torch.tensor([[token for document in documents for token in document]])
    separate = torch.cat([model(torch.tensor([document]))[0] for document in documents])
    assert (model(packed, separator_id=0)[0] - separate).abs().max() < 1e-5
    assert (model(packed)[0] - separate).abs().max() > 1e-3  # without a separator they do


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_separate_documents_equal_those_on_a_cpu():
    torch.manual_seed(0)
    model = NeoX(Architecture(layers=2, hidden=256, heads=4, vocabulary=50, positions=256))
    initialize_weights(model, 1)
    tokens = torch.randint(0, 50, (4, 256))
    expected = model(tokens, separator_id=0)
    model.cuda().compile_layers()
    assert (model(tokens.cuda(), separator_id=0).cpu() - expected).abs().max() < 2e-2
