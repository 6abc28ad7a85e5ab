"""Reads the texts in tars and zips, grouped into WebDataset samples.

Members whose paths are equal up to the first dot of the name are one sample. A .json is one
document, or lines of JSON, and only metadata if its sample has a .txt.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

from rewarm.data.decompression import (
    check_expansion,
    content_chunks,
    joined_content,
    numbered_lines,
)
from rewarm.data.input_files import is_hidden, is_licence_or_checksum
from rewarm.data.input_formats import TEXT_FORMATS, InputFormat, ending_of, format_of
from rewarm.data.input_records import (
    Reading,
    ReadOptions,
    Record,
    SkippedInput,
    text_of_bytes,
    text_of_line,
    text_of_row,
)
from rewarm.errors import DataError

_CHUNK = 1 << 20
_MOST_HEADER_BYTES = 1 << 20
_END_OF_TAR = 1024
_MOST_ZEROS = 1 << 22  # tar pads to its blocking factor: 10 kB by default
_ZEROS = bytes(_CHUNK)
_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.][^/]*")
# What tarfile and zipfile raise for damaged, encrypted and unusual archives.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, OverflowError, RuntimeError),
)
_END_OF_ZIP = struct.Struct("<4s4H2LH")


class _Member(NamedTuple):
    """One file in an archive."""

    name: str
    size: int
    end: int
    """Bytes of the archive up to the end of the member."""
    chunks: Callable[[], Iterator[bytes]]
    """Yields its content; of a tar, only until the next member is taken."""


class _SeekableFile(Protocol):
    """What tarfile needs of a file."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, position: int, /) -> object: ...
    def tell(self) -> int: ...


