"""What a save costs a run: seconds that training stands still, in a thread and without one.

    python benchmarks/save_stall.py [--layers 6] [--hidden 512] [--repeats 5]

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

from rewarm.checkpoints.training_state import TrainingState
from rewarm.checkpoints.write_checkpoint import TensorSnapshot, TokenizerSource, write_checkpoint
from rewarm.data.batch_loader import EMPTY_DIGEST
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.fields import OptimizerSettings
from rewarm.training.optimizer import apply_update, build_adamw


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
    initialize_weights(model, 1)
    model.to(device)
    optimizer = build_adamw(model, OptimizerSettings())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_update(optimizer, 1e-4, torch.zeros((), device=device))
    empty = {name: {} for name in ("carried", "corpora", "baseline", "losses", "guard", "schedule")}
    progress = TrainingState(
        step=1, tokens=1, lrs=None, blocks={}, stream=EMPTY_DIGEST, lineage=[], rewarm="0", **empty
    )
    tensors, stalls, whole = TensorSnapshot(), [], []
    with tempfile.TemporaryDirectory() as work:
        for repeat in range(said.repeats + 1):
            began = time.perf_counter()
            tensors.copy_from(model, optimizer)
            stalls.append(time.perf_counter() - began)
            source = TokenizerSource(Path(work), 0, "<|endoftext|>")
            write_checkpoint(
                Path(work) / f"step-{repeat:08d}", shape, tensors, progress, "", source
            )
            whole.append(time.perf_counter() - began)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    print(
        f"{name}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"{shape.parameters:,} parameters, {tensors.nbytes:,} bytes; {said.repeats} repeats"
    )
    print("| | seconds training stands still, median (lowest to highest) | first save |")
    print("|---|---|---|")
    for what, found in (("thread", stalls), ("waiting", whole)):
        first, *rest = found
        middle = statistics.median(rest)
        print(f"| {what} | {middle:.3f} ({min(rest):.3f} to {max(rest):.3f}) | {first:.3f} |")


if __name__ == "__main__":
    main()
