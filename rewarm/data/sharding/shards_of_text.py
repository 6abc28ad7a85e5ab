"""Text that a recipe names in the place of shards: it is sharded into the cache on first use.

```
~/.cache/rewarm/texts/NAME-0f1e2d3c4b5a6978/      one text, its settings and a tokenizer
    1a2b3c4d5e6f7081/                             the shards of its files as they are now
    new.partial/                                  unfinished shards, from which a kill continues
    1a2b3c4d5e6f7081.download/                    the files of a text on the hub, until then
```
The shards are those that `rewarm shard` writes of the same input. Their folder is named by the
paths, sizes and modification times of the files (on the hub: by names and versions), so text
that has changed becomes other shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rewarm.data.inputs.document_readers import DEFAULT_OPTIONS, SkippedInput, find_input_files
from rewarm.data.inputs.input_files import bin_part
from rewarm.data.shard_format import ShardIndex
from rewarm.data.shard_source import names_some_shards
from rewarm.data.sharding.shard_folder import InputChangedError
from rewarm.data.sharding.shard_writer import SHARD_TOKENS, ShardingProgress, write_shards
from rewarm.data.tokenizer import Tokenizer, document_digest
from rewarm.errors import DataError
from rewarm.files import cache_dir
from rewarm.once_per_node import once_per_node
from rewarm.path_contents import FILE, OTHER_FOLDER, describe_path
from rewarm.paths import expand_path
from rewarm.remote_storage import RemoteFile, RemoteFolder, list_files

_HUB = "hf://datasets/"
_SPLIT_FILES = ("dataset_dict.json", "state.json")
"""The files of a saved dataset that state its splits and the order of its files."""
_MAX_JSON = 10_000_000
_NOTHING = "none"  # no file of a download is deleted before it is read
_ADVICE = (
    "; in a recipe, --field and --split are `field` and `split` beside `shards`; for other options "
    "write shards with `rewarm shard`, and name their folder"
)


class TextFile(NamedTuple):
    """A file of a text, and what changes with its content."""

    name: str
    """Its absolute path; on the hub, its name in the data set."""
    bytes: int
    version: str
    """The time of its last modification; on the hub, the digest of its content."""
    sha256: str | None = None
    """As the hub states it; None where it does not."""


class InputText(NamedTuple):
    """Files of text that a recipe names in the place of shards."""

    location: str
    """A file or a folder, or the URL of one on the hub."""
    field: str
    split: str | None
    files: tuple[TextFile, ...]
    """Those to read, in order, and the indices beside them."""
    skipped: tuple[SkippedInput, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    def shard_folder(self, tokenizer: Tokenizer) -> Path:
        """Returns the folder in the cache that has the shards, or will have them."""
        encoding = [
            document_digest(tokenizer.encoder),
            tokenizer.eos_token_id,
            SHARD_TOKENS,
            ShardIndex.model_fields["format"].default,
            DEFAULT_OPTIONS,
        ]
        location = self.location if self.is_on_hub else expand_path(self.location)
        name = re.sub(r"[^\w.-]", "_", PurePosixPath(location).name)[:40]
        text = _digest([location, self.field, self.split, encoding])
        return cache_dir() / "texts" / f"{name}-{text}" / _digest([file[:3] for file in self.files])

    @property
    def is_on_hub(self) -> bool:
        """Whether its files have to be downloaded."""
        return self.location.startswith(_HUB)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def has_shards(folder: Path) -> bool:
    """Returns whether a folder that `shard_text` writes is there: then it is complete."""
    return (folder / "index.json").is_file()


def find_text(location: str, field: str = "text", split: str | None = None) -> InputText | None:
    """Returns the files of a text; None if what is at a path or URL is something else.

    Args:
        location: a path, or a URL.
        field: the JSON field or table column that holds the text.
        split: the split to read of a folder that holds several.

    Raises:
        DataError: as `find_input_files`; or the hub cannot be asked.
    """
    if names_some_shards(location):
        return None
    if location.startswith(_HUB):
        return _find_on_hub(location.rstrip("/"), field, split)
    path = Path(location)
    # A missing path, a shard, a checkpoint, ... : `ShardSource` says what it is.
    if describe_path(path).what not in (FILE, OTHER_FOLDER):
        return None
    try:
        with _advice_for_recipes():
            files = find_input_files([path], split=split).files
        return InputText(location, field, split, tuple(map(_text_file, _with_indices(files))))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None


@contextmanager
def _advice_for_recipes() -> Iterator[None]:
    """Adds to an error that names options of `rewarm shard` what a recipe has instead."""
    try:
        yield
    except DataError as error:
        if " --" in str(error):
            error.args = (f"{error}{_ADVICE}",)
        raise


def _text_file(path: Path) -> TextFile:
    status = path.stat()
    return TextFile(expand_path(str(path)), status.st_size, str(status.st_mtime_ns))


def _with_indices(files: list[Path]) -> list[Path]:
    """Returns files and the .idx of each .bin, which are read with them."""
    parts = {path: bin_part(path) for path in files if path.suffix.lower() == ".bin"}
    indices = {(part[0] if part else path).with_suffix(".idx") for path, part in parts.items()}
    return files + sorted(path for path in indices if path.exists())


def _find_on_hub(url: str, field: str, split: str | None) -> InputText | None:
    listed = list_files(url)
    if "index.json" in listed:
        return None
    is_file = list(listed) == [""]
    if is_file:
        url, _, name = url.rpartition("/")
        listed = {name: listed[""]}
    with TemporaryDirectory(prefix="rewarm-") as temporary:
        folder = Path(temporary)
        for name in listed:
            _write_stand_in(folder / name, url, name)
        try:
            inputs = [folder / name for name in listed] if is_file else [folder]
            with _advice_for_recipes():
                files, skipped = find_input_files(inputs, split=split)
        except DataError as error:
            raise DataError(str(error).replace(temporary, url)) from None
        names = [path.relative_to(folder).as_posix() for path in _with_indices(files)]
        skipped = [s._replace(location=s.location.replace(temporary, url)) for s in skipped]
    location = f"{url}/{names[0]}" if is_file else url
    chosen = tuple(_hub_file(name, listed[name]) for name in names)
    return InputText(location, field, split, chosen, tuple(skipped))


def _write_stand_in(path: Path, url: str, name: str) -> None:
    """Writes a file of zeros: which files of a folder are read is decided by their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name in _SPLIT_FILES:
        folder = RemoteFolder(url=url, cache=path.parent, evictable_files=_NOTHING)
        path.write_bytes(folder.read(name, max_bytes=_MAX_JSON))
    else:
        path.write_bytes(bytes(1024))


