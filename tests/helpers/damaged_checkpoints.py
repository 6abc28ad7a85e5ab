"""400 ways to damage a checkpoint that have to be refused, and how each damaged folder is used.

The uses: `--resume` of a run, `model.base` with and without `optimizer.carry`, `rewarm eval`; and
`model.base` and `rewarm eval` of a plain Hugging Face folder, which has no MANIFEST.json.

Some damage cannot be detected without a manifest, so it is not listed: a flipped bit of a weight
that stays finite; a rate or a list of ids in config.json that rewarm does not use; a number of
heads that divides the width as well; names and versions in the tokenizer's settings. What the
manifest says of the metrics is checked by the uses that read them, which are not all of these. And
where the manifest was rewritten to match, values that are possible but wrong (other weights,
another data position) are accepted: a digest beside its file protects against accidents only.
"""

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from damage import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    OUTPUT_LAYER,
    PAYLOAD,
    BytesChange,
    Damage,
    OversizedTensor,
    Payload,
    change_bytes,
    change_header,
    change_tensors,
    claim_of_first_tensor,
    edit_json,
    edit_manifest_files,
    edit_tokenizer_model,
    flip_bit,
    flip_bit_of_file_entry,
    flip_header_bit,
    list_in_manifest,
    pickle_weights,
    pickle_weights_and_change_bytes,
    pickle_weights_compressed,
    pickle_weights_in_two_files,
    remove,
    replace_bytes,
    replace_with,
    replace_with_link,
    shard_weights,
    shard_weights_with_index,
    store_tensor_twice,
    swap_files,
)

FINAL_NORM = "gpt_neox.final_layer_norm.weight"
EXP_AVG, EXP_AVG_SQ = f"exp_avg/{FINAL_NORM}", f"exp_avg_sq/{FINAL_NORM}"
FILES = (
    *("config.json", "generation_config.json", MODEL, OPTIMIZER, "progress.json", "recipe.yaml"),
    *("tokenizer.json", "tokenizer_config.json", MANIFEST),
)
RUN_USES = ("resume", "base", "carry", "eval")
"""Uses of a checkpoint in a run directory."""
FOLDER_USES = ("folder base", "folder eval")
"""Uses of a plain Hugging Face folder."""


class DamageCase(NamedTuple):
    """One damage, and how the damaged folder is used."""

    file_kind: str
    damage_name: str
    use: str
    damage: Damage
    fix_manifest: bool
    """Whether the manifest is rewritten to match, as someone would who hides the damage."""

    def __str__(self) -> str:
        return f"{self.use}-{self.file_kind}-{self.damage_name}".replace(" ", "_")


# The damages. Each of them has to be noticed.

