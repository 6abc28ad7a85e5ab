"""Text for the quickstart, taken from the Python standard library, and a tokenizer for it.

The corpus `upstream` is English: the language reference and the docstrings. The corpus `downstream`
is the source code without those docstrings.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError
from rewarm.files import atomic_write

VOCABULARY_SIZE = 4096
_END_OF_TEXT = "<|endoftext|>"
_VALIDATION_SHARE = 0.05
_MIN_CHARACTERS = 200  # shorter documents are left out


def write_standard_library_text(folder: Path) -> dict[str, Path]:
    """Writes upstream.jsonl and downstream.jsonl, unless both exist; returns their paths by corpus.

    Raises:
        DataError: this Python has no source code of its standard library.
    """
    paths = {name: folder / f"{name}.jsonl" for name in ("upstream", "downstream")}
    if all(path.exists() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    for path, documents in zip(paths.values(), _standard_library(), strict=True):
        atomic_write(path, "".join(json.dumps({"text": text}) + "\n" for text in documents))
    return paths


def train_byte_level_bpe(out: Path, texts: Iterable[Path]) -> None:
    """Trains a tokenizer on the same number of characters of each text, and writes it to `out`.

    Does nothing if `out` exists.
    """
    if out.exists():
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(_sample_equally([_read_documents(path) for path in texts]), trainer)
    atomic_write(out, encoder.to_str(pretty=True))


def write_text_shards(text: Path, folder: Path, tokenizer: Path) -> None:
    """Writes 95% of a text as shards to folder/train and 5% to folder/val.

    Does nothing if `folder` exists.

    Raises:
        RewarmError: as `write_shards` and `load_tokenizer`.
    """
    if not folder.exists():
        write_shards([text], folder, load_tokenizer(str(tokenizer)), validation=_VALIDATION_SHARE)


def _standard_library() -> tuple[list[str], list[str]]:
    """Returns the documents in English, and those in Python, of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    english, code = list(_language_reference()), []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0] in ("site-packages", "pydoc_data") or "test" in parts or "tests" in parts:
            continue
        try:
            docstrings, bare_code = split_docstrings(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, SyntaxError, OSError):
            continue  # some files are invalid on purpose, such as lib2to3's test data
        english.append(docstrings)
        code.append(bare_code)
    english = [text for text in english if len(text) > _MIN_CHARACTERS]
    code = [text for text in code if len(text) > _MIN_CHARACTERS]
    if not (english and code):
        raise DataError(f"{root}: this Python has no source code of its standard library")
    return english, code


def _language_reference() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    yield from topics.values()


def split_docstrings(source: str) -> tuple[str, str]:
    """Returns the docstrings of a source file, and the source without them.

    Raises:
        SyntaxError: `source` is not valid Python.
    """
    docstrings, lines = [], source.splitlines(keepends=True)
    documented_nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented_nodes) and (text := ast.get_docstring(node)):
            docstrings.append(text)
            literal = node.body[0]
            for line in range(literal.lineno - 1, literal.end_lineno or literal.lineno):
                lines[line] = ""
    return "\n\n".join(docstrings), "".join(lines)


def _read_documents(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _sample_equally(corpora: list[list[str]]) -> list[str]:
    """Returns the first documents of each corpus, up to the characters of the smallest corpus."""
    size = min(sum(map(len, documents)) for documents in corpora)
    sample: list[str] = []
    for documents in corpora:
        remaining = size
        for text in documents:
            if remaining <= 0:
                break
            sample.append(text)
            remaining -= len(text)
    return sample
