import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from shard_folders import documents_of, file_contents
from stopped_sharding import stop_at_a_bad_line
from text_corpora import write_texts

from rewarm.data.sharding import tokenize_documents
from rewarm.data.sharding.bad_records import BAD_RECORDS_FILE
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def test_sharding_twice_gives_the_same_bytes(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=40)
    for name in ("first", "second"):
        write_shards([text], tmp_path / name, tokenizer, shard_tokens=800)
    assert file_contents(tmp_path / "first") == file_contents(tmp_path / "second")


def test_the_validation_split_depends_on_content_and_not_on_order(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "third", documents=300)
    lines = text.read_text().splitlines(keepends=True)
    (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
    held_out = []
    for name in ("text", "reversed"):
        out = tmp_path / f"out-{name}"
        write_shards([tmp_path / f"{name}.jsonl"], out, tokenizer, validation=0.2)
        held_out.append({tokens.tobytes() for tokens in documents_of(out / "val")})
        train = {tokens.tobytes() for tokens in documents_of(out / "train")}
        assert not train & held_out[-1]
    assert held_out[0] == held_out[1]
    assert 0.1 < len(held_out[0]) / 300 < 0.3


def test_large_vocabularies_are_stored_in_32_bits(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "third", documents=3)
    index = write_shards([text], tmp_path / "out", tokenizer._replace(vocabulary=100_000))["."]
    assert index.dtype == "uint32"
    assert documents_of(tmp_path / "out")[0].dtype == np.uint32


def test_a_folder_that_is_not_empty_is_refused(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=40)
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800)
    before = file_contents(tmp_path / "out")
    with pytest.raises(DataError, match="not empty"):
        write_shards([text], tmp_path / "out", tokenizer)
    assert file_contents(tmp_path / "out") == before


def test_bad_input_leaves_nothing_behind(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "third", documents=3)
    with text.open("a") as file:
        file.write('{"txt": "no text here"}\n')
    with pytest.raises(DataError, match=r"text\.jsonl:4: no text in field 'text' \(found: txt"):
        write_shards([text], tmp_path / "out", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_empty_documents_are_counted_and_left_out(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "the run"}\n\n{"text": ""}\n{"text": "its end"}\n')
    reports = []
    write_shards([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, progress=reports.append)
    assert (reports[-1].documents, reports[-1].empty_documents) == (2, 1)
    assert len(documents_of(tmp_path / "out")) == 2


@pytest.mark.slow
def test_sharding_after_two_kills_gives_the_same_bytes(tmp_path, tokenizer_json):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=10_000)
    command = [
        sys.executable, "-m", "rewarm", "shard", str(text), "--tokenizer", str(tokenizer_json),
        "--validation", "10%", "--shard-size", "33k",
    ]  # fmt: skip
    subprocess.run(
        [*command, "--out", str(tmp_path / "uninterrupted")], check=True, capture_output=True
    )
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL
        )
        tars = len(list((tmp_path / "killed.partial").rglob("*.tar"))) + 3
        while process.poll() is None:
            if len(list((tmp_path / "killed.partial").rglob("*.tar"))) >= tars:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
        assert not (tmp_path / "killed").exists()
    assert kills == 2
    completed = subprocess.run(
        [*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True, text=True
    )
    assert file_contents(tmp_path / "killed") == file_contents(tmp_path / "uninterrupted")
    assert not (tmp_path / "killed.partial").exists()
    assert "had already been written" in completed.stdout


def test_a_bad_line_at_the_end_keeps_the_finished_shards(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)
    text, partial, message = stop_at_a_bad_line(tmp_path, tokenizer)
    finished = (partial / "finished.jsonl").read_text().count("\n")
    assert finished > 5
    assert f"{finished} finished shards in {partial} are kept" in message
    before = {path: path.stat().st_mtime_ns for path in partial.glob("*.tar")}
    reports = []
    text.write_text(text.read_text() + '{"text": "one document more"}\n')
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800, progress=reports.append)
    assert reports[-1].finished_documents > 50
    for path in list(before)[:finished]:
        assert (tmp_path / "out" / path.name).stat().st_mtime_ns == before[path]
    write_shards([text], tmp_path / "expected", tokenizer, shard_tokens=800)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")
    assert not partial.exists()


def change_the_first_line(text):
    text.write_text(text.read_text().replace("run", "nur", 1))


def change_in_the_middle(text):
    lines = text.read_text().splitlines(keepends=True)
    lines[20:30] = ['{"text": "another text of the same kind"}\n'] * 10
    text.write_text("".join(lines))


def keep_two_lines(text):
    text.write_text("".join(text.read_text().splitlines(keepends=True)[:2]))


@pytest.mark.parametrize("change", [change_the_first_line, change_in_the_middle, keep_two_lines])
@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_an_input_that_changed_is_refused(tmp_path, tokenizer, monkeypatch, change, validation):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)
    text, partial, _ = stop_at_a_bad_line(tmp_path, tokenizer, validation=validation)
    original, times = text.read_text(), text.stat()
    before = file_contents(partial)
    change(text)
    os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"the input has changed since its first .* or delete the"):
        write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800, validation=validation)
    finished = [name for name in before if name.endswith("finished.jsonl")]
    assert finished
    assert all(file_contents(partial)[name] == before[name] for name in finished)
    text.write_text(original)  # with the input restored, the same command continues
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800, validation=validation)
    write_shards([text], tmp_path / "new", tokenizer, shard_tokens=800, validation=validation)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "new")


