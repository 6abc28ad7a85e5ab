import hashlib
import threading

import numpy as np
import pytest
from tokenizers import normalizers

from rewarm.data.inputs.document_readers import Document
from rewarm.data.sharding import tokenize_documents
from rewarm.data.sharding.tokenize_documents import (
    DocumentTokenizer,
    batches_with_digests,
    map_ahead,
)
from rewarm.data.text_encoder import TextEncoder
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def test_texts_and_token_ids_end_with_end_of_text(tokenizer):
    ids = [np.array([5, 6], np.uint32), np.array([7, 0], np.uint16), np.array([8, 9], np.int64)]
    texts = ["the run", "its end"]
    documents = [
        Document(texts[0], 1),
        Document(ids[0], 2),
        Document(texts[1], 3),
        Document(ids[1], 4),
        Document(ids[2], 5, ends=False),
    ]
    batch = DocumentTokenizer(tokenizer).tokenize(documents)
    encoded = [tokenizer.encoder.encode(text, add_special_tokens=False).ids for text in texts]
    expected = [[*encoded[0], 0], [5, 6, 0], [*encoded[1], 0], [7, 0], [8, 9]]
    assert [part.tolist() for part in np.split(batch.tokens, batch.ends)] == [*expected, []]


@pytest.mark.parametrize("dtype", ["<u2", "<i8", "<u4"])
def test_token_ids_outside_the_vocabulary_are_refused(tokenizer, dtype):
    too_high = tokenizer.vocabulary if dtype == "<u2" else 70_000
    document = Document(np.array([3, too_high], dtype), 0, location="ids.bin: document 2")
    with pytest.raises(
        DataError,
        match=rf"ids\.bin: document 2: token {too_high} at position 1 is outside the "
        rf"tokenizer's vocabulary of {tokenizer.vocabulary}; ",
    ):
        DocumentTokenizer(tokenizer).tokenize([document])


def test_batches_hold_a_limited_number_of_bytes_and_count_empty_documents(monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_BATCH_BYTES", 10)
    texts = ["1234", "", "ÄÖÜ", "", "", "long document " * 9, "x", ""]
    batches = list(batches_with_digests(Document(text, i + 1) for i, text in enumerate(texts)))
    assert [[d.content for d in batch.documents] for batch in batches] == [
        ["1234", "ÄÖÜ"], ["long document " * 9], ["x"]
    ]  # fmt: skip
    assert [batch.empty_documents for batch in batches] == [1, 2, 1]
    assert [batch.bytes_read for batch in batches] == [3, 6, 8]
    assert all(len(batch.digests) == len(batch.documents) for batch in batches)


def test_the_digest_is_of_what_decides_the_token_ids():
    tokens = np.array([1, 2], np.uint32)
    documents = [
        Document("text", 1),
        Document("text", 2, location="elsewhere"),
        Document(tokens, 3),
        Document(tokens.astype(np.uint16), 4),
        Document(tokens, 5, ends=False),
    ]
    (batch,) = batches_with_digests(iter(documents))
    assert batch.digests[0] == hashlib.sha256(b"text").digest() == batch.digests[1]
    assert batch.digests[2] == hashlib.sha256(tokens.astype("<u4").tobytes()).digest()
    assert batch.digests[3] == batch.digests[2] != batch.digests[4]


def test_results_keep_their_order_and_an_error_comes_after_those_before_it():
    second_done = threading.Event()

    def double(number):
        if number == 0:
            second_done.wait(10)  # two calls run at once
        if number == 1:
            second_done.set()
        if number == 4:
            raise ValueError("four")
        return 2 * number

    results = map_ahead(double, ((number,) for number in range(6)))
    assert [next(results) for _ in range(4)] == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="four"):
        next(results)


def test_joined_texts_have_the_token_ids_that_they_have_alone(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_PIECE_CHARACTERS", 20)
    monkeypatch.setattr(tokenize_documents, "_BATCH_BYTES", 100)
    texts = ["a", "", "<|endoftext|>", "<|endoftext|", "|>", " b ", "x" * 19, "<|", "cat\n", "\n"]
    documents = [Document(text, 0) for text in texts * 7]
    documents.insert(9, Document(np.array([5, 0, 6], np.uint32), 0))
    document_tokenizer = DocumentTokenizer(tokenizer)
    encode = document_tokenizer.encoder.encode_joined
    joined = []
    monkeypatch.setattr(
        document_tokenizer.encoder,
        "encode_joined",
        lambda texts: joined.extend(texts) or encode(texts),
    )
    batch = document_tokenizer.tokenize(documents)
    expected = [[*TextEncoder(tokenizer).encode([text])[0], 0] for text in texts * 7]
    expected.insert(9, [5, 0, 6, 0])
    assert [part.tolist() for part in np.split(batch.tokens, batch.ends)[:-1]] == expected
    assert max(text.count("<|endoftext|>") for text in joined) > 1
    assert document_tokenizer.encoder.special_tokens == {"<|endoftext|>": 7}


def test_a_text_that_is_normalized_to_end_of_text_stays_one_document(tokenizer):
    tokenizer.encoder.normalizer = normalizers.NFKC()
    wide = "".join(chr(ord(character) + 0xFEE0) for character in "<|endoftext|>")
    batch = DocumentTokenizer(tokenizer).tokenize([Document(t, 0) for t in ("a", wide, "b")])
    assert len(batch.ends) == 3


def test_a_text_that_cannot_be_cut_is_refused_above_a_limit(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_PIECE_CHARACTERS", 20)
    documents = [Document("a b, " * 99, 1), Document("字" * 40, 2, location="x.jsonl:2")]
    document_tokenizer = DocumentTokenizer(tokenizer, 119)
    with pytest.raises(
        DataError,
        match=r"^x\.jsonl:2: 120 bytes of text that this tokenizer has to encode at once "
        r"\(limit 119\), .*--max-piece",
    ):
        document_tokenizer.tokenize(documents)
    assert len(DocumentTokenizer(tokenizer, 120).tokenize(documents).ends) == 2


def test_a_long_text_has_the_token_ids_that_it_has_in_one_piece(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_PIECE_CHARACTERS", 20)
    monkeypatch.setattr(tokenize_documents, "_BATCH_BYTES", 100)
    texts = [" ".join(f"the run {i} decays,\n" for i in range(99)), "short", "", "x" * 99]
    documents = [Document(text, 0) for text in texts]
    batch = DocumentTokenizer(tokenizer).tokenize(documents)
    expected = [tokenizer.encoder.encode(text, add_special_tokens=False).ids for text in texts]
    parts = np.split(batch.tokens, batch.ends)[:-1]
    assert [part.tolist() for part in parts] == [[*ids, 0] for ids in expected]
