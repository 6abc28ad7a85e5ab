import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from itertools import count

import numpy as np
import pytest
from text_corpora import write_texts

from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.data.shard_writer import ShardWriter, prefetch, write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.data.verify_shards import find_overlap, verify_shards
from rewarm.errors import DataError


@pytest.fixture
def said(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def documents(folder):
    index = read_shard_index(folder)
    return [t.tolist() for facts in index.shards for t in Shard(folder, facts, index.dtype)]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_megatron(path, dtype, code, sequences, firsts):
    """Writes a .bin/.idx pair by the format's description, knowing nothing of the reader."""
    data = b"".join(np.array(ids, dtype).tobytes() for ids in sequences)
    path.with_suffix(".bin").write_bytes(data)
    with path.with_suffix(".idx").open("wb") as idx:
        idx.write(b"MMIDIDX\x00\x00")
        idx.write(struct.pack("<Q", 1))
        idx.write(struct.pack("<B", code))
        idx.write(struct.pack("<Q", len(sequences)))
        idx.write(struct.pack("<Q", len(firsts)))
        at, width = 0, np.dtype(dtype).itemsize
        for ids in sequences:
            idx.write(struct.pack("<i", len(ids)))
        for ids in sequences:
            idx.write(struct.pack("<q", at))
            at += width * len(ids)
        for first in firsts:
            idx.write(struct.pack("<q", first))


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4)])
def test_a_pile_prepared_for_gpt_neox_becomes_the_same_tokens(tmp_path, said, dtype, code):
    sequences = [[5, 6, 7, 0], [8, 9], [10, 0], [], [11, 12]]
    # Documents: the first sequence; the second and third; the empty one; the last, without an end.
    write_megatron(tmp_path / "pile", dtype, code, sequences, [0, 1, 3, 4, 5])
    write_shards([tmp_path / "pile.bin"], tmp_path / "out", said)
    assert documents(tmp_path / "out") == [[5, 6, 7, 0], [8, 9, 10, 0], [11, 12, 0]]


def test_a_pair_is_trained_on_like_the_text_that_it_was_made_of(
    tmp_path, corpora, said, recipe_file
):
    """Documents with end-of-text, as `preprocess_data.py --append-eod` of GPT-NeoX writes them."""
    from rewarm.recipe.recipe import load_recipe
    from rewarm.training.loop import train

    folder = corpora / "upstream" / "train"
    sequences = documents(folder)
    write_megatron(tmp_path / "pile", "<u2", 8, sequences, range(len(sequences) + 1))
    write_shards([tmp_path / "pile.bin"], tmp_path / "pile", said, shard_tokens=3000)
    assert files(tmp_path / "pile") == files(folder)
    pile = f"data.train.upstream.shards={tmp_path}/pile"
    text, ids = (
        train(load_recipe(recipe_file, [f"run={tmp_path}/{name}", "tokens=2048", *more]))
        for name, more in (("text", []), ("ids", [pile]))
    )
    name = "model.safetensors"
    assert (text / name).read_bytes() == (ids / name).read_bytes()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda p: p.with_suffix(".idx").unlink(), "its index is missing"),
        (lambda p: p.with_suffix(".idx").write_bytes(b"nonsense"), "not an index of Megatron"),
        (
            lambda p: p.with_suffix(".idx").write_bytes(p.with_suffix(".idx").read_bytes()[:60]),
            "cut off",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[:-2]), "speaks of"),
    ],
)
def test_a_damaged_pair_is_named(tmp_path, said, damage, why):
    write_megatron(tmp_path / "pile", "<u2", 8, [[5, 6, 0], [7, 0]], [0, 1, 2])
    damage(tmp_path / "pile.bin")
    with pytest.raises(DataError, match=why):
        write_shards([tmp_path / "pile.bin"], tmp_path / "out", said)
    assert not (tmp_path / "out").exists()


def test_every_kind_of_file_gives_the_same_documents(tmp_path, said):
    import pyarrow
    import zstandard
    from pyarrow import parquet

    lines = write_texts(tmp_path / "a.jsonl", "third", documents=9).read_text()
    texts = [json.loads(line)["text"] for line in lines.splitlines()]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, tmp_path / "d.parquet")
    saved = tmp_path / "saved"
    saved.mkdir()  # as datasets.save_to_disk lays it out
    with (
        (saved / "data-00000-of-00001.arrow").open("wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=2)
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        for number, text in enumerate(texts):
            member = tmp_path / "member"
            if number % 2:
                member.write_text(text)
            else:
                member.write_text(json.dumps({"text": text}))
            tar.add(member, f"{number:03d}.{'txt' if number % 2 else 'json'}")
        tar.add(member, "000.meta")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text)
    expected = None
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "saved", "e.tar", "folder"):
        write_shards([tmp_path / name], tmp_path / f"out-{name}", said)
        found = documents(tmp_path / f"out-{name}")
        assert len(found) == 9
        assert found == (expected := expected or found), name


