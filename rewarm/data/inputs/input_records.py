"""What the readers of all formats share: options, reports, and the text of a record.

A record is one document as it is stored: a line of JSON, a row of a table, a .txt. A bad one is
reported to `Reading.on_bad_record`, which raises to stop. Damage of a file is a `DataError`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rewarm.data.sample_layout import Tokens
from rewarm.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NUL_BYTES = "it holds NUL bytes: a download that was not completed, UTF-16, or binary data"
_JSON_TYPES = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_MOST_NAMES = 10
_MOST_CHARACTERS = 60


class SkippedInput(NamedTuple):
    """A file, a member of an archive or a record that was not read, or is not to be read."""

    location: str
    reason: str


class ReadOptions(NamedTuple):
    """How inputs are read: plain values, which identify a job of `rewarm shard`."""

    max_document_bytes: int = 12_000_000
    """The longest document: bytes of its line, file or value, decompressed."""
    max_expansion: int = 1000
    """How many times its size a compressed file may have, beyond `max_document_bytes`."""
    max_piece_bytes: int = 1_500_000
    """The longest text that is encoded at once: over 100 bytes of memory for each of its bytes."""
    raw_tokens: str | None = None
    """The dtype of .bin and .npy files without index and header, such as uint16."""
    sequences: str = "auto"
    """What a sequence of a Megatron .bin is: part of a `document`, a fixed-length `block`, or
    `auto`: blocks if three or more have one length."""
    where: tuple[tuple[str, str], ...] = ()
    """Fields of a JSON document, as `meta.source`, and the values that a document has to have."""
    end_of_text: int | None = None
    """The token after each document of a token array; None: blocks of a fixed length are read."""


class Document(NamedTuple):
    """One document, and its end in the input."""

    content: str | Tokens
    """Its text, or its token ids if the file holds token ids (.bin, .npy)."""
    bytes_read: int
    """Bytes of all input files up to its end, roughly if they are compressed."""
    location: str = ""
    """File, and line, row, member or number in it."""
    ends: bool = True
    """False for a block of a token stream, to which no end-of-text is added."""


DEFAULT_OPTIONS = ReadOptions()


class Reading(NamedTuple):
    """The options of one call of `read_documents`, and the functions that it reports to."""

    field: str
    options: ReadOptions
    on_bad_record: Callable[[SkippedInput], None]
    on_skipped: Callable[[SkippedInput], None]
    on_notice: Callable[[str], None]
    on_left_out: Callable[[str], None] = lambda _: None
    """Called with the field and the value for which a document is left out by `where`."""
    bytes_before: int = 0
    """Bytes of the input files before this one."""


def refuse_record(record: SkippedInput) -> NoReturn:
    """Stops at a bad record.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{record.location}: {record.reason}; correct it, or leave such records out with "
        "--on-bad-record skip"
    )


def check_json_lines(first_line: bytes, path: Path) -> None:
    """Checks that a file does not begin as one JSON array, or as one object on several lines.

    Raises:
        DataError: it does.
    """
    start = first_line.removeprefix(_BYTE_ORDER_MARK).strip()
    if start.startswith(b"["):
        what, convert = "one JSON array", "'.[]'"
    elif start == b"{":
        what, convert = "JSON objects that take several lines each", "."
    else:
        return
    raise DataError(
        f"{path}: {what}; one object per line is read: convert it with jq -c {convert} "
        f"{path.name} > NEW.jsonl"
    )


def text_of_line(
    line: bytes, location: str, reading: Reading, *, may_be_cut: bool = False
) -> str | None:
    """Returns the text in a line of JSON; None if it has none, which is reported.

    Args:
        line: the line.
        location: file and line.
        reading: how to read, and whom to report to.
        may_be_cut: whether the file ends within the line if it is no JSON.

    Raises:
        DataError: it does.
    """
    try:
        row = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode())
    except (ValueError, RecursionError) as error:
        hint = f" ({_NUL_BYTES})" if b"\0" in line else ""
        reason = f"not a line of JSON: {_reason_of(error)}{hint}"
        if may_be_cut:
            raise DataError(
                f"{location}: {reason}; the file ends here, without a line end: it is truncated; "
                "copy or download it again, or end a line that is meant"
            ) from None
        reading.on_bad_record(SkippedInput(location, reason))
        return None
    return text_of_row(row, location, reading)


