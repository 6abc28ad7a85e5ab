import json
import os

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from rewarm.data.normalizer_growth import check_normalizer
from rewarm.data.text_encoder import TextEncoder
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError

ALPHABET = {character: number for number, character in enumerate("abc ")}
EOS = {"</s>": len(ALPHABET)}


@pytest.fixture
def encoder_of(tmp_path):
    """Returns a function that opens a tokenizer of a model, with an end-of-text token."""

    def open_encoder(model, *, eos="</s>", **parts):
        tokenizer = Tokenizer(model)
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        tokenizer.add_special_tokens([AddedToken(eos, special=True)])
        tokenizer.save(str(tmp_path / "x.json"))
        return TextEncoder(load_tokenizer(str(tmp_path / "x.json"), eos))

    return open_encoder


@pytest.fixture
def byte_level(tokenizer_json):
    return TextEncoder(load_tokenizer(str(tokenizer_json)))


def test_special_tokens_in_a_text_are_encoded_as_text_and_counted(byte_level, tokenizer_json):
    plain = Tokenizer.from_file(str(tokenizer_json))
    texts = ["one <|endoftext|> two <|endoftext|>", "none", "<|other|>"]
    ids = byte_level.encode(texts)
    assert [plain.decode(tokens) for tokens in ids] == texts
    assert not any(0 in tokens for tokens in ids)
    assert plain.encode(texts[0]).ids.count(0) == 2
    assert byte_level.special_tokens == {"<|endoftext|>": 2}
    assert byte_level.end_of_text_tokens == 0


def test_other_texts_are_encoded_as_before(byte_level, tokenizer_json):
    plain = Tokenizer.from_file(str(tokenizer_json))
    texts = ["", "the cat", "é <| \n\n x", "\U0001f600"]
    assert byte_level.encode(texts) == [plain.encode(text).ids for text in texts]
    assert byte_level.special_tokens.total() == 0


def test_an_end_of_text_that_is_an_ordinary_word_is_counted(encoder_of):
    model = models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?")
    encoder = encoder_of(model, pre_tokenizer=pre_tokenizers.WhitespaceSplit())
    assert encoder.encode(["a </s> a", "b"]) == [[0, 1, 0], [2]]
    assert (encoder.special_tokens.total(), encoder.end_of_text_tokens) == (1, 1)


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel(ALPHABET | EOS, unk_token="[UNK]"),
        models.WordPiece(ALPHABET | EOS, unk_token="[UNK]"),
        models.Unigram([(token, -1.0) for token in [*ALPHABET, "</s>"]], None),
        models.BPE(ALPHABET | EOS, [], unk_token="[UNK]"),
    ],
    ids=["WordLevel", "WordPiece", "Unigram", "BPE"],
)
def test_a_model_without_a_usable_unknown_token_refuses_what_it_does_not_know(encoder_of, model):
    encoder = encoder_of(model, pre_tokenizer=pre_tokenizers.WhitespaceSplit())
    assert encoder.encode(["a b"])
    with pytest.raises(
        DataError, match=r"begins with 'xyz a'; use a byte-level tokenizer"
    ) as error:
        encoder.encode(["a b", "xyz a"])
    assert "unk" in str(error.value).lower()


@pytest.mark.parametrize(
    ("parts", "text", "is_dropped"),
    [
        ({}, "abc", False),
        ({}, "abécd", True),
        ({"pre_tokenizer": pre_tokenizers.WhitespaceSplit()}, "a\tb", False),  # as it is meant to
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}, "abc", False),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}, "aé", True),
        ({"normalizer": normalizers.Lowercase()}, "ABC", False),
        ({"normalizer": normalizers.StripAccents()}, "ABC", True),
    ],
)
def test_a_text_is_refused_if_characters_would_be_left_out(encoder_of, parts, text, is_dropped):
    encoder = encoder_of(models.BPE(ALPHABET, []), **parts)
    if not is_dropped:
        assert encoder.encode([text])
        return
    with pytest.raises(DataError, match=r"would leave out '.' \(U\+00..\).* no unknown token"):
        encoder.encode(["abc", text])


