"""What `rewarm shard` read, and what it did not: printed at the end, and bad records in a file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rewarm.cli.terminal_tables import print_notes
from rewarm.errors import escape_unprintable

if TYPE_CHECKING:
    from rewarm.data.document_readers import SkippedInput

BAD_RECORDS_FILE = "skipped-records.jsonl"
_EXAMPLES = 3
_FILES = 10
_VALUES = 20


class InputReport:
    """Collects what readers report; each location counts once, even if it is read twice."""

    def __init__(self) -> None:
        self.bad_records = 0
        self._bad_records_file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._seen: set[int] = set()  # hashes of locations: there may be millions
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._notices: dict[str, None] = {}
        self._left_out: Counter[str] = Counter()

    def __enter__(self) -> InputReport:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._bad_records_file.close()

    def add_skipped(self, skipped: SkippedInput) -> None:
        """Counts a file or a member of an archive that is not read."""
        if self._is_new(skipped):
            count = self._counts[skipped.reason] = self._counts.get(skipped.reason, 0) + 1
            if count <= _EXAMPLES:
                self._examples.setdefault(skipped.reason, []).append(skipped.location)

    def add_bad_record(self, record: SkippedInput) -> None:
        """Counts a record without text, and keeps it for `write_bad_records`."""
        if self._is_new(record):
            self.bad_records += 1
            self._bad_records_file.write(json.dumps(record._asdict()) + "\n")

    def add_notice(self, notice: str) -> None:
        """Adds a sentence on how a file was read."""
        self._notices[notice] = None

    def add_left_out(self, value: str) -> None:
        """Counts a document that --where leaves out, by the field's value."""
        known = value in self._left_out or len(self._left_out) < _VALUES
        self._left_out[value if known else "others"] += 1

    def write_bad_records(self, folder: Path) -> None:
        """Writes the bad records to a file in a folder, if there are any.

        Raises:
            OSError: the file cannot be written.
        """
        if self.bad_records:
            self._bad_records_file.seek(0)
            with (folder / BAD_RECORDS_FILE).open("w", encoding="utf-8") as file:
                shutil.copyfileobj(self._bad_records_file, file)

    def print(self, files: list[Path], out: Path) -> None:
        """Prints what was read, what was skipped and why, and how many records were bad."""
        names = ", ".join(map(str, files[:_FILES]))
        more = f", and {len(files) - _FILES:,} more" if len(files) > _FILES else ""
        lines = [f"read     {_number(len(files), 'file')}: {names}{more}"]
        for reason, count in self._counts.items():
            examples = ", ".join(self._examples[reason])
            more = f", and {count - _EXAMPLES:,} more" if count > _EXAMPLES else ""
            lines.append(f"skipped  {count:,} ({reason}): {examples}{more}")
        if self.bad_records:
            records = _number(self.bad_records, "record")
            lines.append(f"skipped  {records} without text: see {out / BAD_RECORDS_FILE}")
        if self._left_out:
            values = ", ".join(f"{count:,} {value}" for value, count in self._left_out.items())
            lines.append(f"skipped  {self._left_out.total():,} (--where): {values}")
        lines += [f"note     {notice}" for notice in self._notices]
        # Names in archives are untrusted.
        print_notes(map(escape_unprintable, lines), indent=len("skipped  "))

    def _is_new(self, skipped: SkippedInput) -> bool:
        key = hash(skipped)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
