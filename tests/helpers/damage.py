"""Ways to damage a checkpoint folder: a `Damage` takes the folder and a random source."""

import collections
import hashlib
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODEL, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", "MANIFEST.json"
MODEL_INDEX, PICKLED_MODEL = "model.safetensors.index.json", "pytorch_model.bin"
OUTPUT_LAYER = "embed_out.weight"

Damage = Callable[[Path, random.Random], object]
BytesChange = Callable[[bytes, random.Random], bytes]


# Bytes and files.


def change_bytes(name: str, change: BytesChange) -> Damage:
    return lambda folder, rng: (folder / name).write_bytes(
        change((folder / name).read_bytes(), rng)
    )


def replace_bytes(name: str, data: bytes | str) -> Damage:
    return change_bytes(name, lambda *_: data.encode() if isinstance(data, str) else data)


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def flip_bit_of_file_entry(data: bytes, rng: random.Random) -> bytes:
    """Flips a bit of a manifest, but not in what it says of the metrics, which come after."""
    end = data.index(b'"metrics"')
    return flip_bit(data[:end], rng) + data[end:]


def replace_with(name: str, make: Callable[[Path], object]) -> Damage:
    """Removes a file and calls `make` with its path, to make a pipe or a folder for instance."""

    def damage(folder: Path, _rng: random.Random) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def replace_with_link(name: str, target: str) -> Damage:
    return replace_with(name, lambda path: path.symlink_to(target))


def remove(name: str) -> Damage:
    return replace_with(name, lambda _: None)


def swap_files(first: str, second: str) -> Damage:
    def damage(folder: Path, _rng: random.Random) -> None:
        (folder / first).rename(folder / "temporary")
        (folder / second).rename(folder / first)
        (folder / "temporary").rename(folder / second)

    return damage


# JSON.


def edit_json(name: str, **changes: object) -> Damage:
    """Sets values in a JSON object; a value of ... removes its key."""

    def change(data: bytes, _rng: random.Random) -> bytes:
        edited = {k: v for k, v in (json.loads(data) | changes).items() if v is not ...}
        return json.dumps(edited).encode()

    return change_bytes(name, change)


def edit_tokenizer_model(change: Callable[[dict], object]) -> Damage:
    """Changes the model inside a tokenizer.json."""

    def change_data(data: bytes, _rng: random.Random) -> bytes:
        tokenizer = json.loads(data)
        change(tokenizer["model"])
        return json.dumps(tokenizer).encode()

    return change_bytes("tokenizer.json", change_data)


def edit_manifest_files(change: Callable[[dict], object]) -> Damage:
    """Changes the list of files in a manifest, or replaces the manifest with what is returned."""

    def change_data(data: bytes, _rng: random.Random) -> bytes:
        manifest = json.loads(data)
        replacement = change(manifest["files"])
        return json.dumps(manifest if replacement is None else replacement).encode()

    return change_bytes(MANIFEST, change_data)


def list_in_manifest(name: str) -> Damage:
    """Adds a file to the manifest by any name, with its true size and digest if it exists."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / name
        data = path.read_bytes() if os.path.isfile(path) else b""  # noqa: PTH113 - any name
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit_manifest_files(lambda files: files.update({name: entry}))(folder, rng)

    return damage


def rewrite_manifest(folder: Path) -> None:
    """Writes a manifest of the files that are in the folder now."""
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.iterdir()
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


# Safetensors.


def change_tensors(name: str, **changes: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Rewrites tensors of a safetensors file; one that becomes None is removed."""

    def damage(folder: Path, _rng: random.Random) -> None:
        tensors = load_file(folder / name)
        for key, change in changes.items():
            changed = change(tensors.get(key, torch.ones(3)))
            tensors = {k: v for k, v in tensors.items() if k != key}
            if changed is not None:
                tensors[key] = changed
        save_file(tensors, folder / name)

    return damage


def change_header(
    name: str, change: Callable[[dict], object], *, length: int | None = None
) -> Damage:
    """Rewrites the header of a safetensors file, and the length that is stored for it."""

    def change_data(data: bytes, _rng: random.Random) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        replacement = change(header)
        new = replacement if isinstance(replacement, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(new) if length is None else length) + new + data[8 + size :]

    return change_bytes(name, change_data)


