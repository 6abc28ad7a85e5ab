"""Reads the files of offline runs of W&B: LevelDB's log format, with records in protobuf."""

import json
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER = 32768, 7


def _payloads(data: bytes) -> Iterator[bytes]:
    """Yields the records of a log: each is in one chunk, or in a first, middle and last ones."""
    position, parts = _HEADER, []  # the file itself has a header of the same size
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:  # too short for a chunk
            position += _BLOCK - position % _BLOCK
            continue
        size = int.from_bytes(data[position + 4 : position + 6], "little")
        chunk_type = data[position + 6]
        parts.append(data[position + _HEADER : position + _HEADER + size])
        position += _HEADER + size
        if chunk_type in (1, 4):  # full, last
            yield b"".join(parts)
            parts = []


def history(run: Path) -> tuple[set[str], list[dict[str, float]]]:
    """Returns the ids and the logged rows of the runs that a run directory has for W&B."""
    from wandb.proto import wandb_internal_pb2

    ids, rows = set(), []
    for file in sorted(run.glob("trackers/wandb/wandb/offline-run-*/*.wandb")):
        for payload in _payloads(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            if record.run.run_id:
                ids.add(record.run.run_id)
            if record.history.item:
                rows.append({
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                })  # fmt: skip
    return ids, rows
