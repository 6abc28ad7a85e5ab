"""Folders as `datasets` saves them and as datasets are published: data files, and splits."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

from rewarm.data.inputs.input_formats import stem_of
from rewarm.errors import DataError
from rewarm.safe_loading import read_json

_SPLIT_NAMES = {
    *("train", "training", "validation", "valid", "val", "dev", "test", "testing"),
    *("eval", "evaluation"),
}
_NO_WORD = re.compile(r"\d*|of|[0-9a-f]{16,}")
"""Parts of a name that number a file: train-00000-of-00001-1e2f3a4b5c6d7e8f.parquet."""
_PART_OF = re.compile(r"(\d{1,9})[-_]of[-_](\d{1,9})(?!\d)")


def files_of_saved_dataset(folder: Path) -> list[str] | None:
    """Returns the names of a saved dataset's files in order; None if the folder is not one.

    Its other .arrow files are caches of `.map()` and `.filter()`.

    Raises:
        DataError: its state.json is damaged, names a file that is missing, or selects rows.
    """
    state = _read_object(folder / "state.json")
    if state is None or "_data_files" not in state:
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder}: only some of its rows are selected, in a file of indices; save it again "
            "with the current version of `datasets`, which writes the selected rows"
        )
    try:
        names = [file["filename"] for file in state["_data_files"]]
        is_plain = all(PurePath(name).name == name for name in names)
    except (TypeError, KeyError):
        is_plain = False
    if not is_plain:
        raise DataError(f"{folder / 'state.json'}: damaged: its _data_files are not file names")
    for name in names:
        if not (folder / name).exists():
            raise DataError(f"{folder / name}: missing, and state.json lists it")
    return names


def saved_splits(folder: Path) -> list[str]:
    """Returns the splits of a `DatasetDict` that is saved in a folder.

    Raises:
        DataError: its dataset_dict.json is damaged, or a split is missing.
    """
    path = folder / "dataset_dict.json"
    content = _read_object(path)
    splits = [] if content is None else content.get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise DataError(f"{path}: damaged: it should list the splits")
    for name in splits:
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name}: missing, and dataset_dict.json lists it as a split")
    return splits


def are_splits(folders: set[str]) -> bool:
    """Returns whether folders beside each other are splits by their names: two or more."""
    return len(folders) > 1 and {folder.lower() for folder in folders} <= _SPLIT_NAMES


def split_of_name(path: PurePath) -> str | None:
    """Returns the split that a published file belongs to, by its folders and its name.

    >>> split_of_name(PurePath("en/c4-validation.00000-of-00008.json.gz"))
    'validation'
    >>> split_of_name(PurePath("train-spotting.txt"))
    """
    for part in path.parts[:-1]:
        if part.lower() in _SPLIT_NAMES:
            return part
    words = re.split(r"[-_.]", stem_of(path))
    is_table = path.suffix.lower() in (".arrow", ".parquet")  # json-test.arrow, as `datasets` names
    for at, word in enumerate(words):
        numbers = [number.lower() for number in words[at + 1 :]]
        if word.lower() in _SPLIT_NAMES and all(map(_NO_WORD.fullmatch, numbers)):
            return word if at == 0 or is_table or "of" in numbers else None
    return None


def choose_split(
    folder: Path, splits: dict[str, list[Path]], others: list[Path], split: str | None
) -> str | None:
    """Returns the split to read; None to read all files.

    Args:
        folder: the folder, as error messages name it.
        splits: the files of each split.
        others: the files of none.
        split: the split that the user chose.

    Raises:
        DataError: there are several, or files of none beside one, and none is chosen, or the chosen
            one does not exist.
    """
    counts = ", ".join(
        f"{name} ({len(files)} {'file' if len(files) == 1 else 'files'})"
        for name, files in sorted(splits.items())
    )
    if split is not None and split not in splits:
        raise DataError(f"{folder}: no split {split!r} (found: {counts or 'none'})")
    advice = "choose one with --split NAME, or name the files to read"
    if split is None and len(splits) > 1:
        raise DataError(f"{folder}: several splits: {counts}; {advice}")
    if split is None and splits and others:
        ((name, files),) = splits.items()
        raise DataError(
            f"{folder}: {files[0].relative_to(folder)} is of split {name!r} by its name, and "
            f"{others[0].relative_to(folder)} of none; {advice}"
        )
    return split


def check_all_parts(files: list[Path]) -> None:
    """Checks that no part of NAME-00000-of-00002, ... is missing, numbered from 0 or from 1.

    Raises:
        DataError: one is.
    """
    groups: dict[tuple[Path, str, int], set[int]] = {}
    first_files: dict[tuple[Path, str, int], Path] = {}
    for file in files:
        match = _PART_OF.search(stem_of(file))
        # The parts of a .bin share its index, which says how long they are.
        if match and file.suffix.lower() != ".bin":
            group = (file.parent, match.string[: match.start()], int(match[2]))
            groups.setdefault(group, set()).add(int(match[1]))
            first_files.setdefault(group, file)
    for group, numbers in groups.items():
        file, total = first_files[group], group[2]
        start = 0 if 0 in numbers else 1
        missing = start
        while missing in numbers:
            missing += 1
        if missing < start + total:
            raise DataError(
                f"{file}: one of {total:,} parts by its name, and number {missing} is missing "
                f"(found: {len(numbers):,}); add what is missing, or name the files to read"
            )


def _read_object(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file; None if there is no such file."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; restore it") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged: not a JSON object")
    return content
