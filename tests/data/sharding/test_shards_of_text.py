"""Text in the place of shards: the shards of `rewarm shard`, once, whole, and kept in the cache."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import pytest
from fsspec.implementations.local import LocalFileSystem
from text_corpora import write_texts

from rewarm.data.shard_format import read_shard_index
from rewarm.data.sharding import shards_of_text as module
from rewarm.data.sharding import tokenize_documents
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.sharding.shards_of_text import find_text, has_shards, shard_text
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_TOKENS", 800)
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)


def plain_digest(path, out, tokenizer, **options):
    """The digest of the index that `rewarm shard` writes."""
    return write_shards([path], out, tokenizer, **options)["."].digest()


def digest_in_cache(location, tokenizer, field="text", split=None):
    text = find_text(str(location), field, split)
    shard_text(text, tokenizer)
    return read_shard_index(text.shard_folder(tokenizer)).digest()


def test_the_shards_of_a_file_are_those_of_rewarm_shard(tmp_path, tokenizer):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=100)
    text = find_text(str(path))
    assert text.bytes == path.stat().st_size
    assert not has_shards(text.shard_folder(tokenizer))
    index = shard_text(text, tokenizer)
    folder = text.shard_folder(tokenizer)
    expected = plain_digest(path, tmp_path / "out", tokenizer)
    assert read_shard_index(folder).digest() == index.digest() == expected
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        p.name for p in (tmp_path / "out").iterdir()
    )
    assert shard_text(text, tokenizer) is None  # they are there


def test_a_folder_with_splits_and_another_field(tmp_path, tokenizer):
    for split, name in (("train", "upstream"), ("test", "third")):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        for part in (0, 1):
            text = write_texts(tmp_path / "x.jsonl", name, documents=20, seed=part).read_text()
            text = text.replace('{"text"', '{"content"')
            (folder / f"{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    options = {"field": "content", "split": "train"}
    expected = plain_digest(tmp_path / "data", tmp_path / "out", tokenizer, **options)
    assert digest_in_cache(tmp_path / "data", tokenizer, **options) == expected
    with pytest.raises(
        DataError, match=r"several splits: .*; in a recipe, --field and --split are"
    ):
        find_text(str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"see --field; .*in a recipe, --field and"):
        digest_in_cache(tmp_path / "data", tokenizer, split="train")


def test_what_is_no_text(corpora, trained_run, tmp_path):
    shards = corpora / "upstream" / "train"
    (tmp_path / "empty").mkdir()
    for path in (
        *(shards, shards / "00000.tar", f"{shards}/{{00000..00001}}.tar", corpora / "upstream"),
        *(trained_run, tmp_path / "missing", tmp_path / "empty", "https://host/x.jsonl"),
    ):
        assert find_text(str(path)) is None, path


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "text.pdf").touch()
    with pytest.raises(DataError, match=r"text.pdf: this file format cannot be read \(supported"):
        find_text(str(tmp_path / "text.pdf"))


def test_changed_text_another_field_and_another_tokenizer_have_other_shards(
    tmp_path, tokenizer, tokenizer_json
):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=20)
    other = json.loads(tokenizer_json.read_text())
    other["added_tokens"][0]["lstrip"] = True
    (tmp_path / "other.json").write_text(json.dumps(other))
    other_tokenizer = load_tokenizer(str(tmp_path / "other.json"))

    def folder(field="text", tokenizer=tokenizer):
        return find_text(str(path), field).shard_folder(tokenizer)

    first = folder()
    assert len({first, folder("content"), folder(tokenizer=other_tokenizer)}) == 3
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert folder() != first
    write_texts(path, "upstream", documents=21)
    assert digest_in_cache(path, tokenizer) == plain_digest(path, tmp_path / "out", tokenizer)


def test_a_wrong_line_is_refused_and_the_finished_shards_are_kept(
    tmp_path, tokenizer, small_shards, cache
):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=100)
    lines = path.read_text()
    path.write_text(lines + "{not JSON\n")
    with pytest.raises(DataError, match=r"text.jsonl:101: not a line of JSON.*are kept: the same"):
        shard_text(find_text(str(path)), tokenizer)
    assert not list(cache.rglob("index.json"))
    path.write_text(lines)
    counts = []
    shard_text(find_text(str(path)), tokenizer, progress=counts.append)
    assert counts[-1].finished_documents > 50
    expected = plain_digest(path, tmp_path / "out", tokenizer, shard_tokens=800)
    assert digest_in_cache(path, tokenizer) == expected


def test_text_that_changed_after_a_stop_is_sharded_from_its_start(
    tmp_path, tokenizer, small_shards
):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=100)
    path.write_text(path.read_text() + "{not JSON\n")
    with pytest.raises(DataError):
        shard_text(find_text(str(path)), tokenizer)
    write_texts(path, "third", documents=100)
    notices = []
    shard_text(find_text(str(path)), tokenizer, on_notice=notices.append)
    assert notices == ["the text has changed since a part of it was sharded: all of it is again"]
    expected = plain_digest(path, tmp_path / "out", tokenizer, shard_tokens=800)
    assert digest_in_cache(path, tokenizer) == expected


def test_text_that_changes_meanwhile_is_refused(tmp_path, tokenizer, cache):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=20)

    def change(_progress):
        with path.open("a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(DataError, match=r"text.jsonl: changed while it was sharded; run the same"):
        shard_text(find_text(str(path)), tokenizer, progress=change)
    assert not list(cache.rglob("index.json"))


# Shards a text, and logs that it writes; in a process that is killed when a shard is finished, or
# that waits until the other one has been asked too.
PROCESS = """
import os, signal, sys, time
from pathlib import Path
from rewarm.data.sharding import shards_of_text as module
from rewarm.data.sharding import tokenize_documents
from rewarm.data.tokenizer import load_tokenizer

