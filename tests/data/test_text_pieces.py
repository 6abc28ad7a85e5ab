import json
import random

import pytest
import tokenizers
from repository import ROOT
from tokenizers import Regex, models, pre_tokenizers, trainers

from rewarm.data.text_pieces import can_cut_texts, cut_text
from rewarm.data.tokenizer import load_tokenizer, tokenizer_document

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
    assert can_cut_texts(tokenizer_document(encoder))
    check_pieces(encoder, random_texts(1000))


@pytest.mark.skipif(not NEOX.exists(), reason="the tokenizer of GPT-NeoX is not here")
def test_pieces_have_the_token_ids_of_the_text_with_the_tokenizer_of_gpt_neox():
    encoder = load_tokenizer(str(NEOX)).encoder
    assert can_cut_texts(tokenizer_document(encoder))
    check_pieces(encoder, random_texts(1000))


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pattern_tokenizer(pattern):
    """A byte-level BPE that merges whatever its pattern leaves together."""
    encoder = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    before = pre_tokenizers.Split(Regex(pattern), "isolated") if pattern else None
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [before or pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator([*random_texts(1000), "the 1234,56 they've,IT'S said"], trainer)
    return encoder


@pytest.mark.parametrize("pattern", [LLAMA_3, QWEN_2, GPT_4O, None])
def test_pieces_have_the_token_ids_of_the_text_with_the_patterns_of_others(pattern):
    encoder = pattern_tokenizer(pattern)
    assert can_cut_texts(tokenizer_document(encoder))
    check_pieces(encoder, random_texts(1000))
    check_pieces(encoder, ["the 1234,56 they've,IT'S/said /\n\n, x"])


def test_a_tokenizer_with_another_pattern_gets_whole_texts():
    assert not can_cut_texts(tokenizer_document(pattern_tokenizer(LLAMA_3 + r"|x")))


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
    assert not can_cut_texts(tokenizer_document(encoder))