def test_an_input_that_moved_is_the_same(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)
    text, *_ = stop_at_a_bad_line(tmp_path, tokenizer)
    reports = []
    write_shards(
        [text.rename(tmp_path / "moved.jsonl")],
        tmp_path / "out", tokenizer, shard_tokens=800, progress=reports.append,
    )  # fmt: skip
    assert reports[-1].finished_documents > 50


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_folder_gets_a_document_where_there_are_two(tmp_path, tokenizer, share, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 4)
    text = write_texts(tmp_path / "a.jsonl", "third", documents=18)
    index = write_shards([text], tmp_path / "out", tokenizer, validation=share, shard_tokens=300)
    one, rest = ("val", "train") if share < 0.5 else ("train", "val")
    assert (index[one].documents, index[rest].documents) == (1, 17)
    lines = text.read_text().splitlines(keepends=True)
    text.write_text("".join(reversed(lines)))
    write_shards([text], tmp_path / "reversed", tokenizer, validation=share)
    (tokens,), (same,) = (documents_of(tmp_path / name / one) for name in ("out", "reversed"))
    assert np.array_equal(tokens, same)


def test_the_second_reading_for_a_held_out_document_continues_after_a_kill(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 4)
    text = write_texts(tmp_path / "a.jsonl", "third", documents=18)
    options = {"validation": 1e-9, "shard_tokens": 300}
    write_shards([text], tmp_path / "expected", tokenizer, **options)
    reports = []

    def stop(report):
        reports.append(report)
        if len(reports) == 9:  # of 5 for each reading
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards([text], tmp_path / "out", tokenizer, progress=stop, **options)
    write_shards([text], tmp_path / "out", tokenizer, progress=reports.append, **options)
    assert len(reports) == 9 + 5
    assert reports[-1].finished_documents > 0
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")


def test_the_limit_of_a_small_input_does_not_split_an_extended_one(
    tmp_path, tokenizer, monkeypatch
):
    """Where one of 18 documents was held out by its hash, a third of all hashes may be below it."""
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 4)
    text = write_texts(tmp_path / "a.jsonl", "third", documents=200)
    lines = text.read_text().splitlines(keepends=True)
    options = {"validation": 1e-9, "shard_tokens": 300}
    write_shards([text], tmp_path / "expected", tokenizer, **options)
    text.write_text("".join(lines[:18]))
    readings = []

    def stop(report):
        readings.append(report)
        if len(readings) == 9:  # of 5 for each reading
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards([text], tmp_path / "out", tokenizer, progress=stop, **options)
    text.write_text("".join(lines))
    notices = []
    write_shards([text], tmp_path / "out", tokenizer, on_notice=notices.append, **options)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")
    assert [notice[:21] for notice in notices] == ["the input has changed"]


def test_documents_that_are_all_the_same_cannot_be_split(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "the run"}\n' * 9)
    with pytest.raises(DataError, match=r"no document left for .*: all documents are the same"):
        write_shards([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, validation=0.5)


def test_without_any_document_the_message_says_so(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 9)
    with pytest.raises(DataError, match=r"^no document left: all that the inputs hold is empty"):
        write_shards([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, validation=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_disk_that_is_full_at_the_list_of_bad_records_keeps_all_shards(
    tmp_path, tokenizer, monkeypatch
):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=40)
    text.write_text('{"text": null}\n' + text.read_text())
    options = {"shard_tokens": 800, "on_bad_record": lambda _: None}
    write_shards([text], tmp_path / "expected", tokenizer, **options)
    open_file = Path.open

    def open_on_full_disk(path, *args, **kwargs):
        return open_file(Path("/dev/full") if path.name == BAD_RECORDS_FILE else path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(DataError, match=r"jsonl: cannot be written: No space .* are kept: "):
            write_shards([text], tmp_path / "out", tokenizer, **options)
    assert not (tmp_path / "out").exists()
    reports = []
    write_shards([text], tmp_path / "out", tokenizer, progress=reports.append, **options)
    assert (reports[-1].finished_documents, reports[-1].tokens) == (40, 0)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")
    assert BAD_RECORDS_FILE in file_contents(tmp_path / "out")


def test_a_folder_that_cannot_be_created_promises_nothing(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "the run"}\n')
    with pytest.raises(
        DataError, match=r"out\.partial: cannot be written: Not a dir.* permissions$"
    ):
        write_shards([tmp_path / "a.jsonl"], tmp_path / "a.jsonl" / "out", tokenizer)


def test_the_folder_in_which_shards_are_written_is_no_input(tmp_path, tokenizer):
    write_texts(tmp_path / "a.jsonl", "upstream", documents=4)
    skipped = []
    write_shards([tmp_path], tmp_path / "out", tokenizer, on_skipped=skipped.append)
    assert not skipped


def test_the_current_folder_is_no_folder_to_write(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="name a folder in it"):
        write_shards([tmp_path / "a.txt"], Path(), tokenizer)


def test_shards_are_numbered_without_gaps(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=40)
    index = write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800)["."]
    names = [f"{number:05d}.tar" for number in range(len(index.shards))]
    assert len(names) > 2
    assert [shard.name for shard in index.shards] == names
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == names


def test_a_folder_whose_name_looks_like_a_command_is_a_folder(tmp_path, tokenizer, monkeypatch):
    """webdataset runs `pipe:...` when it is given a path."""
    monkeypatch.chdir(tmp_path)
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=5)
    for name in ("pipe:touch started;x", "a:b"):
        write_shards([text], Path(name), tokenizer)
        assert len(documents_of(tmp_path / name)) == 5
    assert not (tmp_path / "started").exists()


def test_a_url_is_no_folder_to_write(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=5)
    with pytest.raises(DataError, match="should be a folder on this machine") as error:
        write_shards([text], Path("s3://user:secret@bucket/x"), tokenizer)
    assert "secret" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.jsonl"]