DEEPLY_NESTED = b"[" * 100_000 + b"]" * 100_000
INVALID_JSON = {
    "not JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "deeply nested lists": DEEPLY_NESTED,
    "deeply nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "almost too deep for the parser": b'{"model_type":' + b"[" * 960 + b"]" * 960 + b"}",
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "a pickle": PAYLOAD,
    "100,000 digits": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
}
BYTE_DAMAGES: dict[str, BytesChange] = {
    "truncated to half": lambda data, _: data[: len(data) // 2],
    "one byte short": lambda data, _: data[:-1],
    "empty": lambda *_: b"",
    "one byte too many": lambda data, _: data + b"\0",
}

CONFIG_DAMAGES = {
    name: edit_json("config.json", **changes)
    for name, changes in {
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
        "activation is code": {"hidden_act": "__import__('os').system('touch ran')"},
        "activation a list": {"hidden_act": ["gelu"]},
        "inner width for petabytes": {"intermediate_size": 10**13},
        "eps 0": {"layer_norm_eps": 0.0},
        "no biases": {"attention_bias": False},
        "tied but weights are not": {"tie_word_embeddings": True},
    }.items()
} | {
    "duplicate width": change_bytes(
        "config.json", lambda data, _: data[:-3] + b', "hidden_size": 32}'
    ),
    "megabytes of zeros": lambda folder, _: os.truncate(folder / "config.json", 2**26),
    **{name: replace_bytes("config.json", data) for name, data in INVALID_JSON.items()},
}

WEIGHT_DAMAGES = {
    "missing": {OUTPUT_LAYER: lambda _: None},
    "extra": {"extra": lambda t: t},
    "transposed": {OUTPUT_LAYER: lambda t: t.T.contiguous()},
    "flattened": {OUTPUT_LAYER: lambda t: t.flatten()},
    "one row more": {OUTPUT_LAYER: lambda t: torch.cat([t, t[:1]])},
    "empty tensor": {OUTPUT_LAYER: lambda _: torch.empty(0)},
    "a scalar": {FINAL_NORM: lambda _: torch.tensor(1.0)},
    "int64": {FINAL_NORM: lambda t: t.long()},
    "int8": {OUTPUT_LAYER: lambda t: t.to(torch.int8)},
    "bool": {FINAL_NORM: lambda t: t.bool()},
    "complex": {FINAL_NORM: lambda t: t.to(torch.complex64)},
    "fp8": {OUTPUT_LAYER: lambda t: t.to(torch.float8_e4m3fn)},
    "NaN": {OUTPUT_LAYER: lambda t: t.index_fill(0, torch.tensor([7]), torch.nan)},
    "infinite": {FINAL_NORM: lambda t: t / 0},
    "minus infinity in bf16": {FINAL_NORM: lambda t: (t / -0.0).bfloat16()},
    "too large for fp32": {FINAL_NORM: lambda t: t.double() * 1e200},
}
OPTIMIZER_DAMAGES = {
    "missing": {EXP_AVG: lambda _: None},
    "extra": {"exp_avg/extra": lambda t: t},
    "of another shape": {EXP_AVG_SQ: lambda t: t[:7]},
    "transposed": {f"exp_avg/{OUTPUT_LAYER}": lambda t: t.T.contiguous()},
    "fp16": {EXP_AVG: lambda t: t.half()},
    "int32": {EXP_AVG_SQ: lambda t: t.int()},
    "NaN": {EXP_AVG: lambda t: t * torch.nan},
    "infinite": {EXP_AVG_SQ: lambda t: t + torch.inf},
    "negative squares": {EXP_AVG_SQ: lambda t: -t - 1},
    "no updates": {"updates": lambda _: None},
    "updates NaN": {"updates": lambda t: t * torch.nan},
    "updates negative": {"updates": lambda t: t - 10},
    "updates infinite": {"updates": lambda t: t / 0},
    "updates not whole": {"updates": lambda t: t + 0.5},
    "two update counts": {"updates": lambda t: torch.cat([t, t])},
}

HEADER_CHANGES: dict[str, tuple[Callable[[dict], object], int | None]] = {
    "header of 2^60 bytes": (lambda _: None, 2**60),
    "header of 2^64 - 1 bytes": (lambda _: None, 2**64 - 1),
    "header of 90 MB": (lambda _: None, 90_000_000),
    "header of 0 bytes": (lambda _: None, 0),
    "header not JSON": (lambda _: b"{{{{", None),
    "header a list": (lambda _: b"[]", None),
    "header nested deeply": (lambda _: DEEPLY_NESTED, None),
    "overlapping": (claim_of_first_tensor(data_offsets=[8, 16]), None),
    "negative offset": (claim_of_first_tensor(data_offsets=[-4, 0]), None),
    "offsets reversed": (claim_of_first_tensor(data_offsets=[65536, 0]), None),
    "beyond the end": (claim_of_first_tensor(data_offsets=[0, 2**62], shape=[2**60]), None),
    "shape that overflows": (claim_of_first_tensor(shape=[2**40, 2**40]), None),
    "shape for petabytes": (claim_of_first_tensor(shape=[10**15]), None),
    "negative shape": (claim_of_first_tensor(shape=[-512, -32]), None),
    "shape of floats": (claim_of_first_tensor(shape=[512.0, 32.0]), None),
    "no such dtype": (claim_of_first_tensor(dtype="OBJ"), None),
    "metadata of numbers": (lambda header: header.update(__metadata__={"a": 1}), None),
    "one tensor too few": (
        lambda header: header.pop(OUTPUT_LAYER, None) or header.pop(f"exp_avg/{OUTPUT_LAYER}"),
        None,
    ),
}


def header_damages(file: str) -> dict[str, Damage]:
    return {
        name: change_header(file, change, length=length)
        for name, (change, length) in HEADER_CHANGES.items()
    }


PROGRESS_DAMAGES = {
    name: edit_json("progress.json", **changes)
    for name, changes in {
        "step of another checkpoint": {"step": 3},
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
        "corpora nested deeply": {"corpora": json.loads("[" * 200 + "]" * 200)},
        "schedule a list": {"schedule": [[]]},
        "guard a list": {"guard": [1]},
        "guard of strings": {"guard": {"losses": ["__import__('os')"]}},
        "guard too long": {"guard": {"losses": [1.0] * 100_000}},
        "guard negative": {"guard": {"unfit": -1}},
        "guard with an invalid gap": {"guard": {"gap": {"rise": 7}}},
        "guard with an unknown key": {"guard": {"__class__": "os.system"}},
    }.items()
} | {
    "duplicate step": change_bytes("progress.json", lambda data, _: data[:-3] + b', "step": 2}'),
    "megabytes of zeros": lambda folder, _: os.truncate(folder / "progress.json", 2**26),
    **{name: replace_bytes("progress.json", data) for name, data in INVALID_JSON.items()},
}

ANCESTOR = {"name": "x", "directory": "x"}

ALIAS_BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)
RECIPE_DAMAGES = {
    name: replace_bytes("recipe.yaml", data)
    for name, data in {
        "alias bomb": ALIAS_BOMB,
        "merged bomb": "a: &a {b: 1}\nc: {<<: *a}\n",
        "object tag": "run: !!python/object/apply:os.system [touch ran]\n",
        "name tag": "run: !!python/name:os.system\n",
        "new tag": "run: !!python/object/new:subprocess.Popen [[touch, ran]]\n",
        "custom tag": "run: !ran 1\n",
        "nested deeply": "run: " + "[" * 10_000 + "]" * 10_000,
        "blocks nested deeply": "".join(f"{' ' * n}a:\n" for n in range(400)),
        "giant": "run: " + "x" * 2_000_000,
        "a number of 5,000 digits": "seed: " + "9" * 5000,
        "duplicate key": "run: a\nrun: b\n",
        "a key that is a list": "? [a]\n: b\n",
        "a list": "- run\n",
        "terminal escapes": 'run: x\nseed: "\\e]0;owned\\a"\n',
        "NUL": "run: \0\n",
        "not UTF-8": b"run: \xff\xfe\n",
        "a pickle": PAYLOAD,
        "another run's": "run: x\nseed: 7\n",
    }.items()
} | {"megabytes of zeros": lambda folder, _: os.truncate(folder / "recipe.yaml", 2**26)}

