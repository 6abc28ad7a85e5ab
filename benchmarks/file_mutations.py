"""Ways to mutate a text file: each takes a path and a random source, and changes the file.

Those of `ANY_FILE` work on all files, those of `JSON_LINES`, `JSON_FILE` and `YAML_FILE` on one
format. A number may become one of `WRONG_VALUES`, which are JSON, or what some parsers accept.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[Path, random.Random], object]

WRONG_VALUES = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1", "1.5", "0", "1", "2", "true", "null", '"x"'),
    *("1" + 30 * "0", "9007199254740993", "[]", "{}", '"1"', '"\\ud800"', '"\\u0000"', "-0.0"),
    *("1" * 5000, "[" * 2000 + "]" * 2000, '"<script>"', "1e-320"),
)
_RAW = "raw value"


# Bytes.


def flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def change_digit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = rng.choice([i for i, byte in enumerate(data) if chr(byte).isdigit()])
    data[at] = ord(rng.choice([digit for digit in "0123456789" if ord(digit) != data[at]]))
    path.write_bytes(data)


def delete_bytes(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    at = rng.randrange(len(data))
    path.write_bytes(data[:at] + data[at + rng.choice([1, 2, 20]) :])


def insert_bytes(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    inserted = rng.choice([b"\0", b"\xff", b"\n", b" ", b"9", b"\x1b[31m", b"\xef\xbb\xbf", b","])
    path.write_bytes(data[:at] + inserted + data[at:])


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero_tail(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    at = rng.randrange(len(data))
    path.write_bytes(data[:at].ljust(len(data), b"\0"))


def repeat_content(path: Path, _rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def add_byte_order_mark(path: Path, _rng: random.Random) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def use_windows_line_ends(path: Path, _rng: random.Random) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


# Files.


def empty(path: Path, _rng: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, _rng: random.Random) -> None:
    path.unlink()


def become_folder(path: Path, _rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: Path, _rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def become_link(path: Path, rng: random.Random) -> None:
    """Replaces the file by a link: to its own content elsewhere, to nothing, or to itself."""
    moved = path.with_name(f"moved-{path.name}")
    path.rename(moved)
    path.symlink_to(rng.choice([moved.name, "nowhere", path.name, "/dev/zero", "/dev/null"]))


def become_sibling(path: Path, rng: random.Random) -> None:
    """Copies the same file of another run or checkpoint below the folder `work` over it."""
    work = next(folder for folder in path.parents if folder.name == "work")
    others = work.rglob(path.name)
    different = sorted(str(other) for other in others if other.read_bytes() != path.read_bytes())
    path.write_bytes(Path(rng.choice(different)).read_bytes() if different else b"{}")


# Lines.


def change_lines(change: Callable[[list[bytes], random.Random], object]) -> Mutation:
    def mutate(path: Path, rng: random.Random) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        change(lines, rng)
        path.write_bytes(b"".join(lines))

    return mutate


def swap(lines: list[bytes], rng: random.Random) -> None:
    a, b = rng.sample(range(len(lines)), 2)
    lines[a], lines[b] = lines[b], lines[a]


def drop(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def drop_first(lines: list[bytes], _rng: random.Random) -> None:
    del lines[0]


def drop_some(lines: list[bytes], rng: random.Random) -> None:
    lines[:] = [line for line in lines if rng.random() < 0.5]


def duplicate(lines: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines.insert(at, lines[at])


def repeat_at_end(lines: list[bytes], rng: random.Random) -> None:
    lines.append(rng.choice(lines))


def shuffle(lines: list[bytes], rng: random.Random) -> None:
    rng.shuffle(lines)


def replace_line(lines: list[bytes], rng: random.Random) -> None:
    texts = [b"{}", b"[]", b"3", b'"x"', b"null", b"", b'{"kind": "train"}', b"[" * 5000]
    lines[rng.randrange(len(lines))] = rng.choice(texts) + b"\n"


# Values in JSON.


def _leaves(data: Any) -> list[tuple[Any, Any]]:
    """Returns every container with the key or index of each of its values that is no container."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    containers_and_keys = []
    for key, value in items:
        if isinstance(value, dict | list):
            containers_and_keys += _leaves(value)
        containers_and_keys.append((data, key))
    return containers_and_keys


def edit_value(text: str, rng: random.Random) -> str:
    """Returns a JSON document with a random value replaced."""
    data = json.loads(text)
    container, key = rng.choice(_leaves(data))
    container[key] = _RAW
    return json.dumps(data).replace(json.dumps(_RAW), rng.choice(WRONG_VALUES))


