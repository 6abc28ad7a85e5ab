"""The model of a run as the LM Evaluation Harness sees it: neither copied nor written first.

```
 requests ── own share ──> HFLM (tokens, batches, windows) ── tokens ──> NeoX ──> log-likelihoods
     └── the shares of other ranks ──────────────────────────────────────────────┘
```
Everything but the forward pass is the harness's own, so that the figures are those of its `hf`
model on the checkpoint of the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rewarm.checkpoints.model_files import TokenizerSource, write_tokenizer
from rewarm.model.neox import NeoX
from rewarm.training.device_setup import autocast
from rewarm.training.harness_tasks import quiet_harness
from rewarm.training.layer_compilation import without_compilation
from rewarm.training.processes import Processes
from rewarm.training.text_samples import NO_READ, continue_tokens


class CallableModel:
    """A model that is called as one of transformers, of which the harness needs only this."""

    def __init__(self, model: NeoX, precision: str, wait: Callable[[Future[Any]], Any]) -> None:
        """Takes the model, the precision of the forward pass, and how to notice a stop."""
        from transformers import AutoConfig

        self._model, self._precision, self._wait = model, precision, wait
        self.config = AutoConfig.for_model(**model.architecture.to_hugging_face())
        self.device = next(model.parameters()).device

    def __call__(self, tokens_BT: Tensor) -> SimpleNamespace:
        """Returns the logits, (B, T, V), in fp32."""
        self._wait(NO_READ)
        with autocast(self._precision, self.device), without_compilation(self.device):
            return SimpleNamespace(logits=self._model(tokens_BT).float())


def as_language_model(
    model: NeoX,
    tokenizer: TokenizerSource,
    *,
    microbatch: int,
    precision: str,
    wait: Callable[[Future[Any]], Any],
    processes: Processes,
) -> Any:
    """Returns a model as an `lm_eval.api.model.LM`.

    Args:
        model: on the device to use; it stays in training.
        tokenizer: that of the run's checkpoints.
        microbatch: sequences at once.
        precision: of the forward pass.
        wait: is called with a finished future before each pass; an error that it raises ends it.
        processes: that share the requests.
    """
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), tokenizer, model.architecture.positions)
        own_tokenizer = AutoTokenizer.from_pretrained(folder)

    # The harness has no types: nothing can be known about the class that it is extended by.
    class RunningModel(HFLM):  # type: ignore[misc]
        """HFLM on the running model, whose requests all ranks share."""

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            # Every rank runs as many batches as every other: they gather weights together.
            share = -(-len(requests) // processes.size)
            own = (list(requests[processes.rank * share :]) + [requests[-1]] * share)[:share]
            results = super()._loglikelihood_tokens(own, True, override_bs)
            gathered = processes.gather(results)
            answers = [tuple(answer) for part in gathered for answer in part]
            return answers[: len(requests)]

        def _model_generate(
            self, context: Tensor, max_length: int, stop: list[str], **settings: Any
        ) -> Tensor:
            if settings.get("do_sample"):
                raise ValueError("tasks that draw tokens at random cannot be measured in a run")
            prompts = [
                row[mask.bool()].tolist()
                for row, mask in zip(context, settings["attention_mask"], strict=True)
            ]
            continuations = continue_tokens(
                model,
                prompts,
                tokens=max_length - context.shape[1],
                is_complete=lambda ids: any(
                    text in self.tok_decode(ids, skip_special_tokens=False) for text in stop
                ),
                vocabulary=len(self.tokenizer),
                precision=precision,
                wait=wait,
                processes=processes,
            )
            longest = max(map(len, continuations))
            rows = [ids + [self.eot_token_id] * (longest - len(ids)) for ids in continuations]
            return torch.cat((context, torch.tensor(rows, device=context.device)), 1)

    with quiet_harness():
        return RunningModel(
            pretrained=CallableModel(model, precision, wait),
            tokenizer=own_tokenizer,
            batch_size=microbatch,
            # Requests with the same context share a pass, so that the number of batches differs.
            logits_cache=processes.size == 1,
        )