MANIFEST_DAMAGES = {
    "lists a file outside": list_in_manifest("../outside"),
    "lists a file by absolute path": list_in_manifest("/etc/passwd"),
    "lists the folder itself": list_in_manifest("."),
    "lists the parent folder": list_in_manifest(".."),
    "lists an empty name": list_in_manifest(""),
    "lists a file in a subfolder": list_in_manifest("sub/file"),
    "a NUL in a name": list_in_manifest("a\0b"),
    "a lone surrogate in a name": list_in_manifest("\ud800"),
    "terminal escapes in a name": list_in_manifest("\x1b]0;owned\x07"),
    "a name of a megabyte": list_in_manifest("x" * 1_000_000),
    "no files": edit_manifest_files(lambda _: {}),
    "files a list": edit_manifest_files(lambda files: {"files": list(files)}),
    "files null": edit_manifest_files(lambda _: {"files": None}),
    "files empty": edit_manifest_files(lambda _: {"files": {}}),
    "sizes null": edit_manifest_files(lambda files: files["config.json"].update(bytes=None)),
    "sizes text": edit_manifest_files(lambda files: files["config.json"].update(bytes="1")),
    "digest a list": edit_manifest_files(lambda files: files["config.json"].update(sha256=[])),
    "digest upper case": edit_manifest_files(
        lambda files: files[MODEL].update(sha256=files[MODEL]["sha256"].upper())
    ),
    "entry a list": edit_manifest_files(lambda files: files.update({MODEL: [1, 2]})),
    **{
        f"without {name}": edit_manifest_files(lambda files, name=name: files.pop(name) and None)
        for name in ("config.json", MODEL, OPTIMIZER, "progress.json", "recipe.yaml")
    },
    **{name: replace_bytes(MANIFEST, data) for name, data in INVALID_JSON.items()},
}

