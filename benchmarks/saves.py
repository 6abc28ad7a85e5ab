"""What a save costs a run: seconds that training stands still, in a thread and without one.

    python benchmarks/saves.py [--layers 6] [--hidden 512] [--repeats 5]

The model and its Adam moments are written as a checkpoint (12 bytes a parameter). `thread` is the
stall of rewarm's Saver, a copy to host memory; `waiting` is until the directory is whole. The first
save of a run also takes the memory for the copy, and is shown by itself.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from rewarm import checkpoint, optim
from rewarm.architecture import Architecture
from rewarm.checkpoint import Tensors, TokenizerSource
from rewarm.neox import NeoX, initialise
from rewarm.progress import Progress
from rewarm.sections import Optimizer
from rewarm.stream import NOTHING


def main() -> None:
    """Prints the table."""
    import time

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    said = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Architecture(layers=said.layers, hidden=said.hidden, heads=8)
    model = NeoX(shape)
    initialise(model, 1)
    model.to(device)
    optimizer = optim.adamw(model, Optimizer())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optim.apply(optimizer, 1e-4, torch.zeros((), device=device))
    empty = {name: {} for name in ("carried", "corpora", "baseline", "losses", "guard", "schedule")}
    progress = Progress(
        step=1, tokens=1, lrs=None, blocks={}, stream=NOTHING, lineage=[], rewarm="0", **empty
    )
    tensors, stalls, whole = Tensors(), [], []
    with tempfile.TemporaryDirectory() as work:
        for repeat in range(said.repeats + 1):
            began = time.perf_counter()
            tensors.take(model, optimizer)
            stalls.append(time.perf_counter() - began)
            source = TokenizerSource(Path(work), 0, "<|endoftext|>")
            checkpoint.save(Path(work) / f"step-{repeat:08d}", shape, tensors, progress, "", source)
            whole.append(time.perf_counter() - began)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    print(
        f"{name}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"{shape.parameters:,} parameters, {tensors.bytes:,} bytes; {said.repeats} repeats"
    )
    print("| | seconds training stands still, median (lowest to highest) | first save |")
    print("|---|---|---|")
    for what, found in (("thread", stalls), ("waiting", whole)):
        first, *rest = found
        middle = statistics.median(rest)
        print(f"| {what} | {middle:.3f} ({min(rest):.3f} to {max(rest):.3f}) | {first:.3f} |")


if __name__ == "__main__":
    main()