def _reason_of(error: Exception) -> str:
    """Returns why a line could not be parsed, in plain words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return str(error)
    return f"a number of more than {sys.get_int_max_str_digits():,} digits"


def text_of_row(row: Any, location: str, reading: Reading) -> str | None:
    """Returns the text in a parsed JSON document; None if it has none, which is reported."""
    field = reading.field
    if not has_wanted_values(row, location, reading):
        return None
    try:
        text = _nested(row, field)
    except KeyError:
        content = list_names(row) if isinstance(row, dict) else _JSON_TYPES[type(row)]
        reason = f"no text in field {field!r} (found: {content}); see --field"
    else:
        if isinstance(text, str):
            if _is_valid_unicode(text):
                return text
            reason = f"field {field!r} holds half a surrogate pair, which is not text"
        else:
            reason = f"no text in field {field!r}: it is {_JSON_TYPES[type(text)]}"
    reading.on_bad_record(SkippedInput(location, reason))
    return None


def _nested(row: Any, field: str) -> Any:
    """Returns the value of a field, or at a path such as meta.text.

    Raises:
        KeyError: there is none.
    """
    if isinstance(row, dict) and field in row:
        return row[field]
    for name in field.split("."):
        if not isinstance(row, dict):
            raise KeyError(field)
        row = row[name]
    return row


def list_names(names: Iterable[str]) -> str:
    """Returns the first names of fields or columns, as an error message lists them."""
    listed = [
        name if len(name) <= _MOST_CHARACTERS else f"{name[:_MOST_CHARACTERS]}..." for name in names
    ]
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in listed[:_MOST_NAMES])
    more = len(listed) - _MOST_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown or "none"


def has_wanted_values(row: Any, location: str, reading: Reading) -> bool:
    """Returns whether a parsed document has the values of `where`; reports it if it has not."""
    for path, wanted in reading.options.where:
        try:
            value = _nested(row, path)
        except KeyError:
            reason = f"no field {path!r} to compare with --where {path}={wanted}"
            reading.on_bad_record(SkippedInput(location, reason))
            return False
        written = value if isinstance(value, str) else json.dumps(value)
        if written != wanted:
            reading.on_left_out(f"{path}={written}")
            return False
    return True


def check_is_json(location: str, what: str, options: ReadOptions) -> None:
    """Checks that no `where` is given for an input that is not JSON.

    Raises:
        DataError: one is given.
    """
    if options.where:
        path, wanted = options.where[0]
        raise DataError(
            f"{location}: --where {path}={wanted} compares fields of JSON documents and tables, "
            f"and this is {what}; store the documents as lines of JSON, or select them before"
        )


def text_of_bytes(
    data: bytes, location: str, reading: Reading, *, may_be_cut: bool = False
) -> str | None:
    """Returns UTF-8 without its byte-order mark; None if it is not text, which is reported.

    Args:
        data: the text.
        location: where it is.
        reading: how to read, and whom to report to.
        may_be_cut: whether the file ends within a character if its last one is not complete.

    Raises:
        DataError: it does.
    """
    try:
        text = data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:1000]
        encoding = "utf-16" if is_utf16 else "latin1"
        reason = (
            f"not UTF-8 text: {error.reason} at {error.start}; if it is {encoding}, convert it: "
            f"iconv -f {encoding} -t utf-8"
        )
        if may_be_cut and error.reason == "unexpected end of data":
            raise DataError(
                f"{location}: {reason}; if it is UTF-8, the file is truncated within a character: "
                "copy or download it again"
            ) from None
    else:
        if "\0" not in text:
            return text
        reason = f"not UTF-8 text: {_NUL_BYTES}"
    reading.on_bad_record(SkippedInput(location, reason))
    return None


def check_document_size(size: int, location: str, options: ReadOptions) -> None:
    """Checks that a document is not longer than the limit.

    Raises:
        DataError: it is.
    """
    if size > options.max_document_bytes:
        raise DataError(
            f"{location}: a document of more than {options.max_document_bytes:,} bytes; if it is "
            "meant to be one, allow it with --max-document"
        )


def _is_valid_unicode(text: str) -> bool:
    if text.isascii():  # takes no time
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
