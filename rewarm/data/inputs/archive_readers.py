"""Reads the texts in tars and zips, grouped into WebDataset samples.

Members whose paths are equal up to the first dot of the name are one sample. A .json is one
document, or lines of JSON, and only metadata (0.json) if its sample has a text (0.txt).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rewarm.data.inputs.archive_members import (
    ARCHIVE_ERRORS,
    ArchiveMember,
    members_of_tar,
    members_of_zip,
)
from rewarm.data.inputs.decompression import content_chunks, joined_content, numbered_lines
from rewarm.data.inputs.input_files import is_hidden, is_licence_or_checksum
from rewarm.data.inputs.input_formats import TEXT_FORMATS, InputFormat, ending_of, format_of
from rewarm.data.inputs.input_records import (
    Document,
    Reading,
    SkippedInput,
    check_is_json,
    text_of_bytes,
    text_of_line,
    text_of_row,
)
from rewarm.errors import DataError


def read_archive(path: Path, input_format: InputFormat, reading: Reading) -> Iterator[Document]:
    """Yields the documents in the text members of a tar or zip.

    Raises:
        DataError: the archive is damaged or truncated, or expands beyond the limits.
    """
    try:
        with path.open("rb") as raw:
            if input_format.name == "zip":
                members = members_of_zip(raw, path, reading.options)
            else:
                members = members_of_tar(raw, path, input_format.compression, reading.options)
            yield from _Samples(path, reading).documents(members)
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path}: not a {input_format.name} that can be read: {error}") from None


class _SampleMember(NamedTuple):
    """What a member is of its sample, as in WebDataset: both are divided at the first dot."""

    key: str
    """The sample: folders, and the name up to its first dot."""
    ending: str
    """The rest of the name, in lower case and without a compression: txt, json, 0001.json, ..."""

    @classmethod
    def of(cls, name: str, input_format: InputFormat) -> _SampleMember:
        path = PurePosixPath(name)
        stem, _, ending = path.name.partition(".")
        ending = ending.lower().removesuffix(input_format.compression)
        return cls(f"{path.parent}/{stem}", ending)


class _Samples:
    """Turns the members of one archive into documents."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        self._hashes: set[int] = set()
        """Of all members so far: others of their samples may still turn up."""

    def documents(self, members: Iterator[ArchiveMember]) -> Iterator[Document]:
        """Yields the documents.

        Raises:
            DataError: a member is damaged or is there twice, or a sample is stored in two places.
        """
        current = ""
        waiting: tuple[ArchiveMember, bytes] | None = None  # the .json of the current sample
        for member in members:
            input_format = self._format_of_text(member)
            if input_format is None:
                continue
            name = _SampleMember.of(member.name, input_format)
            self._check_once(name, member)
            if name.key != current:
                yield from self._documents_of_json(waiting, current)
                current, waiting = name.key, None
            chunks = _content_chunks_of(member, input_format, self._location(member), self._reading)
            if input_format.name == "json":
                data = self._joined(chunks, member)
                if name.ending == "json":
                    waiting = member, data
                else:
                    yield from self._documents_of_json((member, data))
                del data
            elif input_format.name == "txt":
                if name.ending == "txt" and waiting is None and self._has(name.key, "json"):
                    raise DataError(
                        f"{self._location(member)}: its sample's .json was read as a document "
                        "earlier; store the members of a sample side by side (tar --sort=name)"
                    )
                location = self._location(member)
                check_is_json(location, "txt", self._reading.options)
                text = text_of_bytes(self._joined(chunks, member), location, self._reading)
                if text is not None:
                    yield Document(text, self._reading.bytes_before + member.end, location)
            else:
                yield from self._lines(chunks, member)
        yield from self._documents_of_json(waiting, current)

    def _has(self, key: str, ending: str) -> bool:
        return hash(_SampleMember(key, ending)) in self._hashes

    def _check_once(self, name: _SampleMember, member: ArchiveMember) -> None:
        if self._has(*name):
            raise DataError(
                f"{self._location(member)}: a second member of this name (`tar -r` and `tar -u` "
                "add one for each new version, and a compressed copy counts as one); write the "
                "archive again with one of them"
            )
        self._hashes.add(hash(name))

    def _documents_of_json(
        self, waiting: tuple[ArchiveMember, bytes] | None, metadata_of: str | None = None
    ) -> Iterator[Document]:
        """Yields the documents in a .json, if its sample, `metadata_of`, has no .txt."""
        if waiting is None:
            return
        member, data = waiting
        if metadata_of is not None and self._has(metadata_of, "txt"):
            self._skip(member, "metadata: its sample has a .txt")
            return
        location = self._location(member)
        try:
            row = json.loads(data)
        except (ValueError, RecursionError):
            if b"\n" in data.strip():
                yield from self._lines(iter([data]), member)
                return
            text = text_of_line(data, location, self._reading)
        else:
            text = text_of_row(row, location, self._reading)
        if text is not None:
            yield Document(text, self._reading.bytes_before + member.end, location)

    def _lines(self, chunks: Iterator[bytes], member: ArchiveMember) -> Iterator[Document]:
        location = self._location(member)
        for number, line, _ in numbered_lines(chunks, location, self._reading.options):
            text = text_of_line(line, f"{location}:{number}", self._reading)
            if text is not None:
                yield Document(
                    text, self._reading.bytes_before + member.end, f"{location}:{number}"
                )

    def _format_of_text(self, member: ArchiveMember) -> InputFormat | None:
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

    def _joined(self, chunks: Iterator[bytes], member: ArchiveMember) -> bytes:
        return joined_content(chunks, self._location(member), self._reading.options)

    def _location(self, member: ArchiveMember) -> str:
        return f"{self._path}:{member.name}"

    def _skip(self, member: ArchiveMember, reason: str) -> None:
        self._reading.on_skipped(SkippedInput(self._location(member), reason))


def _content_chunks_of(
    member: ArchiveMember, input_format: InputFormat, location: str, reading: Reading
) -> Iterator[bytes]:
    """Yields the content of a member, decompressed if it is compressed itself."""
    if not input_format.compression:
        return member.chunks()
    # Compressed members are small: WebDataset's are one document each.
    data = BytesIO(joined_content(member.chunks(), location, reading.options))
    return content_chunks(data, input_format.compression, location, reading.options)
