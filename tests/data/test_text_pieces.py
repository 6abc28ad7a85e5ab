import json
import random

import pytest
import tokenizers
from repository import ROOT

from rewarm.data.text_pieces import can_cut_texts, cut_text
from rewarm.data.tokenizer import load_tokenizer

NEOX = ROOT.parent / "shared" / "data" / "20B_tokenizer.json"
# White space, marks, quotes, letters and digits of several scripts, and what looks like a token.
ALPHABET = [
    *" \n\t\r\u00a0\u200b\u180e\u3000'.,_-!\u0301\u0958é字9²ßσΣ",
    *("'s", "  ", "the", "<|endoftext|>", ",", "+", "\u3002", "\uff0c", "\u3042", "\uac00"),
]


def random_texts(count):
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randint(0, 80))) for _ in range(count)]


def check_pieces(encoder, texts):
    for text in texts:
        pieces = list(cut_text(text, 3))
        assert "".join(pieces) == text
        encodings = encoder.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [token for encoding in encodings for token in encoding.ids]
        assert ids == encoder.encode(text, add_special_tokens=False).ids


def test_pieces_have_the_token_ids_of_the_text(tokenizer_json):
    encoder = load_tokenizer(str(tokenizer_json)).encoder
    assert can_cut_texts(encoder)
    check_pieces(encoder, random_texts(1000))


@pytest.mark.skipif(not NEOX.exists(), reason="the tokenizer of GPT-NeoX is not here")
def test_pieces_have_the_token_ids_of_the_text_with_the_tokenizer_of_gpt_neox():
    encoder = load_tokenizer(str(NEOX)).encoder
    assert can_cut_texts(encoder)
    check_pieces(encoder, random_texts(1000))


def test_pieces_have_at_least_the_given_length():
    text = "some words of a text\nand more"
    assert list(cut_text(text, 8)) == ["some words", " of a text", "\nand more"]
    assert list(cut_text("x" * 99, 8)) == ["x" * 99]
    assert list(cut_text("ab3,ab3,ab3", 4)) == ["ab3,ab3", ",ab3"]
    assert list(cut_text("\u4e00\u4e01\u3002" * 2, 2)) == [
        "\u4e00\u4e01",
        "\u3002\u4e00\u4e01",
        "\u3002",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"byte_level": {"add_prefix_space": True}},
        {"byte_level": {"use_regex": False}},
        {"added": {"rstrip": True}},
        {"added": {"content": "two words"}},
    ],
)
def test_other_tokenizers_get_whole_texts(tokenizer_json, change):
    document = json.loads(tokenizer_json.read_text())
    document["added_tokens"][0] |= change.get("added", {})
    document["pre_tokenizer"] |= change.get("byte_level", {})
    document |= {key: change[key] for key in change.keys() & document.keys()}
    encoder = tokenizers.Tokenizer.from_str(json.dumps(document))
    assert not can_cut_texts(encoder)