def test_bytes_replace_characters_only_if_all_are_in_the_vocabulary(encoder_of):
    some = ALPHABET | {"<0xC3>": 4}
    encoder = encoder_of(models.BPE(some, [], byte_fallback=True))
    with pytest.raises(DataError, match="would leave out 'é'"):
        encoder.encode(["é"])
    bytes_of_e = some | {"<0xA9>": 5}
    encoder = encoder_of(models.BPE(bytes_of_e, [], byte_fallback=True))
    assert encoder.encode(["aé"]) == [[0, 4, 5]]


def test_bytes_that_occur_in_no_text_need_not_be_in_a_vocabulary(encoder_of):
    """Those of GPT-NeoX are missing: its texts were looked through, character by character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = {"À", "Á", *map(chr, range(0xF5, 0x100))}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = {c: number for number, c in enumerate(set(alphabet) - unused)}
    assert encoder_of(models.BPE(vocabulary, []), pre_tokenizer=byte_level).can_join
    del vocabulary["é"]  # the first byte of U+9000 to U+9FFF
    encoder = encoder_of(models.BPE(vocabulary, []), pre_tokenizer=byte_level)
    assert not encoder.can_join
    with pytest.raises(DataError, match="would leave out '退'"):
        encoder.encode(["a退"])


def test_the_affixes_of_a_vocabulary_are_considered(encoder_of):
    model = models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>")
    assert encoder_of(model).encode(["ab"]) == [[0, 1]]


def test_dropout_is_refused(encoder_of):
    with pytest.raises(DataError, match=r"a BPE dropout of 0\.1: .* set model\.dropout to null"):
        encoder_of(models.BPE(ALPHABET, [], dropout=0.1))
    assert encoder_of(models.BPE(ALPHABET, [], dropout=0.0)).encode(["ab"]) == [[0, 1]]


def test_a_pattern_that_takes_too_long_is_an_error_and_no_panic(encoder_of, capfd):
    slow = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    encoder = encoder_of(models.BPE(ALPHABET, []), pre_tokenizer=slow)
    with pytest.raises(DataError, match=r"begins with 'aaa.* takes too long on it") as error:
        encoder.encode(["c", "a" * 60 + "b"])
    assert "retry-limit" in str(error.value)
    assert capfd.readouterr().err == ""
    assert encoder.encode(["c"]) == [[2]]


def test_what_is_written_while_a_pattern_is_used_is_not_lost(encoder_of, capfd, monkeypatch):
    encoder = encoder_of(
        models.BPE(ALPHABET, []), pre_tokenizer=pre_tokenizers.Split(Regex("a"), "isolated")
    )

    class Noisy:
        def encode_batch_fast(self, *_, **__):
            os.write(2, b"progress")
            return []

    encoder._encoder = Noisy()
    assert encoder.encode([]) == []
    assert capfd.readouterr().err == "progress"


def test_an_interrupt_stays_one(byte_level, monkeypatch):
    class Interrupted:
        def encode_batch_fast(self, *_, **__):
            raise KeyboardInterrupt

    byte_level._encoder = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        byte_level.encode(["a"])


def doubling(times, pattern="a", content="aa"):
    return normalizers.Sequence([normalizers.Replace(pattern, content)] * times)


@pytest.mark.parametrize(
    ("normalizer", "is_refused"),
    [
        (doubling(30), True),
        (doubling(30, "ab", "abab"), True),
        (doubling(20, Regex("[x-z]"), "xyz"), True),
        (doubling(12, Regex(""), "x"), True),
        (normalizers.Replace("e", "e" * 100), True),
        (normalizers.Replace("e", "e" * 10**6), True),
        (normalizers.Sequence([doubling(15), doubling(15)]), True),
        (doubling(5), False),
        (normalizers.Sequence([normalizers.Prepend("a" * 40)] * 40), False),  # once per text
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), False),
        # Each replaces another character.
        (normalizers.Sequence([normalizers.Replace(c, "<|newline|>") for c in "\n\t\r\v"]), False),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), False),
    ],
)
def test_a_normalizer_that_expands_without_end_is_refused(encoder_of, normalizer, is_refused):
    model = models.BPE(ALPHABET, [], unk_token="a")
    if not is_refused:
        encoder_of(model, normalizer=normalizer)
        return
    with pytest.raises(DataError, match=r"normalizer makes [\d,]+ characters or more of"):
        encoder_of(model, normalizer=normalizer)


def test_the_normalizer_of_sentencepiece_is_accepted():
    check_normalizer(json.loads('{"type": "Precompiled", "precompiled_charsmap": "AA=="}'))