path, tokenizer, log, how = sys.argv[1:]
module.SHARD_TOKENS, tokenize_documents._BATCH_DOCUMENTS = 800, 10
write_shards = module.write_shards

def say(word):
    with open(log, "a") as file:
        file.write(word + "\\n")

def logged(*arguments, **options):
    say("writes")
    while how == "together" and "waits" not in Path(log).read_text():
        time.sleep(0.005)
    return write_shards(*arguments, **options)

def progress(_counts):
    if how == "killed" and list(Path(os.environ["XDG_CACHE_HOME"]).rglob("finished.jsonl")):
        os.kill(os.getpid(), signal.SIGKILL)

module.write_shards = logged
text = module.find_text(path)
index = module.shard_text(
    text, load_tokenizer(tokenizer), progress=progress, on_wait=lambda: say("waits")
)
say("wrote" if index else "found")
"""


def start(path, tokenizer_json, log, how):
    words = [sys.executable, "-c", PROCESS, path, tokenizer_json, log, how]
    return subprocess.Popen([str(word) for word in words])


def test_of_two_processes_at_once_one_writes(tmp_path, tokenizer, tokenizer_json, small_shards):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=100)
    log = tmp_path / "log"
    log.touch()
    processes = [start(path, tokenizer_json, log, "together") for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == ["found", "waits", "writes", "wrote"]
    expected = plain_digest(path, tmp_path / "out", tokenizer, shard_tokens=800)
    assert digest_in_cache(path, tokenizer) == expected
    names = [p.name for p in find_text(str(path)).shard_folder(tokenizer).parent.iterdir()]
    assert len(names) == 1  # no lock, nothing unfinished


def test_after_a_kill_the_next_process_continues(tmp_path, tokenizer, tokenizer_json, small_shards):
    path = write_texts(tmp_path / "text.jsonl", "upstream", documents=300)
    killed = start(path, tokenizer_json, tmp_path / "log", "killed")
    assert killed.wait(timeout=120) == -signal.SIGKILL
    counts = []
    shard_text(find_text(str(path)), tokenizer, progress=counts.append)
    assert 0 < counts[-1].finished_documents < 300
    expected = plain_digest(path, tmp_path / "out", tokenizer, shard_tokens=800)
    assert digest_in_cache(path, tokenizer) == expected


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the data sets of the hub; its large files have a sha256."""
    root = tmp_path / "hub"

    class LocalHub(LocalFileSystem):
        protocol = "hf"
        cachable = False
        opened: ClassVar[list[str]] = []

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).replace("hf:/", str(root), 1).replace("//", "/").rstrip("/")

        def info(self, path, **options):
            info = super().info(path, **options)
            if info["type"] == "file" and info["name"].endswith(".jsonl"):
                content = Path(info["name"]).read_bytes()
                info["lfs"] = {"sha256": hashlib.sha256(content).hexdigest()}
            return info

        def _open(self, path, *arguments, **options):
            self.opened.append(Path(path).name)
            return super()._open(path, *arguments, **options)

    monkeypatch.setitem(import_module("fsspec.registry")._registry, "hf", LocalHub)
    return LocalHub, root / "datasets" / "owner" / "name"


def write_hub(folder):
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    for name, words in (("train", "upstream"), ("test", "third")):
        for part in (0, 1):
            path = folder / "data" / f"{name}-0000{part}-of-00002.jsonl"
            write_texts(path, words, documents=20, seed=part)
    (folder / "data" / "train.txt").write_text("one document of a file without a sha256")


def test_a_data_set_on_the_hub(hub, tmp_path, tokenizer, cache):
    storage, folder = hub
    write_hub(folder)
    url = "hf://datasets/owner/name"
    text = find_text(url, split="train")
    assert [file.name for file in text.files] == [
        "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/train.txt",
    ]  # fmt: skip
    assert storage.opened == []
    assert not cache.exists()
    skipped = []
    index = shard_text(text, tokenizer, on_skipped=skipped.append)
    assert sorted(storage.opened) == [Path(file.name).name for file in text.files]
    assert index.digest() == plain_digest(folder, tmp_path / "out", tokenizer, split="train")
    assert (f"{url}/README.md", "its ending is not read: .md") in skipped
    assert [p.name for p in text.shard_folder(tokenizer).parent.iterdir()] == [
        text.shard_folder(tokenizer).name
    ]  # no download is left
    with pytest.raises(DataError, match=f"^{url}: several splits: test .2 files., train .3 files."):
        find_text(url)

    file = f"{url}/data/test-00001-of-00002.jsonl"
    expected = plain_digest(folder / "data/test-00001-of-00002.jsonl", tmp_path / "f", tokenizer)
    assert digest_in_cache(file, tokenizer) == expected
    before = find_text(file).shard_folder(tokenizer)
    write_texts(folder / "data/test-00001-of-00002.jsonl", "third", documents=21)
    assert find_text(file).shard_folder(tokenizer) != before


def test_shards_on_the_hub_are_no_text_and_an_empty_address_is_an_error(hub):
    _, folder = hub
    write_hub(folder)
    (folder / "index.json").touch()
    assert find_text("hf://datasets/owner/name") is None
    with pytest.raises(DataError, match=r"^hf://datasets/owner/nam: no file there; check the addr"):
        find_text("hf://datasets/owner/nam")


def test_a_download_that_ends_early_is_refused(hub, tokenizer):
    _, folder = hub
    write_hub(folder)
    text = find_text("hf://datasets/owner/name/data/train.txt")
    (folder / "data" / "train.txt").write_text("cut")
    with pytest.raises(DataError, match=r"train.txt: received 3 of 39 bytes; run the same command"):
        shard_text(text, tokenizer)