INDEX_DAMAGES = {
    name: shard_weights(change)
    for name, change in {
        "a relative path": lambda weight_map: (
            {OUTPUT_LAYER: "../outside.safetensors"} | weight_map
            and dict.fromkeys(weight_map, "../outside.safetensors")
        ),
        "an absolute path": lambda weight_map: dict.fromkeys(weight_map, "/etc/passwd"),
        "a file that is missing": lambda weight_map: weight_map.update(
            {OUTPUT_LAYER: "c.safetensors"}
        ),
        "the folder itself": lambda weight_map: weight_map.update({OUTPUT_LAYER: "."}),
        "the parent folder": lambda weight_map: weight_map.update({OUTPUT_LAYER: ".."}),
        "an empty name": lambda weight_map: weight_map.update({OUTPUT_LAYER: ""}),
        "a NUL": lambda weight_map: weight_map.update({OUTPUT_LAYER: "a\0b"}),
        "terminal escapes": lambda weight_map: weight_map.update(
            {OUTPUT_LAYER: "\x1b]0;owned\x07"}
        ),
        "a name of a megabyte": lambda weight_map: weight_map.update(
            {OUTPUT_LAYER: "x" * 1_000_000}
        ),
        "a number": lambda weight_map: weight_map.update({OUTPUT_LAYER: 7}),
        "a list": lambda weight_map: weight_map.update({OUTPUT_LAYER: ["a.safetensors"]}),
        "a list of names": lambda weight_map: list(weight_map.values()),
        "only one of the files": lambda weight_map: dict.fromkeys(weight_map, "a.safetensors"),
        "config.json": lambda weight_map: weight_map.update({OUTPUT_LAYER: "config.json"}),
        "no files": lambda _: {},
    }.items()
} | {
    **{name: shard_weights_with_index(data) for name, data in INVALID_JSON.items()},
    "a tensor in two files": store_tensor_twice,
}


