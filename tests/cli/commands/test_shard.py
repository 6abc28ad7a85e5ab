import json

import numpy as np
import pytest
from shard_folders import documents_of
from text_corpora import write_texts
from text_inputs import lines, tar_of
from tokenizers import Tokenizer


def test_shard_writes_train_and_val_and_prints_their_counts(tmp_path, tokenizer_json, command):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=100)
    with text.open("a") as file:
        file.write('{"text": ""}\n')
    code, out, _ = command(
        "shard", text, "--out", tmp_path / "out", "--tokenizer", tokenizer_json,
        "--validation", "20%", "--shard-size", "2k",
    )  # fmt: skip
    assert code == 0
    documents = {name: documents_of(tmp_path / "out" / name) for name in ("train", "val")}
    assert sum(map(len, documents.values())) == 100
    encoder = Tokenizer.from_file(str(tokenizer_json))
    assert "text bytes/token" in out
    for name, tokens in documents.items():
        index = json.loads((tmp_path / "out" / name / "index.json").read_text())
        (row,) = [line for line in out.splitlines() if f"out/{name} " in line]
        total = sum(map(len, tokens))
        size = sum(len(encoder.decode(document[:-1]).encode()) for document in tokens)
        assert row.split()[1:] == [
            str(len(index["shards"])),
            str(len(tokens)),
            f"{total:,}",
            f"{size / total:.2f}",
        ]
    assert "; 1 empty documents left out" in out


def test_tokens_have_no_bytes_of_text(tmp_path, tokenizer_json, command):
    np.save(tmp_path / "ids.npy", np.arange(1, 100, dtype=np.uint16))
    arguments = ("--out", tmp_path / "out", "--tokenizer", tokenizer_json)
    code, out, _ = command("shard", tmp_path / "ids.npy", *arguments)
    assert code == 0
    (row,) = [line for line in out.splitlines() if "out " in line]
    assert row.split()[1:] == ["1", "1", "99"]


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_long_folder_name_does_not_displace_the_numbers(
    tmp_path, tokenizer_json, command, monkeypatch, columns
):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=100)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", columns)
    out = tmp_path / ("long-name-" * 12)
    code, printed, _ = command(
        "shard", text, "--out", out, "--tokenizer", tokenizer_json, "--validation", "20%"
    )
    assert code == 0
    for name in ("train", "val"):
        index = json.loads((out / name / "index.json").read_text())
        assert f"{sum(shard['tokens'] for shard in index['shards']):,}" in printed


def test_shard_counts_special_tokens_in_the_texts(tmp_path, tokenizer_json, command):
    (tmp_path / "a.jsonl").write_text('{"text": "<|endoftext|> the <|endoftext|>"}\n')
    code, out, _ = command(
        "shard", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--tokenizer", tokenizer_json
    )
    assert code == 0
    assert "; 2 special tokens in the texts encoded as text" in out
    (tokens,) = documents_of(tmp_path / "out")
    assert tokens.tolist().count(0) == 1