def change_number(text: str, rng: random.Random) -> str:
    """Returns a JSON document with a random number changed to another plausible one."""
    data = json.loads(text)
    numbers = [
        (container, key) for container, key in _leaves(data) if type(container[key]) in (int, float)
    ]
    if not numbers:
        return edit_value(text, rng)
    container, key = rng.choice(numbers)
    value = container[key]
    container[key] = rng.choice([value + 1, value * 10, -value, value - 1, value / 2])
    return json.dumps(data)


def rename_key(text: str, rng: random.Random) -> str:
    data = json.loads(text)
    keys = [(container, key) for container, key in _leaves(data) if isinstance(container, dict)]
    container, key = rng.choice(keys)
    renamed = rng.choice([key + "s", key.upper(), "", "x", key[:-1], "\ud800", "step", "loss"])
    items = [(renamed if name == key else name, value) for name, value in container.items()]
    container.clear()
    container.update(items)
    return json.dumps(data)


def remove_key(text: str, rng: random.Random) -> str:
    data = json.loads(text)
    container, key = rng.choice(_leaves(data))
    del container[key]
    return json.dumps(data)


def add_key(text: str, rng: random.Random) -> str:
    data = json.loads(text)
    data[rng.choice(["x", "upstream/loss", "files", "loss", "y/loss", "baseline"])] = 1.5
    return json.dumps(data)


def repeat_key(text: str, rng: random.Random) -> str:
    data = json.loads(text)
    key = rng.choice(sorted(data))
    return json.dumps(data)[:-1] + f", {json.dumps(key)}: {rng.choice(WRONG_VALUES)}}}"


EDITS = (edit_value, change_number, rename_key, remove_key, add_key, repeat_key)


def in_file(edit: Callable[[str, random.Random], str]) -> Mutation:
    return lambda path, rng: path.write_text(edit(path.read_text(), rng) + "\n")


def in_line(edit: Callable[[str, random.Random], str]) -> Mutation:
    def change(lines: list[bytes], rng: random.Random) -> None:
        at = rng.randrange(len(lines))
        lines[at] = edit(lines[at].decode(), rng).encode() + b"\n"

    return change_lines(change)


def step_of_another_line(lines: list[bytes], rng: random.Random) -> None:
    target, source = rng.sample(range(len(lines)), 2)
    data, other = json.loads(lines[target]), json.loads(lines[source])
    lines[target] = json.dumps(data | {"step": other.get("step", 0)}).encode() + b"\n"


def kind_of_another_line(lines: list[bytes], rng: random.Random) -> None:
    target, source = rng.sample(range(len(lines)), 2)
    data, other = json.loads(lines[target]), json.loads(lines[source])
    lines[target] = json.dumps(data | {"kind": other["kind"]}).encode() + b"\n"


# Values in YAML.


def edit_setting(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines(keepends=True)
    settings = [i for i, line in enumerate(lines) if re.search(r": \S", line)]
    at = rng.choice(settings)
    values = [*WRONG_VALUES[:18], "&a [*a]", "!!python/name:os.system", "*x", "1e-1", "!x y", "~"]
    lines[at] = lines[at].partition(": ")[0] + f": {rng.choice(values)}\n"
    path.write_text("".join(lines))


def rename_setting(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = lines[at].replace(":", rng.choice(["s:", "", "::", ": :", ":\t"]), 1)
    path.write_text("".join(lines))


ANY_FILE: dict[str, Mutation] = {
    function.__name__.replace("_", " "): function
    for function in (
        *(flip_bit, flip_bit, change_digit, delete_bytes, insert_bytes, truncate, zero_tail),
        *(repeat_content, add_byte_order_mark, use_windows_line_ends, empty, delete),
        *(become_folder, become_pipe, become_link, become_sibling),
    )
}
_LINES: dict[str, Mutation] = {
    f"{change.__name__.replace('_', ' ')} (lines)": change_lines(change)
    for change in (swap, drop, drop_first, drop_some, duplicate, repeat_at_end, shuffle)
}
JSON_LINES: dict[str, Mutation] = {
    **ANY_FILE,
    **_LINES,
    "replace line": change_lines(replace_line),
    "step of another line": change_lines(step_of_another_line),
    "kind of another line": change_lines(kind_of_another_line),
    **{f"{edit.__name__.replace('_', ' ')} in a line": in_line(edit) for edit in EDITS},
}
JSON_FILE: dict[str, Mutation] = {
    **ANY_FILE,
    **_LINES,
    **{edit.__name__.replace("_", " "): in_file(edit) for edit in EDITS},
}
YAML_FILE: dict[str, Mutation] = {
    **ANY_FILE,
    **_LINES,
    "edit setting": edit_setting,
    "rename setting": rename_setting,
}