def test_a_link_in_a_tar_of_text_is_not_followed(tmp_path, said):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("evil.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar:evil\.txt: not a plain file"):
        write_shards([tmp_path / "a.tar"], tmp_path / "out", said)


def test_empty_texts_are_counted_and_left_out(tmp_path, said):
    (tmp_path / "a.jsonl").write_text('{"text": "the run"}\n\n{"text": ""}\n{"text": "its end"}\n')
    seen = []
    write_shards([tmp_path / "a.jsonl"], tmp_path / "out", said, progress=seen.append)
    assert (seen[-1].documents, seen[-1].empty) == (2, 1)
    assert len(documents(tmp_path / "out")) == 2


def test_killed_and_started_again_it_writes_the_same_bytes(tmp_path, tokenizer_json):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=30_000)
    command = [
        sys.executable, "-m", "rewarm", "shard", str(text), "--tokenizer", str(tokenizer_json),
        "--validation", "10%", "--shard-size", "100k",
    ]  # fmt: skip
    subprocess.run([*command, "--out", str(tmp_path / "straight")], check=True, capture_output=True)
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL
        )
        wanted = len(list((tmp_path / "killed.partial").rglob("*.tar"))) + 3
        while process.poll() is None:
            if len(list((tmp_path / "killed.partial").rglob("*.tar"))) >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
        assert not (tmp_path / "killed").exists()
    assert kills == 2
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True, text=True
    )
    assert files(tmp_path / "killed") == files(tmp_path / "straight")
    assert not (tmp_path / "killed.partial").exists()
    assert "finished before" in done.stdout


def test_what_another_job_left_is_not_gone_on_with(tmp_path, said):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=30)
    write_shards([text], tmp_path / "straight", said, shard_tokens=500)
    # What a kill leaves of a job with another size of tar:
    with ShardWriter(tmp_path / "out.partial", said, 100) as writer:
        for _ in range(20):
            writer.write(np.array([1, 2, 3, 4, 5, 6, 7, 0], np.uint32))
    (tmp_path / "out.partial" / "job.json").write_text("{}")
    write_shards([text], tmp_path / "out", said, shard_tokens=500)
    assert files(tmp_path / "out") == files(tmp_path / "straight")


def test_verify_names_every_bad_shard(tmp_path, said, corpora):
    assert all(not one.bad for one in verify_shards(corpora / "upstream"))
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=60)
    write_shards([text], tmp_path / "out", said, shard_tokens=1000)
    for name in ("00001.tar", "00002.tar"):
        data = bytearray((tmp_path / "out" / name).read_bytes())
        data[700] ^= 1
        (tmp_path / "out" / name).write_bytes(data)
    ended = subprocess.run(
        [sys.executable, "-m", "rewarm", "verify", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 3
    assert "00001.tar: changed since it was written" in ended.stderr
    assert "00002.tar: changed since it was written" in ended.stderr
    assert "00000.tar" not in ended.stderr


def test_verify_finds_documents_that_stand_in_both(tmp_path, said):
    lines = write_texts(tmp_path / "a.jsonl", "upstream", documents=20).read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[5:8], '{"text": "of its own"}']) + "\n")
    for name in "ab":
        write_shards([tmp_path / f"{name}.jsonl"], tmp_path / name, said, shard_tokens=300)
    pairs = find_overlap(tmp_path / "a", tmp_path / "b")
    assert len(pairs) == 3
    assert [other.rsplit(":")[-1] for _, other in pairs] == ["0", "1", "2"]
    command = [sys.executable, "-m", "rewarm", "verify"]
    both = subprocess.run(
        [*command, str(tmp_path / "a"), "--overlap", str(tmp_path / "b")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert both.returncode == 3
    assert "3 documents stand in both" in both.stderr
    split = subprocess.run(
        [*command, str(tmp_path / "b"), "--overlap", str(tmp_path / "b")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "4 documents" in split.stderr


def test_prefetch_keeps_order_and_raises_in_its_turn():
    def items():
        yield from range(10)
        raise DataError("here")

    ahead = prefetch(items(), depth=3)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    with pytest.raises(DataError, match="here"):
        next(ahead)


def test_prefetch_stops_its_thread():
    ahead = prefetch(count(), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert not any(thread.name == "rewarm-prefetch" for thread in threading.enumerate())
