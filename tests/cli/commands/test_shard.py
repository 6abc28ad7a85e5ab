import json

from shard_folders import documents_of
from text_corpora import write_texts


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
    for name, tokens in documents.items():
        index = json.loads((tmp_path / "out" / name / "index.json").read_text())
        (row,) = [line for line in out.splitlines() if f"out/{name} " in line]
        total = sum(map(len, tokens))
        size = sum(shard["bytes"] for shard in index["shards"])
        assert row.split()[1:] == [
            str(len(index["shards"])),
            str(len(tokens)),
            f"{total:,}",
            f"{size / total:.2f}",
        ]
    assert "; 1 empty documents left out" in out


def test_shard_counts_special_tokens_in_the_texts(tmp_path, tokenizer_json, command):
    (tmp_path / "a.jsonl").write_text('{"text": "<|endoftext|> the <|endoftext|>"}\n')
    code, out, _ = command(
        "shard", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--tokenizer", tokenizer_json
    )
    assert code == 0
    assert "; 2 special tokens in the texts encoded as text" in out
    (tokens,) = documents_of(tmp_path / "out")
    assert tokens.tolist().count(0) == 1


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
