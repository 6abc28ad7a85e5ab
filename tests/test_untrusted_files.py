"""300 damaged or hostile checkpoints through every door, and 300 refusals; nothing of them runs.

The doors: `--resume` of a run, `model.base` with and without `optimizer.carry`, `rewarm eval`, and
the last two for a plain Hugging Face folder, which has no MANIFEST.json to vouch for its bytes.

Without a manifest some damage cannot be noticed by anyone, so none of it is among the 300: a bit of
a weight that leaves it finite, a rate or a list of ids in config.json that rewarm has no use for, a
number of heads that divides the width as well, names and versions in the tokenizer's settings. And
where the manifest was made to agree, what is possible but untrue (other weights, another place in
the data) is taken for true: a digest that lies beside its file is a proof against accidents only.
"""

import collections
import functools
import hashlib
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.training.loop import train

MODEL, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", "MANIFEST.json"
INDEX, PICKLED = "model.safetensors.index.json", "pytorch_model.bin"
HEAD, NORM = "embed_out.weight", "gpt_neox.final_layer_norm.weight"
MOMENT, SQUARE = f"exp_avg/{NORM}", f"exp_avg_sq/{NORM}"
FILES = (
    *("config.json", "generation_config.json", MODEL, OPTIMIZER, "progress.json", "recipe.yaml"),
    *("tokenizer.json", "tokenizer_config.json", MANIFEST),
)
OWN, PLAIN = ("resume", "base", "carry", "eval"), ("plain", "plain eval")

Damage = Callable[[Path, random.Random], object]


class Case(NamedTuple):
    """One damage, and the door that the damaged folder is carried in by."""

    kind: str
    what: str
    door: str
    damage: Damage
    agree: bool
    """Whether the manifest is made to agree with the damage, as someone who hides it would."""

    def __str__(self) -> str:
        return f"{self.door}-{self.kind}-{self.what}".replace(" ", "_")


# What damage is made of.


def rewrite(name: str, change: Callable[[bytes, random.Random], bytes]) -> Damage:
    """Changes the bytes of a file."""
    return lambda at, draw: (at / name).write_bytes(change((at / name).read_bytes(), draw))


def holds(name: str, data: bytes | str) -> Damage:
    """Puts other bytes into a file."""
    return rewrite(name, lambda *_: data.encode() if isinstance(data, str) else data)


def edit(name: str, **changes: object) -> Damage:
    """Sets values in a JSON object; a value of ... takes its key away."""

    def change(data: bytes, _draw: random.Random) -> bytes:
        kept = {k: v for k, v in (json.loads(data) | changes).items() if v is not ...}
        return json.dumps(kept).encode()

    return rewrite(name, change)