PICKLE_DAMAGES = {
    name: pickle_weights(change)
    for name, change in {
        "payload in it": lambda tensors: tensors.update({OUTPUT_LAYER: Payload()}),
        "payload beside": lambda tensors: tensors.update(x={"nested deeply": [Payload()]}),
        "payload alone": lambda _: [Payload(), torch.ones(100_000)],
        "a list": lambda tensors: list(tensors.values()),
        "a tensor": lambda tensors: tensors[OUTPUT_LAYER],
        "names that are numbers": lambda tensors: dict(enumerate(tensors.values())),
        "no tensors": lambda tensors: dict.fromkeys(tensors, 1),
        "wrapped": lambda tensors: {"state_dict": tensors},
        "without data": lambda tensors: tensors.update(
            {OUTPUT_LAYER: torch.empty(512, 32, device="meta")}
        ),
        "petabytes without data": lambda tensors: tensors.update(
            {OUTPUT_LAYER: torch.empty(10**13, 32, device="meta")}
        ),
        "sparse": lambda tensors: tensors.update({OUTPUT_LAYER: tensors[OUTPUT_LAYER].to_sparse()}),
        "complex": lambda tensors: tensors.update(
            {OUTPUT_LAYER: tensors[OUTPUT_LAYER].to(torch.complex64)}
        ),
        "larger than stored": lambda tensors: tensors.update(
            {OUTPUT_LAYER: OversizedTensor((512, 32), (32, 1))}
        ),
        "petabytes": lambda tensors: tensors.update(
            {OUTPUT_LAYER: OversizedTensor((10**13, 32), (32, 1))}
        ),
        "petabytes of one repeated value": lambda tensors: tensors.update(
            {OUTPUT_LAYER: OversizedTensor((10**13, 32), (0, 0))}
        ),
        "before the storage": lambda tensors: tensors.update(
            {OUTPUT_LAYER: OversizedTensor((2,), (1,), -5)}
        ),
        "NaN": lambda tensors: tensors.update({OUTPUT_LAYER: tensors[OUTPUT_LAYER] * torch.nan}),
    }.items()
} | {
    "a bare payload": pickle_weights_and_change_bytes(lambda *_: PAYLOAD + bytes(500_000)),
    "truncated to half": pickle_weights_and_change_bytes(lambda data, _: data[: len(data) // 2]),
    "empty": pickle_weights_and_change_bytes(lambda *_: b""),
    "text": pickle_weights_and_change_bytes(
        lambda *_: b"version https://git-lfs.github.com/spec/v1\n"
    ),
    "zeros": pickle_weights_and_change_bytes(lambda *_: bytes(500_000)),
    "compressed": functools.partial(pickle_weights_compressed, claimed_size=None),
    "compressed, for 64 GB": functools.partial(pickle_weights_compressed, claimed_size=2**36),
    "in two files": pickle_weights_in_two_files,
}

TOKENIZER_DAMAGES = {
    "a payload": replace_bytes("tokenizer.json", PAYLOAD),
    "a list": replace_bytes("tokenizer.json", b"[]"),
    "nested deeply": replace_bytes("tokenizer.json", DEEPLY_NESTED),
    "gigabytes of zeros": lambda folder, _: os.truncate(folder / "tokenizer.json", 2**31),
    "not a model": edit_json("tokenizer.json", model={"type": "Ran"}),
    "ids for gigabytes": edit_tokenizer_model(lambda model: model["vocab"].update(x=2**31)),
    "ids for more gigabytes": edit_tokenizer_model(
        lambda model: model["vocab"].update(x=2**32 - 1)
    ),
    "ids negative": edit_tokenizer_model(lambda model: model["vocab"].update(x=-1)),
    "added ids for gigabytes": edit_json(
        "tokenizer.json", added_tokens=[{"id": 2**31, "content": "<|endoftext|>", "special": True}]
    ),
    "a prefix longer than its tokens": edit_tokenizer_model(
        lambda model: model.update(continuing_subword_prefix="x" * 30)
    ),
    "merges of unknown tokens": edit_tokenizer_model(
        lambda model: model["merges"].append(["no", "such"])
    ),
    "one token too many": edit_tokenizer_model(lambda model: model["vocab"].update(x=512)),
    "merges reversed": edit_tokenizer_model(lambda model: model["merges"].reverse()),
    "no end of text": change_bytes(
        "tokenizer.json", lambda data, _: data.replace(b"<|endoftext|>", b"<|ended|>")
    ),
    "settings nested deeply": replace_bytes("tokenizer_config.json", DEEPLY_NESTED),
    "settings not JSON": replace_bytes("tokenizer_config.json", b"{"),
}

LINK_DAMAGES = {
    "config.json to /etc/passwd": replace_with_link("config.json", "/etc/passwd"),
    "config.json to endless zeros": replace_with_link("config.json", "/dev/zero"),
    "config.json to itself": replace_with_link("config.json", "config.json"),
    "config.json to nothing": replace_with_link("config.json", "nowhere"),
    "config.json outside": replace_with_link("config.json", "../outside.json"),
    "weights outside": replace_with_link(MODEL, "../outside.safetensors"),
    "tokenizer.json to /etc/passwd": replace_with_link("tokenizer.json", "/etc/passwd"),
    "tokenizer.json outside": replace_with_link("tokenizer.json", "../tokenizer.json"),
    "merges.txt to a secret": replace_with_link("merges.txt", "../outside"),
    "vocab.json to a secret": replace_with_link("vocab.json", "../outside"),
    "config.json a pipe": replace_with("config.json", os.mkfifo),
    "tokenizer.json a pipe": replace_with("tokenizer.json", os.mkfifo),
    "weights a pipe": replace_with(MODEL, os.mkfifo),
    "config.json a folder": replace_with("config.json", Path.mkdir),
    "weights a folder": replace_with(MODEL, Path.mkdir),
}


def copy_from_other_run(name: str) -> Damage:
    """Replaces a file by that of another run's checkpoint."""
    return lambda folder, _: shutil.copyfile(folder.parent / "other" / name, folder / name)


FILE_DAMAGES = {
    "weights and optimizer state swapped": swap_files(MODEL, OPTIMIZER),
    "configurations swapped": swap_files("config.json", "generation_config.json"),
    "tokenizer and settings swapped": swap_files("tokenizer.json", "tokenizer_config.json"),
    **{
        f"{name} of another run": copy_from_other_run(name)
        for name in (MODEL, OPTIMIZER, "progress.json", "recipe.yaml", MANIFEST)
    },
    **{f"{name} missing": remove(name) for name in FILES if name != MANIFEST},
    "weights a link": replace_with_link(MODEL, "../outside.safetensors"),
    "progress a pipe": replace_with("progress.json", os.mkfifo),
    "recipe a link to zeros": replace_with_link("recipe.yaml", "/dev/zero"),
}
DAMAGES_WITHOUT_MANIFEST = {
    **{f"weights {name}": change_bytes(MODEL, change) for name, change in BYTE_DAMAGES.items()},
    **{
        f"{name} {damage}": change_bytes(name, BYTE_DAMAGES[damage])
        for name in ("config.json", "tokenizer.json")
        for damage in ("truncated to half", "empty")
    },
    **{f"header flipped {n}": change_bytes(MODEL, flip_header_bit) for n in range(6)},
    "configuration and tokenizer swapped": swap_files("config.json", "tokenizer.json"),
    "configuration missing": remove("config.json"),
    "weights missing": remove(MODEL),
    "weights a payload": replace_bytes(MODEL, PAYLOAD + bytes(500_000)),
}


def cases(
    file_kind: str, damages: dict[str, Damage], uses: Sequence[str], *, fix_manifest: bool = False
) -> list[DamageCase]:
    """Gives each damage one of the uses, in turn."""
    return [
        DamageCase(file_kind, name, use, damage, fix_manifest)
        for (name, damage), use in zip(damages.items(), itertools.cycle(uses), strict=False)
    ]


REFUSED = [
    *cases(
        "bytes",
        {
            f"{name} {damage}": change_bytes(name, change)
            for name in FILES
            for damage, change in BYTE_DAMAGES.items()
            if (name, damage) != (MANIFEST, "one byte short")  # a newline
        },
        RUN_USES,
    ),
    *cases("files", FILE_DAMAGES, RUN_USES),
    *cases("manifest", MANIFEST_DAMAGES, RUN_USES),
    *cases(
        "weights",
        {name: change_tensors(MODEL, **changes) for name, changes in WEIGHT_DAMAGES.items()},
        RUN_USES,
        fix_manifest=True,
    ),
    *cases(
        "optimizer",
        {name: change_tensors(OPTIMIZER, **changes) for name, changes in OPTIMIZER_DAMAGES.items()},
        ("resume", "carry"),
        fix_manifest=True,
    ),
    *cases("header", header_damages(OPTIMIZER), ("resume", "carry"), fix_manifest=True),
    *cases("progress", PROGRESS_DAMAGES, ("resume",), fix_manifest=True),
    *cases("recipe", RECIPE_DAMAGES, ("resume",), fix_manifest=True),
    *cases("config", CONFIG_DAMAGES, (*RUN_USES, *FOLDER_USES), fix_manifest=True),
    *cases("no manifest", DAMAGES_WITHOUT_MANIFEST, FOLDER_USES),
    *cases("header", header_damages(MODEL), FOLDER_USES),
    *cases("index", INDEX_DAMAGES, FOLDER_USES),
    *cases("pickle", PICKLE_DAMAGES, FOLDER_USES),
    *cases("tokenizer", TOKENIZER_DAMAGES, FOLDER_USES),
    *cases("links", LINK_DAMAGES, FOLDER_USES),
]
BIT_FLIPS = {
    f"{name} {n}": change_bytes(name, flip_bit_of_file_entry if name == MANIFEST else flip_bit)
    for n in range(9)
    for name in FILES
}
REFUSED += cases(
    "flipped bits", dict(itertools.islice(BIT_FLIPS.items(), 400 - len(REFUSED))), RUN_USES
)
"""400 cases; each has to end in an error."""

INSPECTED = [
    *cases("files", FILE_DAMAGES, ("check", "lineage")),
    *cases("progress", PROGRESS_DAMAGES, ("lineage",), fix_manifest=True),
    *cases(
        "ancestor",
        {
            "schedule without a name": edit_json(
                "progress.json", lineage=[{**ANCESTOR, "schedule": {"x": "y"}}]
            ),
            "name with terminal escapes": edit_json(
                "progress.json", lineage=[{**ANCESTOR, "name": "\x1b]0;o\x07"}]
            ),
        },
        ("lineage",),
        fix_manifest=True,
    ),
]
"""Cases for commands that read little of a checkpoint, so they may succeed."""
