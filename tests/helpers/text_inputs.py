"""Builds inputs of `rewarm shard` in every format, from the text of each document."""

import io
import json
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow
from pyarrow import parquet

from rewarm.data.inputs.input_records import Reading, ReadOptions, refuse_record


def lines(*documents: str) -> bytes:
    return b"".join(
        json.dumps({"id": 7, "text": document}).encode() + b"\n" for document in documents
    )


def table(*documents: str) -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(documents))), "text": list(documents)})


def parquet_of(*documents: str) -> bytes:
    parquet.write_table(table(*documents), file := io.BytesIO(), row_group_size=2)
    return file.getvalue()


def arrow_of(*documents: str) -> bytes:
    rows = table(*documents)
    with pyarrow.ipc.new_stream(file := io.BytesIO(), rows.schema) as stream:
        stream.write_table(rows, max_chunksize=2)
    return file.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def arrow_file_of(*documents: str) -> bytes:
    rows = table(*documents)
    with pyarrow.ipc.new_file(file := io.BytesIO(), rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)
    return file.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def write_megatron(path, dtype, code, sequences, firsts):
    """Writes a .bin and .idx as the format is specified, independently of the reader."""
    data = b"".join(np.array(ids, dtype).tobytes() for ids in sequences)
    path.with_suffix(".bin").write_bytes(data)
    with path.with_suffix(".idx").open("wb") as idx:
        idx.write(b"MMIDIDX\x00\x00")
        idx.write(struct.pack("<Q", 1))
        idx.write(struct.pack("<B", code))
        idx.write(struct.pack("<Q", len(sequences)))
        idx.write(struct.pack("<Q", len(firsts)))
        at, width = 0, np.dtype(dtype).itemsize
        for ids in sequences:
            idx.write(struct.pack("<i", len(ids)))
        for ids in sequences:
            idx.write(struct.pack("<q", at))
            at += width * len(ids)
        for first in firsts:
            idx.write(struct.pack("<q", first))


def reading(field: str = "text", **options) -> Reading:
    """Returns how a file is read if nothing is skipped."""
    return Reading(field, ReadOptions(**options), refuse_record, lambda _: None, lambda _: None)