def test_shard_counts_an_end_of_text_that_is_not_special(tmp_path, tokenizer_json, command):
    document = json.loads(tokenizer_json.read_text())
    (end_of_text,) = document["added_tokens"]
    end_of_text["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "a.jsonl").write_text('{"text": "<|endoftext|> the <|endoftext|>"}\n')
    code, out, _ = command(
        "shard", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--tokenizer", tmp_path
    )
    assert code == 0
    assert "; 2 end-of-text tokens inside texts, since the tokenizer does not mark" in out
    (tokens,) = documents_of(tmp_path / "out")
    assert tokens.tolist().count(0) == 3


def test_shard_reads_the_given_field(tmp_path, tokenizer_json, command):
    (tmp_path / "a.jsonl").write_text('{"body": "the run"}\n')
    words = (
        "shard",
        tmp_path / "a.jsonl",
        "--out",
        tmp_path / "out",
        "--tokenizer",
        tokenizer_json,
    )
    code, _, err = command(*words)
    assert (code, "no text in field 'text' (found: body); see --field" in err) == (3, True)
    code, _, _ = command(*words, "--field", "body")
    assert code == 0
    assert len(documents_of(tmp_path / "out")) == 1


@pytest.fixture
def shard(tmp_path, tokenizer_json, command):
    """Runs `rewarm shard INPUT --out out --tokenizer ... OPTIONS`."""

    def run(path, *options):
        out = ("--out", tmp_path / "out", "--tokenizer", tokenizer_json)
        return command("shard", path, *out, *options)

    return run


def test_the_summary_lists_what_was_read_and_what_was_skipped(tmp_path, shard):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines("the run"))
    (folder / "notes.md").touch()
    images = {f"{number}.jpg": b"x" for number in range(5)}
    (folder / "b.tar").write_bytes(tar_of({"0.txt": b"the end", **images}))
    code, out, _ = shard(folder)
    assert code == 0
    read, *skipped = [line for line in out.splitlines() if line.startswith(("read", "skipped"))]
    assert read == f"read     2 files: {folder}/a.jsonl, {folder}/b.tar"
    assert skipped == [
        f"skipped  1 (its ending is not read: .md): {folder}/notes.md",
        f"skipped  5 (its ending is not read: .jpg): {folder}/b.tar:0.jpg, {folder}/b.tar:1.jpg, "
        f"{folder}/b.tar:2.jpg, and 2 more",
    ]


def test_bad_records_stop_or_are_skipped_and_listed(tmp_path, shard):
    path = tmp_path / "a.jsonl"
    bad = b'{"text": null}\n{"text": \n[1]\n{"text": [1]}\n{"text": "caf\xe9"}\n{"body": "x"}\n'
    path.write_bytes(lines("the run") + bad + lines("the end"))
    code, _, err = shard(path)
    assert code == 3
    assert f"{path}:2: no text in field 'text': it is null; correct it, or leave such" in err
    code, out, _ = shard(path, "--on-bad-record", "skip")
    assert code == 0
    file = tmp_path / "out" / "skipped-records.jsonl"
    assert f"skipped  6 records without text: see {file}" in out
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["location"] for record in records] == [f"{path}:{n}" for n in range(2, 8)]
    assert [record["reason"].partition(": ")[0] for record in records] == [
        "no text in field 'text'",
        "not a line of JSON",
        "no text in field 'text' (found",
        "no text in field 'text'",
        "not a line of JSON",
        "no text in field 'text' (found",
    ]
    assert len(documents_of(tmp_path / "out")) == 2


def test_where_no_document_is_left_the_reasons_are_printed(tmp_path, shard):
    path = tmp_path / "in.tar"
    path.write_bytes(tar_of({"0.jsonl": b'{"body": "x"}\n' * 3, "1.jpg": b"x"}))
    code, _, err = shard(path, "--on-bad-record", "skip", "--validation", "50%")
    assert (code, "no document left: all that the inputs hold is empty" in err) == (3, True)
    assert f"skipped  1 (its ending is not read: .jpg): {path}:1.jpg" in err
    assert f"skipped  3 records without text: first {path}:0.jsonl:1: no text in field" in err


def test_one_split_is_read(tmp_path, shard):
    for name in ("train", "test"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jsonl").write_bytes(lines(*name))
    code, _, err = shard(tmp_path / "in")
    assert (code, "several splits: test (1 file), train (1 file)" in err) == (3, True)
    code, _, _ = shard(tmp_path / "in", "--split", "test")
    assert (code, len(documents_of(tmp_path / "out"))) == (0, 4)


def test_raw_tokens_are_read_if_their_dtype_is_given(tmp_path, shard):
    path = tmp_path / "train.bin"
    np.array([5, 6, 0, 7, 0], "<u2").tofile(path)
    code, _, err = shard(path)
    assert (code, "--raw-tokens uint16" in err) == (3, True)
    code, _, _ = shard(path, "--raw-tokens", "uint16")
    assert code == 0
    assert [tokens.tolist() for tokens in documents_of(tmp_path / "out")] == [[5, 6, 0], [7, 0]]


def test_limits_may_be_raised(tmp_path, shard):
    path = tmp_path / "a.txt"
    path.write_bytes(b"the run " * 100)
    code, _, err = shard(path, "--max-document", "500")
    assert (code, "allow it with --max-document" in err) == (3, True)
    assert shard(path, "--max-document", "1k")[0] == 0


def test_the_limit_on_a_text_that_cannot_be_cut_may_be_raised(tmp_path, shard):
    path = tmp_path / "a.txt"
    path.write_bytes(b"ACGT" * 1500)
    code, _, err = shard(path, "--max-piece", "5k")
    assert (code, "allow it with --max-piece" in err) == (3, True)
    assert shard(path, "--max-piece", "6k")[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--on-bad-record", "ignore"),
        ("--raw-tokens", "float32"),
        ("--sequences", "blocks"),
        ("--max-document", "0"),
        ("--max-piece", "-1"),
        ("--max-document", "big"),
        ("--max-expansion", "0"),
    ],
)
def test_a_wrong_option_is_a_usage_error(tmp_path, shard, options):
    (tmp_path / "a.txt").touch()
    code, _, err = shard(tmp_path / "a.txt", *options)
    assert (code, options[0] in err) == (2, True)