def flip(data: bytes, draw: random.Random) -> bytes:
    """Turns one bit of some byte over."""
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def tensors(name: str, **changes: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Rewrites tensors of a safetensors file; one that becomes None goes."""

    def change(at: Path, _draw: random.Random) -> None:
        held = load_file(at / name)
        for key, of in changes.items():
            tensor = of(held.get(key, torch.ones(3)))
            held = {k: v for k, v in held.items() if k != key}
            if tensor is not None:
                held[key] = tensor
        save_file(held, at / name)

    return change


def header(name: str, change: Callable[[dict], object], *, length: int | None = None) -> Damage:
    """Rewrites the header of a safetensors file, and what it says of its own length."""

    def damaged(data: bytes, _draw: random.Random) -> bytes:
        size = int.from_bytes(data[:8], "little")
        said = json.loads(data[8 : 8 + size])
        new = change(said)
        new = new if isinstance(new, bytes) else json.dumps(said).encode()
        return struct.pack("<Q", len(new) if length is None else length) + new + data[8 + size :]

    return rewrite(name, damaged)


def says(**of_head: object) -> Callable[[dict], object]:
    """Changes what a header says of its first tensor."""
    return lambda said: said[next(k for k in said if k != "__metadata__")].update(of_head)


def link(name: str, target: str) -> Damage:
    """Puts a symbolic link in a file's place."""

    def change(at: Path, _draw: random.Random) -> None:
        (at / name).unlink(missing_ok=True)
        (at / name).symlink_to(target)

    return change


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Puts something that is not a file in a file's place."""

    def change(at: Path, _draw: random.Random) -> None:
        (at / name).unlink(missing_ok=True)
        make(at / name)

    return change


def swap(one: str, other: str) -> Damage:
    """Exchanges two files."""

    def change(at: Path, _draw: random.Random) -> None:
        (at / one).rename(at / "between")
        (at / other).rename(at / one)
        (at / "between").rename(at / other)

    return change


class Payload:
    """Writes a file when it is unpickled by something that runs what it reads."""

    def __reduce__(self):
        return (open, ("ran", "w"))


PAYLOAD = pickle.dumps(Payload())


class Claim:
    """A tensor that says it is larger than what is stored."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.said = (offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        stored = torch.ones(4).untyped_storage()
        stored = torch.storage.TypedStorage(
            wrap_storage=stored, dtype=torch.float32, _internal=True
        )
        return (torch._utils._rebuild_tensor_v2, (stored, *self.said))


def saved(change: Callable[[dict], object]) -> Damage:
    """Saves something like the weights with torch.save, which pickles."""

    def damage(at: Path, _draw: random.Random) -> None:
        held = load_file(at / MODEL)
        new = change(held)
        (at / MODEL).unlink()
        torch.save(held if new is None else new, at / PICKLED)

    return damage


def pickled(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    """Saves the weights with torch.save, and changes the bytes."""

    def damage(at: Path, draw: random.Random) -> None:
        saved(lambda _: None)(at, draw)
        rewrite(PICKLED, change)(at, draw)

    return damage


def compressed(at: Path, draw: random.Random, *, claimed: int | None) -> None:
    """Compresses what torch.save never compresses, and may lie about what will come out."""
    saved(lambda _: None)(at, draw)
    with zipfile.ZipFile(at / PICKLED) as old:
        held = {one.filename: old.read(one) for one in old.infolist()}
    with zipfile.ZipFile(at / PICKLED, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in held.items():
            new.writestr(name, data)
            if claimed and name.endswith("data.pkl"):
                new.getinfo(name).file_size = claimed


def sharded(change: Callable[[dict[str, str]], object]) -> Damage:
    """Cuts the weights in two files and an index, and changes the index's weight_map."""

    def damage(at: Path, _draw: random.Random) -> None:
        held = load_file(at / MODEL)
        (at / MODEL).rename(at.parent / "outside.safetensors")
        names = sorted(held)
        files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, some in files.items():
            save_file({name: held[name] for name in some}, at / file)
        where = {name: file for file, some in files.items() for name in some}
        new = change(where)
        said = {"metadata": {}, "weight_map": where if new is None else new}
        (at / INDEX).write_text(json.dumps(said))

    return damage


def index_holds(data: bytes) -> Damage:
    """Puts other bytes into the index of sharded weights."""

    def damage(at: Path, draw: random.Random) -> None:
        sharded(lambda _: None)(at, draw)
        (at / INDEX).write_bytes(data)

    return damage


def sharded_pickle(at: Path, _draw: random.Random) -> None:
    """Weights in two pickles, one of them with a payload."""
    held = load_file(at / MODEL)
    (at / MODEL).unlink()
    torch.save(held, at / "a.bin")
    torch.save({"x": Payload()}, at / "b.bin")
    where = {**dict.fromkeys(held, "a.bin"), "x": "b.bin"}
    (at / f"{PICKLED}.index.json").write_text(json.dumps({"weight_map": where}))


def tokenizer_model(change: Callable[[dict], object]) -> Damage:
    """Changes the model inside a tokenizer.json."""

    def damaged(data: bytes, _draw: random.Random) -> bytes:
        said = json.loads(data)
        change(said["model"])
        return json.dumps(said).encode()

    return rewrite("tokenizer.json", damaged)


def flip_in_header(data: bytes, draw: random.Random) -> bytes:
    """Turns a bit over in what a safetensors header says of its tensors."""
    first, behind = data.index(HEAD.encode()), 8 + int.from_bytes(data[:8], "little")
    said = data[first:behind].rstrip()
    return data[:first] + flip(said, draw) + data[first + len(said) :]


def manifest(change: Callable[[dict], object]) -> Damage:
    """Changes the list of files of a manifest."""

    def damaged(data: bytes, _draw: random.Random) -> bytes:
        said = json.loads(data)
        new = change(said["files"])
        return json.dumps(said if new is None else new).encode()

    return rewrite(MANIFEST, damaged)


def names_outside(name: str) -> Damage:
    """Makes the manifest name a file that is there, outside of the checkpoint, with its digest."""

    def damage(at: Path, _draw: random.Random) -> None:
        data = (at / name).read_bytes() if os.path.isfile(at / name) else b""  # noqa: PTH113 - any name
        facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest(lambda files: files.update({name: facts}))(at, _draw)

    return damage


def agreeing(at: Path) -> None:
    """Makes the manifest say what lies in the folder now."""
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in at.iterdir()
        if path.is_file() and path.name != MANIFEST
    }
    (at / MANIFEST).write_text(json.dumps({"files": files}))


