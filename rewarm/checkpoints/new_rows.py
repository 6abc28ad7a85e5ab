"""Gives the embedding and the head of a base their rows for new tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from rewarm.data.vocabulary_growth import VocabularyGrowth
from rewarm.errors import CheckpointError


def with_new_rows(matrix_VD: Tensor, growth: VocabularyGrowth) -> Tensor:
    """Returns a matrix in fp32 whose rows without an entry of the base are the mean of the others.

    Args:
        matrix_VD: the embedding or the head, (rows of the base, width).
        growth: the new entries.

    Raises:
        CheckpointError: the matrix has fewer rows than the base's tokenizer needs.
    """
    assert growth.base_ids is not None
    ids = torch.tensor(sorted(growth.base_ids))
    if int(ids[-1]) >= len(matrix_VD):
        raise CheckpointError(
            f"the base's tokenizer has an entry with id {int(ids[-1]):,}, and its weights only "
            f"{len(matrix_VD):,} rows; use weights and tokenizer of the same model"
        )
    mean_D = matrix_VD[ids].double().mean(0).float()
    grown_VD = mean_D.repeat(growth.rows, 1)
    grown_VD[ids] = matrix_VD[ids].float()
    return grown_VD
