"""What `rewarm shard` read, and what it did not: printed at the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rewarm.cli.terminal_tables import print_notes
from rewarm.errors import escape_unprintable

if TYPE_CHECKING:
    from rewarm.data.inputs.document_readers import SkippedInput

_EXAMPLES = 3
_FILES = 10
_VALUES = 20


class InputReport:
    """Collects what readers report; each location counts once, even if it is read twice."""

    def __init__(self) -> None:
        self.bad_records = 0
        self._first_bad_record: SkippedInput | None = None
        self._seen: set[int] = set()  # hashes of locations: there may be millions
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._notices: dict[str, None] = {}
        self._left_out: Counter[str] = Counter()

    def add_skipped(self, skipped: SkippedInput) -> None:
        """Counts a file or a member of an archive that is not read."""
        if self._is_new(skipped):
            count = self._counts[skipped.reason] = self._counts.get(skipped.reason, 0) + 1
            if count <= _EXAMPLES:
                self._examples.setdefault(skipped.reason, []).append(skipped.location)

    def add_bad_record(self, record: SkippedInput) -> None:
        """Counts a record without text."""
        if self._is_new(record):
            self.bad_records += 1
            self._first_bad_record = self._first_bad_record or record

    def add_left_out(self, value: str) -> None:
        """Counts a document that --where leaves out, by the field's value."""
        known = value in self._left_out or len(self._left_out) < _VALUES
        self._left_out[value if known else "others"] += 1

    def add_notice(self, notice: str) -> None:
        """Adds a sentence on how a file was read."""
        self._notices[notice] = None

    def print(self, files: list[Path], out: Path, *, stderr: bool = False) -> None:
        """Prints what was read, what was skipped and why, and how many records were bad."""
        from rewarm.data.sharding.bad_records import BAD_RECORDS_FILE

        names = ", ".join(map(str, files[:_FILES]))
        more = f", and {len(files) - _FILES:,} more" if len(files) > _FILES else ""
        read = f"read     {number_of(len(files), 'file')}: {names}{more}"
        self._print([read, *self._lines(f"see {out / BAD_RECORDS_FILE}")], stderr=stderr)

    def print_after_error(self) -> None:
        """Prints what was skipped until then, and why, to stderr: it may explain the error."""
        first = self._first_bad_record
        self._print(self._lines(f"first {first.location}: {first.reason}" if first else ""))

    def _lines(self, bad_records: str) -> list[str]:
        lines = []
        for reason, count in self._counts.items():
            examples = ", ".join(self._examples[reason])
            more = f", and {count - _EXAMPLES:,} more" if count > _EXAMPLES else ""
            lines.append(f"skipped  {count:,} ({reason}): {examples}{more}")
        if self.bad_records:
            records = number_of(self.bad_records, "record")
            lines.append(f"skipped  {records} without text: {bad_records}")
        if self._left_out:
            values = ", ".join(f"{count:,} {value}" for value, count in self._left_out.items())
            lines.append(f"skipped  {self._left_out.total():,} (--where): {values}")
        return lines + [f"note     {notice}" for notice in self._notices]

    def _print(self, lines: list[str], *, stderr: bool = True) -> None:
        # Names in archives are untrusted.
        print_notes(map(escape_unprintable, lines), indent=len("skipped  "), stderr=stderr)

    def _is_new(self, skipped: SkippedInput) -> bool:
        key = hash(skipped)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new


def number_of(count: int, noun: str) -> str:
    """Returns `1 file` or `2 files`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