def _hub_file(name: str, file: RemoteFile) -> TextFile:
    return TextFile(name, file.bytes, file.version, file.sha256)


def shard_text(
    text: InputText,
    tokenizer: Tokenizer,
    *,
    on_skipped: Callable[[SkippedInput], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
    on_wait: Callable[[], None] = lambda: None,
    progress: Callable[[ShardingProgress], None] = lambda _: None,
    check_stop: Callable[[], None] = lambda: None,
) -> ShardIndex | None:
    """Writes the shards of a text into the cache; one process on this node does it.

    Args:
        text: the text.
        tokenizer: of the model.
        on_skipped: as of `write_shards`.
        on_notice: as of `write_shards`.
        on_wait: called once if another process writes the same shards.
        progress: as of `write_shards`.
        check_stop: called now and then; may raise an error, after which finished shards stay.

    Returns:
        the index; None if another process has written the shards.

    Raises:
        DataError: as `write_shards`, with the same shards kept for the next attempt; a download
            failed; or the text has changed meanwhile.
    """
    folder = text.shard_folder(tokenizer)
    polls, written = count(), list[ShardIndex]()

    def is_done() -> bool:
        check_stop()
        if next(polls) == 2:  # asked before the lock is tried, and again with the lock
            on_wait()
        return has_shards(folder)

    def report(current: ShardingProgress) -> None:
        check_stop()
        progress(current)

    def write() -> bool:
        for skipped in text.skipped:
            on_skipped(skipped)
        inputs = _download(text, folder, check_stop) if text.is_on_hub else [Path(text.location)]
        new = folder.with_name("new")
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed before it was renamed

        def attempt() -> ShardIndex:
            indices = write_shards(
                inputs,
                new,
                tokenizer,
                field=text.field,
                shard_tokens=SHARD_TOKENS,
                split=None if text.is_on_hub else text.split,
                options=DEFAULT_OPTIONS._replace(end_of_text=tokenizer.eos_token_id),
                on_skipped=on_skipped,
                on_notice=on_notice,
                progress=report,
            )
            return indices["."]

        with _advice_for_recipes():
            try:
                index = attempt()
            except InputChangedError:
                on_notice("the text has changed since a part of it was sharded: all of it is again")
                shutil.rmtree(new.with_name("new.partial"))
                index = attempt()
        if find_text(text.location, text.field, text.split) != text:
            shutil.rmtree(new)
            raise DataError(
                f"{text.location}: changed while it was sharded; run the same command again when "
                "it is complete"
            )
        new.rename(folder)
        shutil.rmtree(_download_folder(folder), ignore_errors=True)
        written.append(index)
        return True

    once_per_node(folder.with_name("lock"), is_done, write)
    return written[0] if written else None


def _download_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.download")


def _download(text: InputText, folder: Path, check_stop: Callable[[], None]) -> list[Path]:
    """Downloads the files of a text that are not here yet, and returns those to read, in order."""
    is_file = text.location.endswith(f"/{text.files[0].name}")
    url = text.location.removesuffix(f"/{text.files[0].name}") if is_file else text.location
    remote = RemoteFolder(url=url, cache=_download_folder(folder), evictable_files=_NOTHING)
    paths = []
    for name, size, _, sha256 in text.files:
        check_stop()
        if sha256:
            os.close(remote.open(name, size=size, sha256=sha256))
        else:
            remote.fetch_unverified(name, max_bytes=size)
        path = remote.local_folder / name
        if (received := path.stat().st_size) != size:
            path.unlink()
            raise DataError(
                f"{url}/{name}: received {received:,} of {size:,} bytes; run the same command again"
            )
        paths.append(path)
    return [path for path in paths if path.suffix != ".idx"]
