"""A tokenizer with new entries for a base: the base's entries keep their ids and their rows.

```
 rows of the base    0 ······ 50,276 │ 50,277 ·· 50,303
                     entries         │ padding, never trained
 rows of the run     0 ······ 50,276 │ 50,277 ·················· 52,095
                     as they were    │ the mean of the rows before
```
With the mean, no new token is more probable than the average one at the start (Hewitt 2021,
"Initializing New Word Embeddings for Pretrained Language Models").
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import CheckpointError, DataError
from rewarm.path_contents import nearest_name
from rewarm.paths import short_path

_ROW_MULTIPLE = 128
"""GPT-NeoX pads the rows of its models to a multiple of this."""


class VocabularyGrowth(NamedTuple):
    """New entries of a base's tokenizer, and the rows of the model that has them."""

    directory: Path
    """The folder of the new tokenizer."""
    entries: int
    """Of the new tokenizer: its highest id + 1."""
    rows: int
    """Of the embedding with the new entries."""
    base_rows: int
    """Of the base's embedding."""
    base_ids: frozenset[int] | None
    """The ids of the base's entries; None if its tokenizer is not on this machine yet."""

    def __str__(self) -> str:
        rows = f"{self.entries:,} entries in {self.rows:,} rows"
        if self.base_ids is None:
            return f"{rows}; that the base's keep their ids is checked when it is downloaded"
        unused, added = self.base_rows - len(self.base_ids), self.rows - self.base_rows
        sources = [
            f"{unused:,} that no entry of the base used" * bool(unused),
            f"{added:,} added" * bool(added),
        ]
        return (
            f"{len(self.base_ids):,} → {rows}; {' and '.join(filter(None, sources))} become the "
            "mean of those that the base's entries have"
        )


def tokenizer_folder(tokenizer: str) -> Path:
    """Returns the folder of `model.tokenizer`, which may be that of its tokenizer.json.

    Raises:
        DataError: there is no tokenizer.json.
    """
    path = Path(short_path(tokenizer))
    folder = path.parent if path.name == "tokenizer.json" and path.is_file() else path
    if not (folder / "tokenizer.json").is_file():
        what = "no such file or folder" if not path.exists() else "has no tokenizer.json"
        if path.is_file():
            what = "is a file of another name"
        raise DataError(
            f"{short_path(tokenizer)}: {what}; model.tokenizer should be a folder with a "
            f"tokenizer.json, or that file{nearest_name(path)}"
        )
    return folder


def find_growth(
    tokenizer: str, base_directory: Path, base_rows: int, *, is_here: bool = True
) -> VocabularyGrowth:
    """Returns how a tokenizer extends that of a base.

    Args:
        tokenizer: a folder with a tokenizer.json, or that file.
        base_directory: the base's directory.
        base_rows: rows of the base's embedding.
        is_here: whether the base is on this machine.

    Raises:
        DataError: a tokenizer cannot be read.
        CheckpointError: an entry of the base is missing or has another id, or none is new.
    """
    folder = tokenizer_folder(tokenizer)
    new = load_tokenizer(str(folder))
    rows = _rows_for(new.vocabulary, base_rows)
    if not is_here:
        return VocabularyGrowth(folder, new.vocabulary, rows, base_rows, None)
    if not (base_directory / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{base_directory}: has no tokenizer.json, so it cannot be checked that its entries "
            f"keep their ids in {folder}; copy the base's tokenizer.json there"
        )
    base = load_tokenizer(str(base_directory))
    entries = base.encoder.get_vocab(with_added_tokens=True)
    new_entries = new.encoder.get_vocab(with_added_tokens=True)
    moved = [entry for entry, number in entries.items() if new_entries.get(entry) != number]
    if moved:
        entry = min(moved, key=entries.__getitem__)
        raise CheckpointError(
            f"{folder}: {len(moved):,} of the base's {len(entries):,} entries have another id here "
            f"or are missing, such as {entry!r}: {entries[entry]:,} → "
            f"{new_entries.get(entry, 'missing')}; add new entries after those of {base_directory}"
        )
    if base.eos_token != new.eos_token:
        raise CheckpointError(
            f"{folder}: its end-of-text token is {new.eos_token!r}, and the base's "
            f"{base.eos_token!r}; set eos_token in its tokenizer_config.json"
        )
    if new_entries.keys() == entries.keys():
        raise CheckpointError(
            f"{folder}: no entry is new: it has the {len(entries):,} entries of {base_directory}; "
            "remove model.tokenizer"
        )
    ids = frozenset(entries.values())
    return VocabularyGrowth(folder, new.vocabulary, rows, base_rows, ids)


def _rows_for(entries: int, base_rows: int) -> int:
    """Returns the rows for so many entries: padded, where those of the base are."""
    if entries <= base_rows:
        return base_rows
    multiple = 1 if base_rows % _ROW_MULTIPLE else _ROW_MULTIPLE
    return -(-entries // multiple) * multiple