# The damages. Each of them has to be noticed.

DEEP = b"[" * 100_000 + b"]" * 100_000
NOT_AN_OBJECT = {
    "not JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "deep lists": DEEP,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nearly too deep": b'{"model_type":' + b"[" * 960 + b"]" * 960 + b"}",
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "a pickle": PAYLOAD,
    "100,000 digits": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
}
BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut in half": lambda data, _: data[: len(data) // 2],
    "cut by a byte": lambda data, _: data[:-1],
    "empty": lambda *_: b"",
    "a byte more": lambda data, _: data + b"\0",
}

CONFIG = {
    what: edit("config.json", **changes)
    for what, changes in {
        "other model": {"model_type": "llama"},
        "terminal escapes": {"model_type": "\x1b]0;owned\x07\x1b[2J"},
        "giant string": {"model_type": "x" * 5_000_000},
        "no width": {"hidden_size": ...},
        "width 0": {"hidden_size": 0},
        "negative width": {"hidden_size": -32},
        "width a float": {"hidden_size": 32.0},
        "width text": {"hidden_size": "32"},
        "width true": {"hidden_size": True},
        "width of 30 digits": {"hidden_size": 10**30},
        "width of 4,000 digits": {"hidden_size": 10**3999, "num_attention_heads": 1},
        "width for petabytes": {"hidden_size": 2**26},
        "a layer more": {"num_hidden_layers": 3},
        "a layer less": {"num_hidden_layers": 1},
        "a billion layers": {"num_hidden_layers": 10**9},
        "vocabulary for petabytes": {"vocab_size": 10**13},
        "vocabulary too small": {"vocab_size": 500},
        "positions for petabytes": {"max_position_embeddings": 10**13},
        "heads that do not divide": {"num_attention_heads": 3},
        "rotary NaN": {"rope_parameters": None, "rotary_pct": float("nan")},
        "rotary 2": {"rope_parameters": None, "rotary_pct": 2.0},
        "rope a list": {"rope_parameters": [1]},
        "rope of another kind": {"rope_parameters": {"rope_type": "yarn"}},
        "theta infinite": {"rope_parameters": None, "rotary_emb_base": float("inf")},
        "activation that runs": {"hidden_act": "__import__('os').system('touch ran')"},
        "activation a list": {"hidden_act": ["gelu"]},
        "inner width for petabytes": {"intermediate_size": 10**13},
        "eps 0": {"layer_norm_eps": 0.0},
        "no biases": {"attention_bias": False},
        "tied although it is not": {"tie_word_embeddings": True},
    }.items()
} | {
    "width twice": rewrite("config.json", lambda data, _: data[:-3] + b', "hidden_size": 32}'),
    "megabytes of zeros": lambda at, _: os.truncate(at / "config.json", 2**26),
    **{what: holds("config.json", data) for what, data in NOT_AN_OBJECT.items()},
}

WEIGHTS = {
    "missing": {HEAD: lambda _: None},
    "extra": {"extra": lambda t: t},
    "transposed": {HEAD: lambda t: t.T.contiguous()},
    "flat": {HEAD: lambda t: t.flatten()},
    "one row more": {HEAD: lambda t: torch.cat([t, t[:1]])},
    "of no size": {HEAD: lambda _: torch.empty(0)},
    "a scalar": {NORM: lambda _: torch.tensor(1.0)},
    "int64": {NORM: lambda t: t.long()},
    "int8": {HEAD: lambda t: t.to(torch.int8)},
    "bool": {NORM: lambda t: t.bool()},
    "complex": {NORM: lambda t: t.to(torch.complex64)},
    "fp8": {HEAD: lambda t: t.to(torch.float8_e4m3fn)},
    "NaN": {HEAD: lambda t: t.index_fill(0, torch.tensor([7]), torch.nan)},
    "infinite": {NORM: lambda t: t / 0},
    "minus infinity in bf16": {NORM: lambda t: (t / -0.0).bfloat16()},
    "too large for fp32": {NORM: lambda t: t.double() * 1e200},
}
MOMENTS = {
    "missing": {MOMENT: lambda _: None},
    "extra": {"exp_avg/extra": lambda t: t},
    "of another shape": {SQUARE: lambda t: t[:7]},
    "transposed": {f"exp_avg/{HEAD}": lambda t: t.T.contiguous()},
    "fp16": {MOMENT: lambda t: t.half()},
    "int32": {SQUARE: lambda t: t.int()},
    "NaN": {MOMENT: lambda t: t * torch.nan},
    "infinite": {SQUARE: lambda t: t + torch.inf},
    "negative squares": {SQUARE: lambda t: -t - 1},
    "no updates": {"updates": lambda _: None},
    "updates NaN": {"updates": lambda t: t * torch.nan},
    "updates negative": {"updates": lambda t: t - 10},
    "updates infinite": {"updates": lambda t: t / 0},
    "half an update": {"updates": lambda t: t + 0.5},
    "two counts of updates": {"updates": lambda t: torch.cat([t, t])},
}