def claim_of_first_tensor(**claims: object) -> Callable[[dict], object]:
    """Changes the entry of the first tensor in a header."""
    return lambda header: header[next(k for k in header if k != "__metadata__")].update(claims)


def flip_header_bit(data: bytes, rng: random.Random) -> bytes:
    """Flips a bit in the description of the tensors in a safetensors header."""
    start, end = data.index(OUTPUT_LAYER.encode()), 8 + int.from_bytes(data[:8], "little")
    header = data[start:end].rstrip()
    return data[:start] + flip_bit(header, rng) + data[start + len(header) :]


def shard_weights(change: Callable[[dict[str, str]], object]) -> Damage:
    """Splits the weights into two files and an index, and changes the index's weight_map."""

    def damage(folder: Path, _rng: random.Random) -> None:
        tensors = load_file(folder / MODEL)
        (folder / MODEL).rename(folder.parent / "outside.safetensors")
        names = sorted(tensors)
        files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, keys in files.items():
            save_file({key: tensors[key] for key in keys}, folder / file)
        weight_map = {key: file for file, keys in files.items() for key in keys}
        replacement = change(weight_map)
        weight_map = weight_map if replacement is None else replacement
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / MODEL_INDEX).write_text(json.dumps(index))

    return damage


def shard_weights_with_index(data: bytes) -> Damage:
    """Splits the weights into two files, with any bytes as the index."""

    def damage(folder: Path, rng: random.Random) -> None:
        shard_weights(lambda _: None)(folder, rng)
        (folder / MODEL_INDEX).write_bytes(data)

    return damage


def store_tensor_twice(folder: Path, rng: random.Random) -> None:
    """Stores a tensor in both of two files, with different values."""
    shard_weights(lambda _: None)(folder, rng)
    first, second = (load_file(folder / name) for name in ("a.safetensors", "b.safetensors"))
    name = next(iter(first))
    second[name] = first[name] + 1
    save_file(second, folder / "b.safetensors")


# Pickles.


class Payload:
    """Creates a file named "ran" when it is unpickled without protection."""

    def __reduce__(self):
        return (open, ("ran", "w"))


PAYLOAD = pickle.dumps(Payload())


class OversizedTensor:
    """Pickles as a tensor of any shape whose storage holds four numbers."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self._claims = (offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        storage = torch.ones(4).untyped_storage()
        storage = torch.storage.TypedStorage(
            wrap_storage=storage, dtype=torch.float32, _internal=True
        )
        return (torch._utils._rebuild_tensor_v2, (storage, *self._claims))


def pickle_weights(change: Callable[[dict], object]) -> Damage:
    """Saves the weights with torch.save, after changing or replacing the dict of tensors."""

    def damage(folder: Path, _rng: random.Random) -> None:
        tensors = load_file(folder / MODEL)
        replacement = change(tensors)
        (folder / MODEL).unlink()
        torch.save(tensors if replacement is None else replacement, folder / PICKLED_MODEL)

    return damage


def pickle_weights_and_change_bytes(change: BytesChange) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        pickle_weights(lambda _: None)(folder, rng)
        change_bytes(PICKLED_MODEL, change)(folder, rng)

    return damage


def pickle_weights_compressed(
    folder: Path, rng: random.Random, *, claimed_size: int | None
) -> None:
    """Compresses what torch.save never compresses; may claim another size after decompression."""
    pickle_weights(lambda _: None)(folder, rng)
    with zipfile.ZipFile(folder / PICKLED_MODEL) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(folder / PICKLED_MODEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
            if claimed_size and name.endswith("data.pkl"):
                archive.getinfo(name).file_size = claimed_size


def pickle_weights_in_two_files(folder: Path, _rng: random.Random) -> None:
    """Saves the weights in two pickles, one of them with a payload."""
    tensors = load_file(folder / MODEL)
    (folder / MODEL).unlink()
    torch.save(tensors, folder / "a.bin")
    torch.save({"x": Payload()}, folder / "b.bin")
    weight_map = {**dict.fromkeys(tensors, "a.bin"), "x": "b.bin"}
    index = json.dumps({"weight_map": weight_map})
    (folder / f"{PICKLED_MODEL}.index.json").write_text(index)