class _ForwardFile:
    """Chunks as a file in which tarfile can read and skip forward."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = self._last = b""
        self._position = 0

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            self._rest = self._rest or next(self._chunks, b"")
            if not self._rest:
                break
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        self._last = b"".join(parts)
        return self._last

    def seek(self, position: int) -> None:
        if back := max(0, self._position - position):  # into what was read last: a header
            if back > len(self._last):
                raise tarfile.ReadError("a member starts before the end of another")
            self._rest, self._last = self._last[-back:] + self._rest, self._last[:-back]
            self._position = position
        while position > self._position and self.read(min(_CHUNK, position - self._position)):
            pass

    def tell(self) -> int:
        return self._position


class _HeaderFile:
    """A file from which tarfile reads headers only: it would allocate whatever they claim."""

    def __init__(self, file: _SeekableFile) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def read_archive(path: Path, input_format: InputFormat, reading: Reading) -> Iterator[Record]:
    """Yields the documents in the text members of a tar or zip.

    Raises:
        DataError: the archive is damaged or truncated, or expands beyond the limits.
    """
    try:
        with path.open("rb") as raw:
            if input_format.name == "zip":
                members = _members_of_zip(raw, path, reading.options)
            else:
                members = _members_of_tar(raw, path, input_format.compression, reading.options)
            yield from _Samples(path, reading).documents(members)
    except _DAMAGE as error:
        raise DataError(f"{path}: not a {input_format.name} that can be read: {error}") from None


def _members_of_tar(
    raw: IO[bytes], path: Path, compression: str, options: ReadOptions
) -> Iterator[_Member]:
    file: _SeekableFile = raw
    if compression:
        file = _ForwardFile(content_chunks(raw, compression, str(path), options))
    headers: Any = _HeaderFile(file)
    with tarfile.open(fileobj=headers, mode="r:") as tar:
        members: list[tarfile.TarInfo] = vars(tar)["members"]
        while (member := tar.next()) is not None:
            members.clear()  # it would keep every header
            location = f"{path}:{member.name}"
            if member.size < 0:
                raise DataError(f"{location}: damaged: a size of {member.size:,} bytes")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                chunks = _refuse_special_file(location)
            else:
                chunks = _chunks_of_tar(file, member.offset_data, member.size, location)
            end = raw.tell() if compression else member.offset_data + member.size
            yield _Member(member.name, member.size, end, chunks)
        _check_end_of_tar(file, tar.offset, path)


def _refuse_special_file(location: str) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        raise DataError(f"{location}: not a plain file; links are not followed")

    return chunks


def _chunks_of_tar(
    file: _SeekableFile, offset: int, size: int, location: str
) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        file.seek(offset)
        missing = size
        while missing:
            chunk = file.read(min(_CHUNK, missing))
            if not chunk:
                raise DataError(
                    f"{location}: truncated: {missing:,} of its {size:,} bytes are missing; copy "
                    "or download the tar again"
                )
            missing -= len(chunk)
            yield chunk

    return chunks


def _check_end_of_tar(file: _SeekableFile, offset: int, path: Path) -> None:
    """Checks that a tar ends where no further member was found: tarfile ignores damage there.

    Raises:
        DataError: the end-of-archive is missing, or something follows it.
    """
    file.seek(offset)
    zeros = 0
    while chunk := file.read(_CHUNK):
        if chunk != _ZEROS[: len(chunk)]:
            if zeros + len(chunk) < tarfile.BLOCKSIZE:
                raise DataError(
                    f"{path}: truncated in the header at byte {offset:,}; copy or download it again"
                )
            zeros += len(chunk) - len(chunk.lstrip(b"\0"))
            what = "another archive (unpack both)" if zeros >= _END_OF_TAR else "a damaged header"
            raise DataError(
                f"{path}: damaged, or several tars in one file: {what} at byte {offset + zeros:,}, "
                f"after the last member that can be read, which ends at byte {offset:,}"
            )
        zeros += len(chunk)
        if zeros > _MOST_ZEROS:
            raise DataError(
                f"{path}: more than {_MOST_ZEROS:,} zero bytes from byte {offset:,} on: a download "
                "or copy that was not completed; download or copy it again"
            )
    if zeros < _END_OF_TAR:
        raise DataError(
            f"{path}: truncated: its end-of-archive of {_END_OF_TAR:,} zero bytes is missing "
            f"(found: {zeros:,}); copy or download it again"
        )


def _members_of_zip(raw: IO[bytes], path: Path, options: ReadOptions) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as archive:
        members = archive.infolist()
        _check_number_of_members(raw, len(members), path)
        for member in members:
            with archive.open(member) as file:  # compares both copies of its header
                chunks = _chunks_of_zip(file, member, f"{path}:{member.filename}", options)
                if not member.is_dir():
                    yield _Member(member.filename, member.file_size, raw.tell(), chunks)


def _chunks_of_zip(
    file: IO[bytes], member: zipfile.ZipInfo, location: str, options: ReadOptions
) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        size = 0
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            check_expansion(size, member.compress_size, location, options)
            yield chunk
        if size != member.file_size:
            raise DataError(
                f"{location}: truncated: {size:,} bytes of {member.file_size:,}; copy or download "
                "the zip again"
            )

    return chunks


def _check_number_of_members(raw: IO[bytes], found: int, path: Path) -> None:
    """Checks the number of members at the end of a zip, which zipfile does not.

    Raises:
        DataError: it differs from the number found.
    """
    size = raw.seek(0, 2)
    start = max(0, size - _END_OF_ZIP.size - 0xFFFF)
    raw.seek(start)
    tail = raw.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _END_OF_ZIP.size:
        raise DataError(f"{path}: truncated zip; copy or download it again")
    _, _, _, here, total, _, _, comment = _END_OF_ZIP.unpack_from(tail, at)
    if (total != 0xFFFF and not found == total == here) or at + 22 + comment != len(tail):
        raise DataError(f"{path}: damaged zip: {found:,} members, and its end says {total:,}")


class _Samples:
    """Turns the members of one archive into documents."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        # Hashes of the samples whose members may still turn up, by what was read of them.
        self._with_text: set[int] = set()
        self._with_json: set[int] = set()

    def documents(self, members: Iterator[_Member]) -> Iterator[Record]:
        """Yields the documents.

        Raises:
            DataError: a member is damaged, or a sample is stored in two places.
        """
        current, waiting = "", list[tuple[_Member, bytes]]()  # the .json of the current sample
        for member in members:
            input_format = self._format_of_text(member)
            if input_format is None:
                continue
            match = _SAMPLE.fullmatch(member.name)
            key = match[1] if match else member.name
            if key != current:
                yield from self._documents_of_json(current, waiting)
                current, waiting = key, []
            chunks = content_chunks_of(member, input_format, self._location(member), self._reading)
            if input_format.name == "json":
                waiting.append((member, self._joined(chunks, member)))
            elif input_format.name == "txt":
                if hash(key) in self._with_json:
                    raise DataError(
                        f"{self._location(member)}: its sample's .json was read as a document "
                        "earlier; store the members of a sample side by side (tar --sort=name)"
                    )
                self._with_text.add(hash(key))
                location = self._location(member)
                text = text_of_bytes(self._joined(chunks, member), location, self._reading)
                if text is not None:
                    yield Record(text, member.end, location)
            else:
                yield from self._lines(chunks, member)
        yield from self._documents_of_json(current, waiting)

    def _documents_of_json(
        self, key: str, waiting: list[tuple[_Member, bytes]]
    ) -> Iterator[Record]:
        for member, data in waiting:
            if hash(key) in self._with_text:
                self._skip(member, "metadata: its sample has a .txt")
                continue
            self._with_json.add(hash(key))
            location = self._location(member)
            try:
                row = json.loads(data)
            except (ValueError, RecursionError):
                if b"\n" in data.strip():
                    yield from self._lines(iter([data]), member)
                    continue
                text = text_of_line(data, location, self._reading)
            else:
                text = text_of_row(row, location, self._reading)
            if text is not None:
                yield Record(text, member.end, location)

    def _lines(self, chunks: Iterator[bytes], member: _Member) -> Iterator[Record]:
        location = self._location(member)
        for number, line in numbered_lines(chunks, location, self._reading.options):
            text = text_of_line(line, f"{location}:{number}", self._reading)
            if text is not None:
                yield Record(text, member.end, f"{location}:{number}")

    def _format_of_text(self, member: _Member) -> InputFormat | None:
        """Returns the format of a member that is text; reports the others as skipped."""
        name = PurePosixPath(member.name)
        input_format = format_of(name)
        if is_hidden(name):
            reason = "hidden"
        elif input_format is None:
            reason = f"its ending is not read: {ending_of(name)}"
        elif input_format.name not in TEXT_FORMATS:
            reason = f"{ending_of(name)} is not read inside an archive; unpack it"
        elif is_licence_or_checksum(name, input_format):
            reason = "a licence or checksums, by its name"
        else:
            return input_format
        self._skip(member, reason)
        return None

    def _joined(self, chunks: Iterator[bytes], member: _Member) -> bytes:
        return joined_content(chunks, self._location(member), self._reading.options)

    def _location(self, member: _Member) -> str:
        return f"{self._path}:{member.name}"

    def _skip(self, member: _Member, reason: str) -> None:
        self._reading.on_skipped(SkippedInput(self._location(member), reason))


def content_chunks_of(
    member: _Member, input_format: InputFormat, location: str, reading: Reading
) -> Iterator[bytes]:
    """Yields the content of a member, decompressed if it is compressed itself."""
    if not input_format.compression:
        return member.chunks()
    # Compressed members are small: WebDataset's are one document each.
    data = BytesIO(joined_content(member.chunks(), location, reading.options))
    return content_chunks(data, input_format.compression, location, reading.options)
