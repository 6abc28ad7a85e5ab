"""The list of the records that `rewarm shard` left out, beside the shards."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rewarm.data.inputs.input_records import SkippedInput
from rewarm.errors import DataError

BAD_RECORDS_FILE = "skipped-records.jsonl"


class BadRecordsFile:
    """Writes the records that one reading of the input leaves out to a file, if there are any."""

    def __init__(self, folder: Path, on_bad_record: Callable[[SkippedInput], None]) -> None:
        """Takes the folder of the file, and a function that raises an error to stop at a record."""
        self._path = folder / BAD_RECORDS_FILE
        self._on_bad_record = on_bad_record
        self._file: IO[str] | None = None

    def restart(self) -> None:
        """Removes the records of an earlier reading, which the next one finds again."""
        self.close()
        self._path.unlink(missing_ok=True)

    def add(self, record: SkippedInput) -> None:
        """Adds a record.

        Raises:
            DataError: the file cannot be written. It is no OSError, which a reader of the input
                that calls this would take for one of its file.
        """
        self._on_bad_record(record)
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8")
            self._file.write(json.dumps(record._asdict()) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def finish(self) -> None:
        """Waits until the file is on the disk.

        Raises:
            DataError: it cannot be written.
        """
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, as it is: what `finish` has not written, the next reading does."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._path}: cannot be written: {error.strerror}; free disk space, or check the "
            "permissions"
        )
