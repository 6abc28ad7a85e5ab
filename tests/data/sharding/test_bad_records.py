import pytest

from rewarm.data.inputs.document_readers import SkippedInput, refuse_record
from rewarm.data.sharding.bad_records import BAD_RECORDS_FILE, BadRecordsFile
from rewarm.errors import DataError

RECORD = SkippedInput("a.jsonl:3", "no text")


def test_the_records_of_the_last_reading_are_listed(tmp_path):
    with BadRecordsFile(tmp_path, lambda _: None) as file:
        for location in ("a.jsonl:1", "a.jsonl:2"):
            file.restart()
            file.add(RECORD._replace(location=location))
        file.finish()
        assert (tmp_path / BAD_RECORDS_FILE).read_text() == (
            '{"location": "a.jsonl:2", "reason": "no text"}\n'
        )
        file.restart()
        file.finish()
    assert not list(tmp_path.iterdir())


def test_a_refused_record_is_not_listed(tmp_path):
    with BadRecordsFile(tmp_path, refuse_record) as file, pytest.raises(DataError):
        file.add(RECORD)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_not_an_error_of_the_input(tmp_path):
    """Readers take an OSError for one of the file that they read."""
    (tmp_path / BAD_RECORDS_FILE).symlink_to("/dev/full")
    with BadRecordsFile(tmp_path, lambda _: None) as file:
        with pytest.raises(DataError, match=rf"{BAD_RECORDS_FILE}: cannot be written: No space"):
            file.add(RECORD._replace(reason="x" * 100_000))
        with pytest.raises(DataError, match="cannot be written"):
            file.finish()
