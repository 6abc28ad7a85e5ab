"""Continues prompts with a model, for people to read: greedily, or at a temperature.

```
 prompts ── tokens (B, T), padded on the right ──> NeoX ── logits (B, V) ──> one more token each
```
Padding comes after the position whose logits are read, so that attention never sees it. Random
numbers come from generators of their own: those of PyTorch stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from rewarm.data.prompts import EncodedPrompts, TextSample
from rewarm.model.neox import NeoX
from rewarm.training.device_setup import autocast
from rewarm.training.layer_compilation import without_compilation
from rewarm.training.processes import ALONE, Processes

_LENGTH_MULTIPLE = 16

NO_READ: Future[None] = Future()
"""A read that is complete, for a `wait` that only has to notice a request to stop."""
NO_READ.set_result(None)


def continue_prompts(
    model: NeoX,
    prompts: EncodedPrompts,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    precision: str = "fp32",
    wait: Callable[[Future[Any]], Any] = Future.result,
    processes: Processes = ALONE,
) -> list[TextSample]:
    """Returns how a model continues each prompt, up to its end-of-text token.

    Every token takes a forward pass over all tokens before it.

    Args:
        model: on the device to use.
        prompts: what to continue, and how far.
        temperature: 0 for the most probable token each time.
        seed: of the random numbers at a temperature above 0; each prompt starts with it.
        precision: of the forward pass.
        wait: is called with a finished future before each pass; an error that it raises ends this.
        processes: that share the weights. All compute the same, and take the tokens of rank 0.
    """
    end_id, vocabulary = prompts.tokenizer.eos_token_id, prompts.tokenizer.vocabulary
    continuations = continue_tokens(
        model,
        prompts.ids,
        tokens=prompts.tokens,
        is_complete=lambda ids: ids[-1] == end_id,
        vocabulary=vocabulary,
        temperature=temperature,
        seed=seed,
        precision=precision,
        wait=wait,
        processes=processes,
    )
    return prompts.decode([ids[:-1] if ids[-1] == end_id else ids for ids in continuations])


@torch.no_grad()
def continue_tokens(
    model: NeoX,
    prompts: list[list[int]],
    *,
    tokens: int,
    is_complete: Callable[[list[int]], bool],
    vocabulary: int,
    temperature: float = 0.0,
    seed: int = 0,
    precision: str = "fp32",
    wait: Callable[[Future[Any]], Any] = Future.result,
    processes: Processes = ALONE,
) -> list[list[int]]:
    """Returns the tokens with which a model continues each prompt, at least one.

    Args as for `continue_prompts`, and:
        prompts: the tokens of each.
        tokens: maximum number of tokens of a continuation.
        is_complete: whether a continuation ends with its last token.
        vocabulary: number of token ids; the model's rows after them stand for no token.
    """
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    continuations: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    try:
        while open_rows and len(continuations[min(open_rows)]) < tokens:
            wait(NO_READ)
            texts = [[*prompt, *ids] for prompt, ids in zip(prompts, continuations, strict=True)]
            inputs_BT, last_B = _right_padded(texts, model.architecture.positions)
            with autocast(precision, device), without_compilation(device):
                logits_BV = model(inputs_BT.to(device), positions_B=last_B.to(device))
            drawn = _next_tokens(logits_BV[:, :vocabulary].double().cpu(), temperature, generators)
            next_ids = _of_rank_zero(drawn.to(device), processes)
            for row in sorted(open_rows):
                continuations[row].append(next_ids[row])
                if is_complete(continuations[row]):
                    open_rows.remove(row)
    finally:  # also if a stop ends it: what follows saves the divided weights
        processes.free_whole_weights(model)
    return continuations


def _right_padded(texts: list[list[int]], positions: int) -> tuple[Tensor, Tensor]:
    """Returns tokens (B, T), and the last position of each text, (B,).

    T is a multiple of 16, as fp8 matmuls need it, unless the model has fewer positions.
    """
    longest = max(map(len, texts))
    length = min(positions, -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
    rows = [[*text, *[0] * (length - len(text))] for text in texts]
    return torch.tensor(rows), torch.tensor([len(text) - 1 for text in texts])


def _next_tokens(
    logits_BV: Tensor, temperature: float, generators: list[torch.Generator]
) -> Tensor:
    """Returns the next token of each text, (B,)."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    # At most 0, so that no temperature above 0, however small, gives infinity minus infinity.
    differences_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    probabilities_BV = torch.softmax(differences_BV / temperature, -1)
    drawn = [
        torch.multinomial(row, 1, generator=generator)
        for row, generator in zip(probabilities_BV, generators, strict=True)
    ]
    return torch.cat(drawn)


def _of_rank_zero(ids: Tensor, processes: Processes) -> list[int]:
    """Returns the tokens that rank 0 has chosen: other ranks may round differently."""
    shared: list[int] = processes.sum(ids if processes.is_main else ids.zero_()).tolist()
    return shared
