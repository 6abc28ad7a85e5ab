"""Finds the files to read: all that a folder holds and that is data, and why the rest is not."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from rewarm.data.inputs.dataset_folders import (
    are_splits,
    check_all_parts,
    choose_split,
    files_of_saved_dataset,
    saved_splits,
    split_of_name,
)
from rewarm.data.inputs.input_formats import (
    InputFormat,
    ending_of,
    format_of,
    readable_formats,
    stem_of,
)
from rewarm.data.inputs.input_records import SkippedInput
from rewarm.data.sharding.bad_records import BAD_RECORDS_FILE
from rewarm.errors import DataError

_HIDDEN = "hidden"
_LEFTOVER_FOLDERS = {"__pycache__", "__MACOSX", "lost+found"}
_LEFTOVER = re.compile(r".*~|#.*#|.*\.(bak|tmp|temp|swp|partial|part|incomplete|crdownload)", re.I)
_NO_DATA = re.compile(
    r"(un)?licen[cs]e|copying|notice|copyright|checksums?|"
    r"(md5|sha-?\d*|crc32|b2|blake2b?)(-?sums?)?",
    re.I,
)
_METADATA = {
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("config.json", "tokenizer.json", "tokenizer_config.json", "package.json", "metadata.json"),
}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.I | re.S)  # pathlib joins several slashes
_BIN_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.bin", re.I)


class InputFiles(NamedTuple):
    """The files to read, in order, and what is not read."""

    files: list[Path]
    skipped: list[SkippedInput]


def find_input_files(inputs: list[Path], *, split: str | None = None) -> InputFiles:
    """Returns the files to read: the inputs in order, with each folder's files sorted by path.

    In a folder, hidden files, leftovers of editors, licences, checksums, caches of `datasets` and
    files of other formats are skipped, with the reason; a file that is named itself never is.

    Args:
        inputs: files, and folders of files.
        split: the split to read of a folder that holds several.

    Raises:
        DataError: an input does not exist, is named twice, is no regular file or is only a
            pointer to one; its format is unknown; a folder has no readable file, several splits
            and none is chosen, one text twice, or not all parts of a file.
    """
    files: list[Path] = []
    skipped: list[SkippedInput] = []
    first_names: dict[tuple[int, int], tuple[Path, int]] = {}  # device, inode: file, input
    if split is not None and not any(path.is_dir() for path in inputs):
        raise DataError(f"--split {split}: only a folder has splits, and no input is a folder")
    for number, path in enumerate(inputs):
        if path.is_dir():
            in_input = _find_in_folder(path, split)
            skipped += in_input.skipped
        else:
            _check_format(path)
            in_input = InputFiles([path], [])
        for file in in_input.files:
            status = file.stat()
            key = (status.st_dev, status.st_ino)
            if key not in first_names:
                first_names[key] = (file, number)
                files.append(file)
                continue
            first, first_number = first_names[key]
            if first_number != number:
                raise DataError(
                    f"{file}: given twice, as {inputs[first_number]} and as {path}; name each file "
                    "once"
                )
            skipped.append(SkippedInput(str(file), f"the same file as {first}"))
    return InputFiles(files, skipped)


def _check_format(path: Path) -> None:
    """Checks that an input that is not a folder can be read.

    Raises:
        DataError: it cannot.
    """
    if not path.exists():
        url = _URL.fullmatch(str(path))
        if url:
            raise DataError(
                f"{url[1]}://{url[2]}: inputs are local files and folders; download it first"
            )
        raise DataError(f"{path}: no such file")
    _check_regular(path)
    if format_of(path) is None:
        raise DataError(
            f"{path}: this file format cannot be read (supported: {readable_formats()})"
        )


def _check_regular(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: a broken link; restore the file that it leads to")
    if not path.is_file():
        raise DataError(
            f"{path}: a pipe or a device, not a regular file, which can be read again after a "
            "kill; write what comes out of it to a file first"
        )
    if path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS_POINTER):
        raise DataError(
            f"{path}: a pointer of git-lfs, not the file itself; fetch it with: git lfs pull"
        )


def _find_in_folder(folder: Path, split: str | None) -> InputFiles:
    if _is_shard_folder(folder):
        raise DataError(
            f"{folder}: token shards that `rewarm shard` wrote; name the texts that they come from"
        )
    skipped: list[SkippedInput] = []
    files = sorted(_walk(folder, skipped))
    files = _without_other_data(files, skipped)
    splits, others = _splits_of(folder, files)
    chosen = choose_split(folder, splits, others, split)
    if chosen is not None:
        in_split = set(splits[chosen])
        reason = f"not in split {chosen!r}"
        skipped += [SkippedInput(str(file), reason) for file in files if file not in in_split]
        files = splits[chosen]
    if not files:
        skipped_names = "".join(
            f"; {PurePath(location).name}: {reason}" for location, reason in skipped[:3]
        )
        raise DataError(
            f"{folder}: no text in this folder (looked for {readable_formats()}){skipped_names}"
        )
    for file in files:
        _check_regular(file)
    _check_other_forms(files)
    check_all_parts(files)
    return InputFiles(files, skipped)


def _walk(folder: Path, skipped: list[SkippedInput]) -> Iterator[Path]:
    """Yields the readable files in a folder and those below it; adds the others to `skipped`."""
    for root_name, folder_names, file_names in os.walk(folder, onerror=_raise):
        root = Path(root_name)
        for name in sorted(folder_names):
            reason = _reason_to_skip_folder(root / name)
            if reason:
                skipped.append(SkippedInput(str(root / name), reason))
                folder_names.remove(name)
        names = files_of_saved_dataset(root)
        if names is not None:
            yield from (root / name for name in names)
        for name in sorted(set(file_names) - set(names or ())):
            reason = _reason_to_skip(PurePath(name))
            if reason is None and names is not None and format_of(PurePath(name)):
                reason = "not one of the files that state.json lists"
            if name.lower().endswith(".idx") and not any(
                other.startswith(name[:-4]) and other.lower().endswith(".bin")
                for other in file_names
            ):
                reason = "an index without its .bin"
            if reason is None and _is_loop(root / name):
                reason = "a link that leads to itself"
            if reason:
                skipped.append(SkippedInput(str(root / name), reason))
            elif format_of(PurePath(name)):
                yield root / name


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}")


def _is_loop(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _reason_to_skip_folder(path: Path) -> str | None:
    if path.name.startswith("."):
        return _HIDDEN
    if path.name in _LEFTOVER_FOLDERS:
        return "a leftover of another program"
    if path.name.endswith(".partial"):
        return "unfinished output of `rewarm shard`"
    if _is_shard_folder(path):
        return "token shards that `rewarm shard` wrote"
    if path.is_symlink():
        return "a link to a folder; name the folder itself as an input"
    if format_of(path) and not any(path.iterdir()):
        return "an empty folder with the name of a file"
    return None


def _is_shard_folder(path: Path) -> bool:
    return (path / "index.json").is_file() and (path / "tokenizer.json").is_file()


def _reason_to_skip(name: PurePath) -> str | None:
    """Returns why a file in a folder is not data by its name; None if it may be."""
    if name.name.startswith("."):
        return _HIDDEN
    if _LEFTOVER.fullmatch(name.name):
        return "a leftover of an editor or a download"
    if name.suffix.lower() == ".idx":
        return None  # the index of a .bin, which is read with it
    input_format = format_of(name)
    if input_format is None:
        return f"its ending is not read: {ending_of(name)}"
    if input_format.name == "arrow" and name.name.startswith("cache-"):
        return "a cache of `datasets`"
    if name.name == BAD_RECORDS_FILE:
        return "records that `rewarm shard` left out"
    if name.name.lower() in _METADATA:
        return "metadata"
    if is_licence_or_checksum(name, input_format):
        return "a licence or checksums, by its name; name it as an input if it is data"
    return None


def is_licence_or_checksum(name: PurePath, input_format: InputFormat) -> bool:
    """Returns whether a text file holds a licence or checksums, by its name."""
    return input_format.name == "txt" and bool(_NO_DATA.fullmatch(name.name.split(".")[0]))


def is_hidden(path: PurePath) -> bool:
    """Returns whether a file, or a folder that it is in, is hidden or a leftover."""
    return any(
        (part.startswith(".") and part not in {".", ".."}) or part in _LEFTOVER_FOLDERS
        for part in path.parts
    )


def _without_other_data(files: list[Path], skipped: list[SkippedInput]) -> list[Path]:
    """Returns the files without what `img2dataset` writes beside each tar: a table and counts."""
    with_counts = {
        file.with_name(file.name.removesuffix("_stats.json"))
        for file in files
        if file.name.endswith("_stats.json")
    }
    beside_tars = {
        file
        for file in files
        if (file.name.endswith("_stats.json") and file.with_name(file.name[:-11] + ".tar").exists())
        or (file.suffix == ".parquet" and file.with_suffix("") in with_counts)
    }
    reason = "img2dataset's table or counts about the tar of this name"
    skipped += [SkippedInput(str(file), reason) for file in files if file in beside_tars]
    return [file for file in files if file not in beside_tars]


def _splits_of(folder: Path, files: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Returns the files of each split that the names in a folder tell apart, and the others."""
    declared: dict[Path, list[str]] = {}
    inner_folders: dict[Path, set[str]] = {}
    for file in files:
        for parent in file.relative_to(folder).parents[:-1]:
            inner_folders.setdefault(folder / parent.parent, set()).add(parent.name)
    splits: dict[str, list[Path]] = {}
    others: list[Path] = []
    for file in files:
        name = None
        for parent in file.parents:
            if parent not in declared:
                declared[parent] = saved_splits(parent)
            inner = file.relative_to(parent).parts[0]
            if inner in declared[parent]:
                name = inner
            if parent == folder:
                break
        # In a code repository, `test` beside `src` is no split.
        parents = [
            parent.name
            for parent in reversed(file.relative_to(folder).parents[:-1])
            if are_splits(inner_folders[folder / parent.parent])
        ]
        name = name or split_of_name(PurePath(*parents, file.name))
        (others if name is None else splits.setdefault(name, [])).append(file)
    return splits, others


def _check_other_forms(files: list[Path]) -> None:
    """Checks that no text is there twice, as `zstd -d` or a conversion leaves it.

    Raises:
        DataError: two files in one folder have one name but for format and compression.
    """
    first_of: dict[Path, Path] = {}
    for file in files:
        first = first_of.setdefault(file.with_name(stem_of(file)), file)
        if first != file:
            raise DataError(
                f"{file}: beside {first.name}, which looks like the same text in another form; "
                "remove one of them, or name the files to read"
            )


def bin_part(path: Path) -> tuple[Path, int, int] | None:
    """Returns the .bin that a file is a part of, its number, and the number that its name ends at.

    The preshuffled Pile is published as NAME-00000-of-00020.bin, ..., with one NAME.idx. None if
    the file has an index of its own, or the whole has none.
    """
    match = _BIN_PART.fullmatch(path.name)
    if not match or path.with_suffix(".idx").exists():
        return None
    whole = path.with_name(match[1] + ".bin")
    return (whole, int(match[2]), int(match[3])) if whole.with_suffix(".idx").exists() else None