@pytest.mark.parametrize("out", [".", "..", "../work"])
def test_the_working_directory_is_no_folder_to_write(
    tmp_path, tokenizer_json, command, monkeypatch, out
):
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "a.jsonl").write_bytes(lines("x"))
    monkeypatch.chdir(work)
    words = ("shard", "../a.jsonl", "--out", out, "--tokenizer", tokenizer_json)
    code, _, err = command(*words)
    assert (code, "the working directory is in it" in err) == (2, True)
    assert not list(work.iterdir())


def test_a_folder_whose_name_looks_like_a_pattern_can_be_trained_on(
    tmp_path, tokenizer_json, command
):
    from rewarm.data.shard_source import ShardSource

    (tmp_path / "a.jsonl").write_bytes(lines("the run"))
    out = tmp_path / "out[1]*"
    words = ("shard", tmp_path / "a.jsonl", "--out", out, "--tokenizer", tokenizer_json)
    assert command(*words)[0] == 0
    assert command("verify", out)[0] == 0
    assert ShardSource(str(out)).index.documents == 1


def sources(*values):
    rows = ({"text": f"text {i}", "meta": {"set": value}} for i, value in enumerate(values))
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_shard_writes_only_the_documents_that_have_a_value(tmp_path, tokenizer_json, command):
    (tmp_path / "a.jsonl").write_text(sources("C4", "Book", "C4", "C4", "arXiv"))
    arguments = ("shard", tmp_path / "a.jsonl", "--tokenizer", tokenizer_json, "--out")
    code, out, _ = command(*arguments, tmp_path / "out", "--where", "meta.set=C4")
    assert code == 0
    assert len(documents_of(tmp_path / "out")) == 3
    assert "skipped  2 (--where): 1 meta.set=Book, 1 meta.set=arXiv" in out

    code, _, err = command(*arguments, tmp_path / "none", "--where", "meta.set=c4")
    assert code == 3
    assert "no document left" in err
    assert "skipped  5 (--where): 3 meta.set=C4, 1 meta.set=Book, 1 meta.set=arXiv" in err
    code, _, err = command(*arguments, tmp_path / "none", "--where", "meta.name=C4")
    assert code == 3
    assert "a.jsonl:1: no field 'meta.name' to compare with --where meta.name=C4" in err
    code, _, err = command(*arguments, tmp_path / "none", "--where", "C4")
    assert code == 2
    assert "--where C4: should be FIELD=VALUE, such as meta.source=books" in err


def test_shard_refuses_to_select_from_what_has_no_fields(tmp_path, tokenizer_json, command):
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.tar").write_bytes(tar_of({"0.txt": b"a text"}))
    for name, location in (("a.txt", "a.txt"), ("b.tar", "b.tar:0.txt")):
        arguments = ("--out", tmp_path / "out", "--tokenizer", tokenizer_json, "--where", "a=b")
        code, _, err = command("shard", tmp_path / name, *arguments)
        assert code == 3
        assert (
            f"{location}: --where a=b compares fields of JSON documents and tables, and this is txt"
            in err
        )
