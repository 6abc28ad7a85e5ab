"""Folders as they are published: documents and tokens against counts that are made another way."""

import gzip
import io
import json
import random
import tarfile

import numpy as np
import pytest
import zstandard
from shard_folders import documents_of
from text_inputs import write_megatron

from rewarm.data.inputs.document_readers import ReadOptions
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer

WORDS = (
    "the",
    "learning",
    "rate",
    "is",
    "raised",
    "and",
    "then",
    "it",
    "decays",
    "to",
    "its",
    "end",
)


def texts(count: int, seed: str) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 60))) for _ in range(count)]


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def shards_of(folder, out, tokenizer, **options):
    """The tokens of each document in the shards that are written of a folder."""
    write_shards([folder], out, tokenizer, **options)
    return [tokens.tolist() for tokens in documents_of(out)]


def tokens_of(documents, tokenizer):
    """The tokens of each text, one by one, through the tokenizer itself."""
    encode = tokenizer.encoder.encode
    return [[*encode(text, add_special_tokens=False).ids, 0] for text in documents]


def test_a_dataset_saved_after_map_and_filter(tmp_path, tokenizer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    documents = texts(60, "datasets")
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(folder, num_shards=2)
    loaded = datasets.load_from_disk(str(folder))
    # Both leave cache-*.arrow in the folder that was loaded.
    mapped = loaded.map(lambda row: {"text": row["text"].upper()})
    kept = mapped.filter(lambda row: len(row["text"]) > 100)
    assert list(folder.glob("cache-*.arrow"))
    assert shards_of(folder, tmp_path / "a", tokenizer) == tokens_of(documents, tokenizer)
    kept.save_to_disk(tmp_path / "kept")
    expected = [text.upper() for text in documents if len(text) > 100]
    assert 0 < len(expected) < 60
    assert shards_of(tmp_path / "kept", tmp_path / "b", tokenizer) == tokens_of(expected, tokenizer)


def test_a_split_of_a_dataset_dict(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    splits = {"train": texts(30, "train"), "test": texts(10, "test")}
    saved = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"text": documents})
            for name, documents in splits.items()
        }
    )
    saved.save_to_disk(tmp_path / "dict")
    for name, documents in splits.items():
        shards = shards_of(tmp_path / "dict", tmp_path / name, tokenizer, split=name)
        assert shards == tokens_of(documents, tokenizer)


def test_c4(tmp_path, tokenizer):
    folder = tmp_path / "en"
    folder.mkdir()
    documents = texts(40, "c4")
    for number in range(2):
        rows = [
            {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"}
            for text in documents[20 * number : 20 * number + 20]
        ]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"c4-train.{number:05d}-of-00002.json.gz").write_bytes(
            gzip.compress(data, mtime=0)
        )
    assert shards_of(tmp_path / "en", tmp_path / "out", tokenizer) == tokens_of(
        documents, tokenizer
    )


def test_the_pile(tmp_path, tokenizer):
    folder = tmp_path / "pile"
    folder.mkdir()
    documents = texts(40, "pile")
    for number in range(2):
        data = "".join(
            json.dumps({"text": text, "meta": {"pile_set_name": "Books3"}}) + "\n"
            for text in documents[20 * number : 20 * number + 20]
        )
        compressor = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
        stream = compressor.compressobj()
        packed = stream.compress(data.encode()) + stream.flush()
        (folder / f"{number:02d}.jsonl.zst").write_bytes(packed)
    (folder / "SHA256SUMS.txt").write_text("0 00.jsonl.zst\n")
    assert shards_of(folder, tmp_path / "out", tokenizer) == tokens_of(documents, tokenizer)


def test_tars_of_img2dataset(tmp_path, tokenizer):
    folder = tmp_path / "img2dataset"
    folder.mkdir()
    documents = texts(20, "captions")
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(10):
                text = documents[10 * shard + number]
                for ending, data in (
                    ("jpg", b"\xff\xd8\xff"),
                    ("json", json.dumps({"caption": text, "width": 256}, indent=4).encode()),
                    ("txt", text.encode()),
                ):
                    member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        (folder / f"{shard:05d}_stats.json").write_text('{\n    "count": 10\n}')
    assert shards_of(folder, tmp_path / "out", tokenizer) == tokens_of(documents, tokenizer)


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4)])
def test_megatron_files_of_both_dtypes(tmp_path, tokenizer, dtype, code):
    sequences = tokens_of(texts(30, "megatron"), tokenizer)
    write_megatron(tmp_path / "text_document", dtype, code, sequences, range(31))
    assert shards_of(tmp_path / "text_document.bin", tmp_path / "out", tokenizer) == sequences


def test_the_preshuffled_pile(tmp_path, tokenizer):
    """Blocks of 33 tokens that begin and end anywhere, in a .bin of several parts."""
    folder = tmp_path / "preshuffled"
    folder.mkdir()
    stream = [token for tokens in tokens_of(texts(60, "blocks"), tokenizer) for token in tokens]
    blocks = [stream[i : i + 33] for i in range(0, len(stream) - 33, 33)]
    write_megatron(folder / "document", "<u2", 8, blocks, range(len(blocks) + 1))
    data = (folder / "document.bin").read_bytes()
    (folder / "document.bin").unlink()
    size = len(data) // 3 + 1
    for number in range(3):
        part = data[size * number : size * (number + 1)]
        (folder / f"document-{number:05d}-of-00002.bin").write_bytes(part)
    shards = shards_of(folder, tmp_path / "out", tokenizer)
    assert [token for tokens in shards for token in tokens] == stream[: 33 * len(blocks)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("train.bin", "uint16"), ("part-00-00000.npy", "uint32")]
)
def test_tokens_of_nanogpt_and_dolma(tmp_path, tokenizer, name, dtype):
    """`tofile` of all tokens, each document with its end-of-text; Dolma's .npy has no header."""
    expected = tokens_of(texts(30, "raw"), tokenizer)
    np.concatenate(expected).astype(dtype).tofile(tmp_path / name)
    options = ReadOptions(raw_tokens=dtype, end_of_text=tokenizer.eos_token_id)
    assert shards_of(tmp_path / name, tmp_path / "out", tokenizer, options=options) == expected


def test_tokens_in_a_npy_with_a_header(tmp_path, tokenizer):
    expected = tokens_of(texts(30, "npy"), tokenizer)
    np.save(tmp_path / "tokens.npy", np.concatenate(expected).astype("<u2"))
    options = ReadOptions(end_of_text=tokenizer.eos_token_id)
    assert (
        shards_of(tmp_path / "tokens.npy", tmp_path / "o", tokenizer, options=options) == expected
    )