LIES: dict[str, tuple[Callable[[dict], object], int | None]] = {
    "header of 2^60 bytes": (lambda _: None, 2**60),
    "header of 2^64 - 1 bytes": (lambda _: None, 2**64 - 1),
    "header of 90 MB": (lambda _: None, 90_000_000),
    "header of no bytes": (lambda _: None, 0),
    "header not JSON": (lambda _: b"{{{{", None),
    "header a list": (lambda _: b"[]", None),
    "header deep": (lambda _: DEEP, None),
    "overlapping": (says(data_offsets=[8, 16]), None),
    "negative offset": (says(data_offsets=[-4, 0]), None),
    "offsets turned round": (says(data_offsets=[65536, 0]), None),
    "beyond the end": (says(data_offsets=[0, 2**62], shape=[2**60]), None),
    "shape that overflows": (says(shape=[2**40, 2**40]), None),
    "shape for petabytes": (says(shape=[10**15]), None),
    "negative shape": (says(shape=[-512, -32]), None),
    "shape of floats": (says(shape=[512.0, 32.0]), None),
    "no such dtype": (says(dtype="OBJ"), None),
    "metadata of numbers": (lambda said: said.update(__metadata__={"a": 1}), None),
    "a tensor less": (lambda said: said.pop(HEAD, None) or said.pop(f"exp_avg/{HEAD}"), None),
}

PROGRESS = {
    what: edit("progress.json", **changes)
    for what, changes in {
        "step of another": {"step": 3},
        "step of 30 digits": {"step": 10**30},
        "step negative": {"step": -1},
        "step a float": {"step": 2.5},
        "step text": {"step": "2"},
        "step true": {"step": True},
        "no step": {"step": ...},
        "tokens of 30 digits": {"tokens": 10**30},
        "an unknown key": {"__class__": "os.system"},
        "blocks of other corpora": {"blocks": {"somewhere": 1}},
        "blocks a list": {"blocks": [1, 2]},
        "blocks negative": {"blocks": {"downstream": -1, "upstream": 3}},
        "blocks of 30 digits": {"blocks": {"downstream": 10**30, "upstream": 3}},
        "stream not hex": {"stream": "g" * 32},
        "stream giant": {"stream": "0" * 5_000_000},
        "baseline NaN": {"baseline": {"upstream": float("nan")}},
        "baseline infinite": {"baseline": {"upstream": float("inf")}},
        "corpora of another run": {"corpora": {}},
        "corpora deep": {"corpora": json.loads("[" * 200 + "]" * 200)},
        "schedule a list": {"schedule": [[]]},
        "guard a list": {"guard": [1]},
        "guard of words": {"guard": {"losses": ["__import__('os')"]}},
        "guard endless": {"guard": {"losses": [1.0] * 100_000}},
        "guard negative": {"guard": {"unfit": -1}},
        "guard of a gap that is none": {"guard": {"gap": {"rise": 7}}},
        "guard of another key": {"guard": {"__class__": "os.system"}},
    }.items()
} | {
    "step twice": rewrite("progress.json", lambda data, _: data[:-3] + b', "step": 2}'),
    "megabytes of zeros": lambda at, _: os.truncate(at / "progress.json", 2**26),
    **{what: holds("progress.json", data) for what, data in NOT_AN_OBJECT.items()},
}

ANCESTOR = {"name": "x", "directory": "x"}

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)
RECIPE = {
    what: holds("recipe.yaml", data)
    for what, data in {
        "alias bomb": BOMB,
        "merged bomb": "a: &a {b: 1}\nc: {<<: *a}\n",
        "object tag": "run: !!python/object/apply:os.system [touch ran]\n",
        "name tag": "run: !!python/name:os.system\n",
        "new tag": "run: !!python/object/new:subprocess.Popen [[touch, ran]]\n",
        "own tag": "run: !ran 1\n",
        "deep": "run: " + "[" * 10_000 + "]" * 10_000,
        "deep blocks": "".join(f"{' ' * n}a:\n" for n in range(400)),
        "giant": "run: " + "x" * 2_000_000,
        "a number of 5,000 digits": "seed: " + "9" * 5000,
        "a key twice": "run: a\nrun: b\n",
        "a key that is a list": "? [a]\n: b\n",
        "a list": "- run\n",
        "terminal escapes": 'run: x\nseed: "\\e]0;owned\\a"\n',
        "NUL": "run: \0\n",
        "not UTF-8": b"run: \xff\xfe\n",
        "a pickle": PAYLOAD,
        "another run's": "run: x\nseed: 7\n",
    }.items()
} | {"megabytes of zeros": lambda at, _: os.truncate(at / "recipe.yaml", 2**26)}

