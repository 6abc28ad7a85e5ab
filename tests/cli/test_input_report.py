import json

from rewarm.cli.input_report import InputReport
from rewarm.data.document_readers import SkippedInput


def test_what_is_reported_twice_counts_once(tmp_path, capsys):
    """Small inputs are read again if the first pass held out no document."""
    with InputReport() as report:
        for _ in range(2):
            report.add_bad_record(SkippedInput("a.jsonl:3", "no text"))
            report.add_skipped(SkippedInput("a.tar:0.jpg", "its ending is not read: .jpg"))
            report.add_notice("a.bin: blocks")
        report.write_bad_records(tmp_path)
        report.print([tmp_path / f"{number}.txt" for number in range(12)], tmp_path)
    (record,) = (tmp_path / "skipped-records.jsonl").read_text().splitlines()
    assert json.loads(record) == {"location": "a.jsonl:3", "reason": "no text"}
    read, *others = capsys.readouterr().out.splitlines()
    assert read.startswith(f"read     12 files: {tmp_path}/0.txt, ")
    assert read.endswith(", and 2 more")
    assert others == [
        "skipped  1 (its ending is not read: .jpg): a.tar:0.jpg",
        f"skipped  1 record without text: see {tmp_path}/skipped-records.jsonl",
        "note     a.bin: blocks",
    ]


def test_without_bad_records_no_file_is_written(tmp_path):
    with InputReport() as report:
        report.write_bad_records(tmp_path)
    assert not list(tmp_path.iterdir())
