"""Recognizes files of torch.save's format before PyTorch 1.6, which is not a zip archive."""

from __future__ import annotations

from pathlib import Path

from rewarm.errors import CheckpointError

# The pickle, of protocol 2, of the number that such a file begins with: 0x1950a86a20f9469cfc6c.
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def check_not_legacy(path: Path) -> None:
    """Checks that a file is not of torch.save's legacy format, whose tensors cannot be mapped.

    Raises:
        CheckpointError: it is.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_START))
    if start == _LEGACY_START:
        raise CheckpointError(
            f"{path}: in torch.save's legacy format (before PyTorch 1.6), which rewarm does not "
            "read; write it again: python -c 'import sys, torch; p = sys.argv[1]; "
            f'torch.save(torch.load(p, map_location="cpu", weights_only=True), p)\' {path}'
        )