MANIFESTS = {
    "names a file beside": names_outside("../outside"),
    "names a file by its path": names_outside("/etc/passwd"),
    "names the folder": names_outside("."),
    "names the folder above": names_outside(".."),
    "names nothing": names_outside(""),
    "names a file below": names_outside("sub/file"),
    "a NUL in a name": names_outside("a\0b"),
    "half a surrogate in a name": names_outside("\ud800"),
    "terminal escapes in a name": names_outside("\x1b]0;owned\x07"),
    "a name of a megabyte": names_outside("x" * 1_000_000),
    "no files": manifest(lambda _: {}),
    "files a list": manifest(lambda files: {"files": list(files)}),
    "files null": manifest(lambda _: {"files": None}),
    "files empty": manifest(lambda _: {"files": {}}),
    "sizes null": manifest(lambda files: files["config.json"].update(bytes=None)),
    "sizes text": manifest(lambda files: files["config.json"].update(bytes="1")),
    "digest a list": manifest(lambda files: files["config.json"].update(sha256=[])),
    "digest upper case": manifest(
        lambda files: files[MODEL].update(sha256=files[MODEL]["sha256"].upper())
    ),
    "facts a list": manifest(lambda files: files.update({MODEL: [1, 2]})),
    **{
        f"without {name}": manifest(lambda files, name=name: files.pop(name) and None)
        for name in ("config.json", MODEL, OPTIMIZER, "progress.json", "recipe.yaml")
    },
    **{what: holds(MANIFEST, data) for what, data in NOT_AN_OBJECT.items()},
}

INDICES = {
    what: sharded(change)
    for what, change in {
        "a path upwards": lambda where: (
            {HEAD: "../outside.safetensors"} | where
            and dict.fromkeys(where, "../outside.safetensors")
        ),
        "an absolute path": lambda where: dict.fromkeys(where, "/etc/passwd"),
        "a file that is missing": lambda where: where.update({HEAD: "c.safetensors"}),
        "the folder": lambda where: where.update({HEAD: "."}),
        "the folder above": lambda where: where.update({HEAD: ".."}),
        "nothing": lambda where: where.update({HEAD: ""}),
        "a NUL": lambda where: where.update({HEAD: "a\0b"}),
        "terminal escapes": lambda where: where.update({HEAD: "\x1b]0;owned\x07"}),
        "a name of a megabyte": lambda where: where.update({HEAD: "x" * 1_000_000}),
        "a number": lambda where: where.update({HEAD: 7}),
        "a list": lambda where: where.update({HEAD: ["a.safetensors"]}),
        "a list of names": lambda where: list(where.values()),
        "half of the files": lambda where: dict.fromkeys(where, "a.safetensors"),
        "config.json": lambda where: where.update({HEAD: "config.json"}),
        "no file": lambda _: {},
    }.items()
} | {what: index_holds(data) for what, data in NOT_AN_OBJECT.items()}


def twice(at: Path, draw: random.Random) -> None:
    """Puts a tensor into both of two files, with other numbers."""
    sharded(lambda _: None)(at, draw)
    held = {name: load_file(at / name) for name in ("a.safetensors", "b.safetensors")}
    name = next(iter(held["a.safetensors"]))
    held["b.safetensors"][name] = held["a.safetensors"][name] + 1
    save_file(held["b.safetensors"], at / "b.safetensors")


INDICES["a tensor in two files"] = twice

