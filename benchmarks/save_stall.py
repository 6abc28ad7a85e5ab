"""How long a save stops training: in a background thread and in the foreground.

    python benchmarks/save_stall.py [--layers 6] [--hidden 512] [--repeats 5]

The model and its optimizer state are written as a checkpoint (12 bytes per parameter). `thread` is
the stall of rewarm's BackgroundWriter, a copy to host memory; `waiting` lasts until the directory
is complete. The first save of a run also allocates the memory for the copy, and is shown apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
from spread import spread

from rewarm.checkpoints.training_state import TrainingState
from rewarm.checkpoints.write_checkpoint import TensorSnapshot, TokenizerSource, write_checkpoint
from rewarm.data.batch_loader import EMPTY_DIGEST
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training.optimizer import apply_update, build_adamw


def build_model(shape: Architecture, device: torch.device) -> tuple[NeoX, torch.optim.Optimizer]:
    """Returns a model with new weights and an optimizer that has taken a step."""
    model = NeoX(shape)
    initialize_weights(model, 1)
    model.to(device)
    optimizer = build_adamw(model, OptimizerSettings())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_update(optimizer, 1e-4, torch.zeros((), device=device))
    return model, optimizer


def training_state() -> TrainingState:
    """Returns the state of a run after its first step, without data."""
    names = ("carried", "corpora", "baseline", "losses", "guard", "schedule")
    return TrainingState(
        step=1,
        tokens=1,
        lrs=None,
        blocks={},
        stream=EMPTY_DIGEST,
        lineage=[],
        rewarm="0",
        **{name: {} for name in names},
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Architecture(layers=options.layers, hidden=options.hidden, heads=8)
    model, optimizer = build_model(shape, device)
    snapshot, stalls, complete = TensorSnapshot(), [], []
    with tempfile.TemporaryDirectory() as work:
        source = TokenizerSource(Path(work), 0, "<|endoftext|>")
        for repeat in range(options.repeats + 1):
            folder = Path(work) / f"step-{repeat:08d}"
            started = time.perf_counter()
            snapshot.copy_from(model, optimizer)
            stalls.append(time.perf_counter() - started)
            write_checkpoint(folder, shape, snapshot, training_state(), "", source)
            complete.append(time.perf_counter() - started)
    on_gpu = device.type == "cuda"
    device_name = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPU cores"
    print(
        f"{device_name}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"{shape.parameters:,} parameters, {snapshot.nbytes:,} bytes; {options.repeats} repeats"
    )
    print("| | seconds training is stopped, median (lowest to highest) | first save |")
    print("|---|---|---|")
    for writer, (first, *others) in (("thread", stalls), ("waiting", complete)):
        print(f"| {writer} | {spread(others, 3)} | {first:.3f} |")


if __name__ == "__main__":
    main()
