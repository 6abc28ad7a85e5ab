"""The quickstart's text: separating English from code, and keeping existing files."""

import json

import pytest

from rewarm.data import quickstart_text
from rewarm.data.quickstart_text import (
    split_docstrings,
    train_byte_level_bpe,
    write_standard_library_text,
    write_text_shards,
)
from rewarm.data.shard_format import read_shard_index
from rewarm.errors import DataError

DOCSTRING = "Words. " * 40
CODE = "".join(f"value_{i} = {i}\n" for i in range(40))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Returns a standard library of a few files, without a language reference."""
    root = tmp_path / "stdlib"
    for name in ("module.py", "package/inner.py", "test/test_it.py", "site-packages/other.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{DOCSTRING}{path.stem}."""\n{CODE}')
    (root / "short.py").write_text('"""Short."""\n')
    (root / "invalid.py").write_text(f"def broken(:\n{CODE}")
    (root / "latin.py").write_bytes(b"# \xff\n" + CODE.encode())
    monkeypatch.setattr(quickstart_text.sysconfig, "get_path", lambda _: str(root))
    monkeypatch.setattr(quickstart_text, "_language_reference", lambda: iter(()))
    return root


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_docstrings_and_code_are_separated():
    source = '"""Module."""\n\ndef f():\n    """Function,\n    two lines."""\n    return 1\n'
    assert split_docstrings(source) == (
        "Module.\n\nFunction,\ntwo lines.",
        "\ndef f():\n    return 1\n",
    )


def test_text_is_docstrings_and_code_of_valid_files_outside_tests(library, tmp_path):
    paths = write_standard_library_text(tmp_path / "text")
    assert texts_of(paths["upstream"]) == [f"{DOCSTRING}module.", f"{DOCSTRING}inner."]
    assert texts_of(paths["downstream"]) == [CODE, CODE]


def test_existing_text_is_kept(library, tmp_path):
    paths = write_standard_library_text(tmp_path / "text")
    paths["upstream"].write_text("edited")
    assert write_standard_library_text(tmp_path / "text") == paths
    assert paths["upstream"].read_text() == "edited"


def test_a_python_without_source_code_is_reported(library, tmp_path):
    for path in library.rglob("*.py"):
        path.unlink()
    with pytest.raises(DataError, match="no source code of its standard library"):
        write_standard_library_text(tmp_path / "text")


def test_the_sample_has_the_same_number_of_characters_of_each_text():
    sample = quickstart_text._sample_equally([["aaaa", "aa"], ["bb", "bb", "bb", "bb"]])
    assert sample == ["aaaa", "aa", "bb", "bb", "bb"]


def test_tokenizer_and_shards_are_written_once(tmp_path):
    text, tokenizer, shards = (tmp_path / name for name in ("t.jsonl", "tokenizer.json", "shards"))
    documents = [f"{DOCSTRING}{i}" for i in range(100)]
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    for _ in range(2):
        train_byte_level_bpe(tokenizer, [text])
        write_text_shards(text, shards, tokenizer)
        text.write_text("an edit that the second call ignores")
    counts = {part: read_shard_index(shards / part).documents for part in ("train", "val")}
    assert sum(counts.values()) == 100
    assert counts["train"] > counts["val"] > 0
    assert "<|endoftext|>" in tokenizer.read_text()
