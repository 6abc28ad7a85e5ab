import pytest
import torch

from rewarm import errors
from rewarm.errors import (
    RecipeError,
    RewarmError,
    did_you_mean,
    escape_unprintable,
    hide_credentials,
    out_of_memory,
    printable,
)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("RewarmError", 1),
        ("RecipeError", 2),
        ("ScheduleError", 2),
        ("DataError", 3),
        ("CheckpointError", 3),
        ("Diverged", 4),
        ("Preempted", 75),
        ("PeerError", 1),
        ("LostPeerError", 1),
    ],
)
def test_each_error_has_the_documented_exit_code(name, code):
    kind = getattr(errors, name)
    assert issubclass(kind, RewarmError)
    assert kind.exit_code == code
    if name != "RewarmError":
        (line,) = (line for line in errors.__doc__.splitlines() if line.startswith(f"  {name} "))
        assert line.partition(" exit ")[2].split()[0] == str(code)


def test_a_recipe_error_has_one_line_for_each_problem():
    error = RecipeError(["a.yaml:1:1: first", "a.yaml:2:1: second"])
    assert str(error) == "a.yaml:1:1: first\na.yaml:2:1: second"
    assert error.problems == ["a.yaml:1:1: first", "a.yaml:2:1: second"]


def test_messages_contain_no_control_sequences():
    assert str(RewarmError("name \x1b[2J\nnext")) == "name \\x1b[2J\nnext"


@pytest.mark.parametrize(
    ("line", "escaped"),
    [
        ("a → b ×", "a → b ×"),
        ("\x1b[31m", r"\x1b[31m"),
        ("tab\tbell\x07", r"tab\tbell\x07"),
        ("\ud800", r"\ud800"),
        ("\u202e", r"\u202e"),  # right-to-left override
    ],
)
def test_characters_that_cannot_be_printed_are_escaped(line, escaped):
    assert escape_unprintable(line) == escaped


def test_long_lines_and_long_texts_are_shortened_in_the_middle():
    assert printable("x" * 1000) == "x" * 1000
    assert printable("x" * 700 + "y" * 400) == "x" * 600 + " [...] " + "y" * 300
    lines = [str(number) for number in range(100)]
    assert printable("\n".join(lines[:50])).split("\n") == lines[:50]
    assert printable("\n".join(lines)).split("\n") == [*lines[:48], "... and 51 more lines", "99"]


def test_the_most_similar_known_word_is_suggested():
    assert did_you_mean("rewram", ["constant", "rewarm"]) == "; did you mean 'rewarm'?"
    assert did_you_mean("zzz", ["constant", "rewarm"]) == ""
    assert did_you_mean("x", []) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/x: gone", "https://***@host/x: gone"),
        ("s3://key:sec/ret@bucket/x", "s3://***@bucket/x"),
        ("verify https:/me:secret@host", "verify https:/***@host"),  # as a Path shows it
        ("(got 'https://host/x?sig=secret&a=b')", "(got 'https://host/x?***')"),
        ("hf://datasets/me/pile@main/x", "hf://datasets/me/pile@main/x"),
        ("https://host:8080/pile@v1/0000?.tar", "https://host:8080/pile@v1/0000?.tar"),
    ],
)
def test_credentials_in_urls_are_not_shown(text, shown):
    assert str(RewarmError(text)) == shown
    assert hide_credentials(shown) == shown


def test_no_memory_left_on_a_cpu_is_reported_as_such():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**17, dtype=torch.uint8)
    message = out_of_memory(caught.value)
    assert message is not None
    assert message.startswith("out of memory: 100,000,000,000,000,000 bytes could not be allocated")
    assert out_of_memory(RuntimeError("anything else")) is None
