"""Continues prompts with a checkpoint, a run's last checkpoint, or any NeoX base."""

from __future__ import annotations

from pathlib import Path

from rewarm.checkpoints.find_checkpoint import locate_base, read_last_checkpoint
from rewarm.checkpoints.load_weights import load_model
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.data.prompts import TextSample, encode_prompts
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import CheckpointError, DataError
from rewarm.model.attention_backend import choose_backend
from rewarm.training.device_setup import find_device
from rewarm.training.text_samples import continue_prompts


def sample_checkpoint(
    name: str,
    texts: list[str],
    *,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer: str | None = None,
    precision: str = "fp32",
) -> list[TextSample]:
    """Returns how a checkpoint continues prompts; arguments as for `continue_prompts`.

    Args:
        name: a checkpoint, a run, RUN@STEP, or a base.
        texts: the prompts.
        tokens: maximum number of tokens of a continuation.
        temperature: 0 for the most probable token each time.
        seed: of the random numbers at a temperature above 0.
        tokenizer: a tokenizer to use; None for the one in the model's directory.
        precision: of the forward pass.

    Raises:
        CheckpointError: it cannot be found or loaded, or a prompt is too long for it.
        DataError: its tokenizer cannot be read, or cannot encode a prompt.
    """

    def sample_from(directory: str | Path) -> list[TextSample]:
        base = locate_base(str(directory))
        if base.kind == "rewarm checkpoint":
            verify_checkpoint(base.directory)
        if tokenizer is None and not (base.directory / "tokenizer.json").is_file():
            raise DataError(f"{base.name}: has no tokenizer.json; name its tokenizer: --tokenizer")
        own = load_tokenizer(tokenizer or str(base.directory))
        rows, positions = base.architecture.vocabulary, base.architecture.positions
        if own.vocabulary > rows:
            raise CheckpointError(
                f"{base.name}: has {rows:,} embedding rows, and the tokenizer {own.vocabulary:,} "
                "entries; name the model's own tokenizer"
            )
        prompts = encode_prompts(
            own, texts, tokens=tokens, limit=positions, limit_name="the model's positions"
        )
        model, _ = load_model(base.architecture, base.directory)
        device = find_device()
        choose_backend(device, deterministic=True)
        return continue_prompts(
            model.to(device), prompts, temperature=temperature, seed=seed, precision=precision
        )

    # A run that trains may delete a checkpoint while it is read, after it saved a newer one.
    return read_last_checkpoint(Path(name), sample_from) or sample_from(name)
