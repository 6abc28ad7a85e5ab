"""A `rewarm shard` that stops at an error, with finished shards."""

import pytest
from text_corpora import write_texts

from rewarm.data.sharding.shard_writer import write_shards
from rewarm.errors import DataError


def stop_at_a_bad_line(tmp_path, tokenizer, *, documents=100, name="text.jsonl", **options):
    """Writes the shards of a text whose last line is not JSON; returns the text and OUT.partial."""
    text = write_texts(tmp_path / name, "upstream", documents=documents)
    lines = text.read_text()
    text.write_text(lines + "{not JSON\n")
    with pytest.raises(DataError, match=rf"{name}:{documents + 1}: not a line of JSON") as error:
        write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800, **options)
    text.write_text(lines)
    return text, tmp_path / "out.partial", str(error.value)