PICKLES = {
    what: saved(change)
    for what, change in {
        "payload in it": lambda held: held.update({HEAD: Payload()}),
        "payload beside": lambda held: held.update(x={"deep": [Payload()]}),
        "payload alone": lambda _: [Payload(), torch.ones(100_000)],
        "a list": lambda held: list(held.values()),
        "a tensor": lambda held: held[HEAD],
        "names that are numbers": lambda held: dict(enumerate(held.values())),
        "no tensors": lambda held: dict.fromkeys(held, 1),
        "wrapped": lambda held: {"state_dict": held},
        "without data": lambda held: held.update({HEAD: torch.empty(512, 32, device="meta")}),
        "petabytes without data": lambda held: held.update(
            {HEAD: torch.empty(10**13, 32, device="meta")}
        ),
        "sparse": lambda held: held.update({HEAD: held[HEAD].to_sparse()}),
        "complex": lambda held: held.update({HEAD: held[HEAD].to(torch.complex64)}),
        "larger than stored": lambda held: held.update({HEAD: Claim((512, 32), (32, 1))}),
        "petabytes": lambda held: held.update({HEAD: Claim((10**13, 32), (32, 1))}),
        "petabytes of one number": lambda held: held.update({HEAD: Claim((10**13, 32), (0, 0))}),
        "before the storage": lambda held: held.update({HEAD: Claim((2,), (1,), -5)}),
        "NaN": lambda held: held.update({HEAD: held[HEAD] * torch.nan}),
    }.items()
} | {
    "a bare payload": pickled(lambda *_: PAYLOAD + bytes(500_000)),
    "cut in half": pickled(lambda data, _: data[: len(data) // 2]),
    "empty": pickled(lambda *_: b""),
    "text": pickled(lambda *_: b"version https://git-lfs.github.com/spec/v1\n"),
    "zeros": pickled(lambda *_: bytes(500_000)),
    "compressed": functools.partial(compressed, claimed=None),
    "compressed, for 64 GB": functools.partial(compressed, claimed=2**36),
    "in two files": sharded_pickle,
}

TOKENIZERS = {
    "a payload": holds("tokenizer.json", PAYLOAD),
    "a list": holds("tokenizer.json", b"[]"),
    "deep": holds("tokenizer.json", DEEP),
    "gigabytes of zeros": lambda at, _: os.truncate(at / "tokenizer.json", 2**31),
    "not a model": edit("tokenizer.json", model={"type": "Ran"}),
    "ids for gigabytes": tokenizer_model(lambda model: model["vocab"].update(x=2**31)),
    "ids for more": tokenizer_model(lambda model: model["vocab"].update(x=2**32 - 1)),
    "ids negative": tokenizer_model(lambda model: model["vocab"].update(x=-1)),
    "added ids for gigabytes": edit(
        "tokenizer.json", added_tokens=[{"id": 2**31, "content": "<|endoftext|>", "special": True}]
    ),
    "a prefix longer than its words": tokenizer_model(
        lambda model: model.update(continuing_subword_prefix="x" * 30)
    ),
    "merges of what is not there": tokenizer_model(
        lambda model: model["merges"].append(["no", "such"])
    ),
    "a word more": tokenizer_model(lambda model: model["vocab"].update(x=512)),
    "merges turned round": tokenizer_model(lambda model: model["merges"].reverse()),
    "no end of text": rewrite(
        "tokenizer.json", lambda data, _: data.replace(b"<|endoftext|>", b"<|ended|>")
    ),
    "deep settings": holds("tokenizer_config.json", DEEP),
    "settings not JSON": holds("tokenizer_config.json", b"{"),
}

LINKS = {
    "config.json to /etc/passwd": link("config.json", "/etc/passwd"),
    "config.json to zeros without end": link("config.json", "/dev/zero"),
    "config.json to itself": link("config.json", "config.json"),
    "config.json to nothing": link("config.json", "nowhere"),
    "config.json outside": link("config.json", "../outside.json"),
    "weights outside": link(MODEL, "../outside.safetensors"),
    "tokenizer.json to /etc/passwd": link("tokenizer.json", "/etc/passwd"),
    "tokenizer.json outside": link("tokenizer.json", "../tokenizer.json"),
    "merges.txt to a secret": link("merges.txt", "../outside"),
    "vocab.json to a secret": link("vocab.json", "../outside"),
    "config.json a pipe": instead("config.json", os.mkfifo),
    "tokenizer.json a pipe": instead("tokenizer.json", os.mkfifo),
    "weights a pipe": instead(MODEL, os.mkfifo),
    "config.json a folder": instead("config.json", Path.mkdir),
    "weights a folder": instead(MODEL, Path.mkdir),
}


def of_another_run(name: str) -> Damage:
    """Puts the file of another run's checkpoint in its place."""
    return lambda at, _: shutil.copyfile(at.parent / "other" / name, at / name)


WHOLE = {
    "weights and moments swapped": swap(MODEL, OPTIMIZER),
    "configurations swapped": swap("config.json", "generation_config.json"),
    "tokenizer and settings swapped": swap("tokenizer.json", "tokenizer_config.json"),
    **{
        f"{name} of another run": of_another_run(name)
        for name in (MODEL, OPTIMIZER, "progress.json", "recipe.yaml", MANIFEST)
    },
    **{f"{name} missing": instead(name, lambda _: None) for name in FILES if name != MANIFEST},
    "weights a link": link(MODEL, "../outside.safetensors"),
    "progress a pipe": instead("progress.json", os.mkfifo),
    "recipe a link to zeros": link("recipe.yaml", "/dev/zero"),
}
WITHOUT_MANIFEST = {
    **{f"weights {what}": rewrite(MODEL, change) for what, change in BYTES.items()},
    **{
        f"{name} {what}": rewrite(name, BYTES[what])
        for name in ("config.json", "tokenizer.json")
        for what in ("cut in half", "empty")
    },
    **{f"header flipped {n}": rewrite(MODEL, flip_in_header) for n in range(6)},
    "configuration and tokenizer swapped": swap("config.json", "tokenizer.json"),
    "configuration missing": instead("config.json", lambda _: None),
    "weights missing": instead(MODEL, lambda _: None),
    "weights a payload": holds(MODEL, PAYLOAD + bytes(500_000)),
}


def table(kind: str, damages: dict[str, Damage], doors: Sequence[str], agree: bool) -> list[Case]:
    """Gives every damage a door, in turn."""
    pairs = zip(damages.items(), itertools.cycle(doors), strict=False)
    return [Case(kind, what, door, damage, agree) for (what, damage), door in pairs]


CASES = [
    *table("bytes", {f"{name} {what}": rewrite(name, change) for name in FILES
                     for what, change in BYTES.items()
                     if (name, what) != (MANIFEST, "cut by a byte")}, OWN, False),  # a newline
    *table("whole files", WHOLE, OWN, False),
    *table("manifest", MANIFESTS, OWN, False),
    *table("weights", {w: tensors(MODEL, **c) for w, c in WEIGHTS.items()}, OWN, True),
    *table("moments", {w: tensors(OPTIMIZER, **c) for w, c in MOMENTS.items()},
           ("resume", "carry"), True),
    *table("lies", {w: header(OPTIMIZER, c, length=n) for w, (c, n) in LIES.items()},
           ("resume", "carry"), True),
    *table("progress", PROGRESS, ("resume",), True),
    *table("recipe", RECIPE, ("resume",), True),
    *table("config", CONFIG, (*OWN, *PLAIN), True),
    *table("no manifest", WITHOUT_MANIFEST, PLAIN, False),
    *table("lies", {w: header(MODEL, c, length=n) for w, (c, n) in LIES.items()}, PLAIN, False),
    *table("index", INDICES, PLAIN, False),
    *table("pickle", PICKLES, PLAIN, False),
    *table("tokenizer", TOKENIZERS, PLAIN, False),
    *table("links", LINKS, PLAIN, False),
]  # fmt: skip
FLIPS = {f"{name} {n}": rewrite(name, flip) for n in range(9) for name in FILES}
CASES += table("flipped bits", dict(itertools.islice(FLIPS.items(), 400 - len(CASES))), OWN, False)

SMALL = """\
run: {run}
seed: {seed}
tokens: 2048
model:
  architecture: {{layers: 2, hidden: 32, heads: 2, vocabulary: 512, positions: 64}}
data:
  context: 64
  lanes: 2
  train:
    downstream: {{shards: {corpora}/downstream/train, weight: 70%}}
    upstream: {{shards: {corpora}/upstream/train, weight: 30%}}
batch: {{tokens: 512, microbatch: 8}}
schedule: {{name: constant, lr: 1e-3}}
precision: fp32
every: {{log: 1, evaluate: null, save: 2}}
"""


class Honest(NamedTuple):
    """A run of 4 steps that was stopped after 2, and how it ends if it is not."""

    run: Path
    text: str
    other: Path
    """The last checkpoint of another run."""
    end: dict[str, bytes]


def learnt(checkpoint: Path) -> dict[str, bytes]:
    return {name: (checkpoint / name).read_bytes() for name in (MODEL, OPTIMIZER, "progress.json")}


@pytest.fixture(scope="session")
def honest(tmp_path_factory, corpora):
    root = tmp_path_factory.mktemp("honest")

    def trained(name: str, seed: int) -> tuple[str, Path]:
        text = SMALL.format(run=root / name, seed=seed, corpora=corpora)
        return text, train(validate_recipe(YamlDocument(text, "recipe.yaml")))

    _, other = trained("other", 6)
    text, last = trained("run", 5)
    end = learnt(last)
    shutil.rmtree(last)
    return Honest(root / "run", text, other, end)


@pytest.fixture
def no_room():
    """Takes back what is not needed: to reserve another gigabyte of memory fails."""
    status = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if status.exists():
        used = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def everything(root: Path) -> dict[str, tuple[int, int, int]]:
    """Returns kind, size and time of change of all that is in a folder; links are not followed."""
    return {
        str(path.relative_to(root)): (said.st_mode, 0, 0)
        if path.is_dir()
        else (said.st_mode, said.st_size, said.st_mtime_ns)
        for path in root.rglob("*")
        for said in [path.lstat()]
    }


def prepare(case: Case, honest: Honest, root: Path) -> Path:
    """Puts the damaged folder there, and around it what links and paths out of it may hit."""
    folder = root / "plain"
    if case.door in OWN:
        shutil.copytree(honest.run, root / "run")
        folder = last_checkpoint(root / "run")
    else:
        shutil.copytree(last_checkpoint(honest.run), folder)
        for name in (MANIFEST, OPTIMIZER, "progress.json", "recipe.yaml"):
            (folder / name).unlink()
    (folder.parent / "other").symlink_to(honest.other)
    (folder.parent / "outside").write_text("a secret")
    for name, beside in ((MODEL, "outside.safetensors"), ("config.json", "outside.json"),
                         ("tokenizer.json", "tokenizer.json")):  # fmt: skip
        shutil.copyfile(folder / name, folder.parent / beside)
    case.damage(folder, random.Random(str(case)))
    if case.agree and case.door in OWN:
        agreeing(folder)
    return folder


def words(case: Case, folder: Path, root: Path, corpora: Path) -> list[object]:
    """Returns the command that carries the folder in by the case's door."""
    if case.door.endswith("eval"):
        data = f"upstream={corpora}/upstream/val"
        return ["eval", folder, "--data", data, "--tokens", 640, "--context", 64]
    if case.door == "resume":
        return ["train", root / "recipe.yaml", "--resume", "--set", f"run={root}/run"]
    base = ["--set", f"run={root}/new", "--set", f"model={{base: {folder}}}"]
    carry = ["--set", "optimizer.carry=true"] if case.door == "carry" else []
    return ["train", root / "recipe.yaml", *base, *carry]


ADVICE = re.compile(
    r"(; |\n *)"
    r"(use another|fetch|name|put|take|resume with|shard with|wanted|write the shards again)"
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_refused(case, honest, corpora, command, tmp_path, monkeypatch, no_room):
    (tmp_path / "recipe.yaml").write_text(honest.text)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = prepare(case, honest, tmp_path)
    before, began = everything(tmp_path), time.monotonic()
    code, out, err = command(*words(case, folder, tmp_path, corpora))
    took = time.monotonic() - began
    changed = {name for name, _ in everything(tmp_path).items() ^ before.items()}
    assert changed <= {"new", "new/lock", "new/checkpoints", "run/lock"}
    assert code in (2, 3), err
    assert out == ""
    assert folder.name in err or f"{tmp_path}/run: " in err
    assert ADVICE.search(err), err
    assert len(err) < 3000
    assert "out of memory" not in err
    assert "MemoryError" not in err
    assert all(one.isprintable() or one == "\n" for one in err)
    assert took < 10


def test_there_are_many_and_no_two_alike():
    assert len({str(case) for case in CASES}) == 400


@pytest.mark.parametrize("door", [*OWN, *PLAIN])
def test_undamaged_it_is_taken(door, honest, corpora, command, tmp_path):
    """Through the same doors, so that what the cases show is the damage."""
    (tmp_path / "recipe.yaml").write_text(honest.text)
    case = Case("none", "none", door, lambda *_: None, agree=True)
    folder = prepare(case, honest, tmp_path)
    code, out, err = command(*words(case, folder, tmp_path, corpora))
    assert code == 0, err
    if door == "resume":
        assert learnt(Path(out.strip())) == honest.end


LOOKS = [
    *table("whole files", WHOLE, ("check", "lineage"), False),
    *table("progress", PROGRESS, ("lineage",), True),
    *table(
        "names",
        {
            "of a schedule": edit("progress.json", lineage=[{**ANCESTOR, "schedule": {"x": "y"}}]),
            "with escapes": edit("progress.json", lineage=[{**ANCESTOR, "name": "\x1b]0;o\x07"}]),
        },
        ("lineage",),
        True,
    ),
]


@pytest.mark.parametrize("case", LOOKS, ids=str)
def test_looking_at_it_is_safe(case, honest, command, tmp_path, no_room):
    """These doors read little of it, so they need not notice; but they end in their own words."""
    (tmp_path / "recipe.yaml").write_text(honest.text)
    folder = prepare(case._replace(door="base"), honest, tmp_path)
    where = ["lineage", folder]
    if case.door == "check":
        where = ["check", tmp_path / "recipe.yaml", "--set", f"model={{base: {folder}}}"]
    code, out, err = command(*where)
    assert code in (0, 3), err
    assert all(one.isprintable() or one == "\n" for one in out + err)
