from rewarm.cli.input_report import InputReport
from rewarm.data.inputs.document_readers import SkippedInput


def test_what_is_reported_twice_counts_once(tmp_path, capsys):
    """Small inputs are read again if the first pass held out no document."""
    report = InputReport()
    for _ in range(2):
        report.add_bad_record(SkippedInput("a.jsonl:3", "no text"))
        report.add_skipped(SkippedInput("a.tar:0.jpg", "its ending is not read: .jpg"))
        report.add_notice("a.bin: blocks")
    report.print([tmp_path / f"{number}.txt" for number in range(12)], tmp_path)
    read, *others = capsys.readouterr().out.splitlines()
    assert read.startswith(f"read     12 files: {tmp_path}/0.txt, ")
    assert read.endswith(", and 2 more")
    assert others == [
        "skipped  1 (its ending is not read: .jpg): a.tar:0.jpg",
        f"skipped  1 record without text: see {tmp_path}/skipped-records.jsonl",
        "note     a.bin: blocks",
    ]


def test_after_an_error_what_was_skipped_is_printed_to_stderr(capsys):
    report = InputReport()
    report.print_after_error()
    assert capsys.readouterr() == ("", "")
    report.add_bad_record(SkippedInput("a.jsonl:1", "no text in field 'text'"))
    report.add_bad_record(SkippedInput("a.jsonl:2", "not a line of JSON"))
    report.add_skipped(SkippedInput("a.md", "its ending is not read: .md"))
    report.print_after_error()
    assert capsys.readouterr().err.splitlines() == [
        "skipped  1 (its ending is not read: .md): a.md",
        "skipped  2 records without text: first a.jsonl:1: no text in field 'text'",
    ]
