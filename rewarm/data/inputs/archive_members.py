"""Lists the members of tars and zips, and refuses archives that are truncated or damaged.

tarfile takes a damaged header for the end of a tar, and allocates what a header claims; zipfile
does not compare the number of members with the one at the end of a zip.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from rewarm.data.inputs.decompression import check_expansion, content_chunks
from rewarm.data.inputs.input_records import ReadOptions
from rewarm.errors import DataError

_CHUNK = 1 << 20
_MOST_HEADER_BYTES = 1 << 20
_END_OF_TAR = 1024
_MOST_ZEROS = 1 << 22  # tar pads to its blocking factor: 10 kB by default
_ZEROS = bytes(_CHUNK)
ARCHIVE_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, OverflowError, RuntimeError),
)
"""What tarfile and zipfile raise for damaged, encrypted and unusual archives."""
_END_OF_ZIP = struct.Struct("<4s4H2LH")


class ArchiveMember(NamedTuple):
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


def members_of_tar(
    raw: IO[bytes], path: Path, compression: str, options: ReadOptions
) -> Iterator[ArchiveMember]:
    """Yields the files in a tar, in order.

    Raises:
        DataError: the tar is truncated, or something follows its end.
        Exception: one of `ARCHIVE_ERRORS`, if it is damaged otherwise.
    """
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
            yield ArchiveMember(member.name, member.size, end, chunks)
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


def members_of_zip(raw: IO[bytes], path: Path, options: ReadOptions) -> Iterator[ArchiveMember]:
    """Yields the files in a zip, in order; raises as `members_of_tar`."""
    with zipfile.ZipFile(raw) as archive:
        members = archive.infolist()
        _check_number_of_members(raw, len(members), path)
        for member in members:
            with archive.open(member) as file:  # compares both copies of its header
                chunks = _chunks_of_zip(file, member, f"{path}:{member.filename}", options)
                if not member.is_dir():
                    yield ArchiveMember(member.filename, member.file_size, raw.tell(), chunks)


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
