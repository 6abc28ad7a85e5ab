"""Untrusted JSON, files and links are refused; valid ones are read."""

import json
import os

import pytest

from rewarm.errors import CheckpointError, printable
from rewarm.safe_loading import check_files_inside, is_plain_file_name, parse_json, read_limited


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "'a' is a duplicate key in one object"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b"9" * 5000, "a number with 5,000 digits"),
        (b'"\xff"', "can't decode"),
        (b"{", "Expecting property name"),
    ],
)
def test_ambiguous_or_invalid_json_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse_json(data)


def test_valid_json_is_read():
    data = {"a": [1, -2.5, None, True, "é\n"], "b": {"c": [[[]]] * 3, "d": 10**30}}
    assert parse_json(json.dumps(data).encode()) == data
    assert parse_json(b"[" * 32 + b"]" * 32)


def test_pipes_folders_and_large_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    for name, message in (("pipe", "not a regular file"), (".", "not a reg"), ("large", "larger")):
        with pytest.raises(ValueError, match=message):
            read_limited(tmp_path / name, max_bytes=10)
    assert read_limited(tmp_path / "large", max_bytes=11) == bytes(11)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / "missing")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("subfolder", ["", "step1000"])
def test_links_inside_the_hub_cache_are_allowed(tmp_path, shared, subfolder):
    """The layout of huggingface_hub: snapshots link to blobs, which may link to shared blobs."""
    repo = tmp_path / "hub" / "models--a--b"
    folder = repo / "snapshots" / "0123" / subfolder
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (tmp_path / "hub" / "blobs").mkdir()
    blob = repo / "blobs" / "abc"
    if shared:
        (tmp_path / "hub" / "blobs" / "def").write_text("{}")
        blob.symlink_to(tmp_path / "hub" / "blobs" / "def")
    else:
        blob.write_text("{}")
    (folder / "config.json").symlink_to(os.path.relpath(blob, folder))
    check_files_inside(folder)
    (folder / "tokenizer.json").symlink_to(tmp_path / "hub" / ".." / "secret")
    (tmp_path / "secret").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: a link out of its folder, to .*se"):
        check_files_inside(folder)


def test_a_linked_folder_and_links_within_it_are_allowed(tmp_path):
    real = tmp_path / "disk" / "model"
    real.mkdir(parents=True)
    (real / "a.json").write_text("{}")
    (real / "b.json").symlink_to("a.json")
    (real / "notes.md").symlink_to("/nowhere")
    (real / "data").symlink_to(tmp_path)
    (tmp_path / "model").symlink_to(real)
    check_files_inside(tmp_path / "model")


@pytest.mark.parametrize("name", ["a", "model-00001-of-00002.safetensors", "_x.json"])
def test_plain_file_names(name):
    assert is_plain_file_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "../a", ".hidden", "a\0", "a\n", "é", "x" * 201, "~"]
)
def test_names_that_are_paths_or_hidden_are_not_plain(name):
    assert not is_plain_file_name(name)


def test_messages_escape_control_characters_and_are_shortened():
    assert printable("a → b\nc") == "a → b\nc"
    assert printable("\x1b[2J\x07\ud800\t\x9b") == r"\x1b[2J\x07\ud800\t\x9b"
    assert printable("x" * 10**7) == "x" * 600 + " [...] " + "x" * 300
    flood = printable("\n".join(map(str, range(10**5)))).split("\n")
    assert (len(flood), flood[-2:]) == (50, ["... and 99951 more lines", "99999"])
    assert str(CheckpointError("\x1b]0;owned\x07")) == r"\x1b]0;owned\x07"
