"""Shards from elsewhere, served by a real HTTP server that can misbehave."""

import functools
import http.server
import shutil
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from rewarm.data.corpus import Corpus
from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError, RecipeError
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `faults` says what goes wrong with a file, and how often."""

    faults: ClassVar[dict[str, list[str]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        name = self.path.rsplit("/")[-1]
        self.asked.append(name)
        left = self.faults.get(name, [])
        fault = left.pop(0) if left else None
        if fault == "404":
            self.send_error(404)
        elif fault == "500":
            self.send_error(500)
        elif fault in ("cut", "stall"):
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(3)
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(corpora, tmp_path, monkeypatch):
    """The address of a copy of the corpora, and the server's class; with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(corpora, tmp_path / "served")
    Server.faults, Server.asked = {}, []
    handler = functools.partial(Server, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Server
        server.shutdown()


def place(address, **settings):
    return ShardSource(f"{address}/upstream/train", attempts=2, timeout=1.0, **settings)


def test_shards_elsewhere_give_the_same_blocks(served, corpora):
    address, server = served
    here = Corpus(
        "a", ShardSource(str(corpora / "upstream" / "train")), context=16, seed=1, lanes=2
    )
    there = Corpus("a", place(address), context=16, seed=1, lanes=2)
    assert server.asked == ["index.json"]
    for n in range(0, here.blocks, 7):
        assert there.block(n).tolist() == here.block(n).tolist()
    asked = [name for name in server.asked if name.endswith(".tar")]
    assert sorted(asked) == sorted({*asked})  # each once: then it is in the cache


@pytest.mark.parametrize("fault", ["500", "cut", "stall"])
def test_a_transfer_that_fails_is_tried_again(served, fault):
    address, server = served
    server.faults["00001.tar"] = [fault]
    one = place(address)
    folder = one.fetch(one.index.shards[1])
    Shard(folder, one.index.shards[1], one.index.dtype)
    assert server.asked.count("00001.tar") == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [("404", "FileNotFoundError"), ("cut", "did not come in 2 attempts"), ("500", "500")],
)
def test_one_that_never_comes_is_named_and_nothing_half_is_kept(served, tmp_path, fault, said):
    address, server = served
    server.faults["00001.tar"] = [fault] * 9
    one = place(address)
    with pytest.raises(DataError, match=r"00001\.tar") as error:
        one.fetch(one.index.shards[1])
    assert said in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_shard_that_changed_on_the_way_is_not_taken(served, tmp_path):
    address, _ = served
    path = tmp_path / "served" / "upstream" / "train" / "00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    one = place(address)
    with pytest.raises(DataError, match="its sha256 is not the index's"):
        one.fetch(one.index.shards[1])


def test_the_cache_stays_below_its_size(served, tmp_path):
    address, _ = served
    one = place(address, cache_bytes=30_000)
    for facts in one.index.shards[:6]:
        one.fetch(facts)
        tars = list((tmp_path / "cache").rglob("*.tar"))
        total = sum(path.stat().st_size for path in tars)
        assert facts.name in {path.name for path in tars}
        assert total <= max(30_000, facts.bytes)


def test_a_run_reads_from_elsewhere_like_from_here(served, recipe_file, tmp_path, corpora):
    here = train(load_recipe(recipe_file, [f"run={tmp_path}/here", "tokens=2048"]))
    address, _ = served
    there = train(
        load_recipe(recipe_file, [
            f"run={tmp_path}/there", "tokens=2048",
            f"data.train.upstream.shards={address}/upstream/train",
            f"data.train.downstream.shards={address}/downstream/train",
            f"data.validation.upstream.shards={address}/upstream/val",
        ])
    )  # fmt: skip
    for name in ("model.safetensors", "progress.json", "tokenizer.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_braces_and_wildcards_choose_tars(corpora):
    folder = corpora / "upstream" / "train"
    whole = read_shard_index(folder)
    names = [one.name for one in ShardSource(f"{folder}/{{00000..00002}}.tar").index.shards]
    assert names == ["00000.tar", "00001.tar", "00002.tar"]
    assert ShardSource(f"{folder}/*.tar").index == whole
    with pytest.raises(DataError, match=r"no tar 00099\.tar in its index"):
        ShardSource(f"{folder}/{{00000,00099}}.tar")


@pytest.mark.parametrize(
    "said",
    ["pipe:cat /etc/passwd", "pipe://x", "file:///etc", "filecache::http://x", "!ls", "ftp://x/y"],
)
def test_what_could_run_a_command_is_refused_by_the_recipe(recipe_file, said):
    with pytest.raises(RecipeError, match=r"data\.train\.upstream\.shards"):
        load_recipe(recipe_file, [f"data.train.upstream.shards={said!r}"])
    if "://" in said and "::" not in said:
        with pytest.raises(DataError, match="cannot be read"):
            ShardSource(said)
