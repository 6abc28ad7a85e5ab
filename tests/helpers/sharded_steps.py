"""Measures the memory of a step that processes on this CPU share, with PyTorch's own `fully_shard`.

    python tests/helpers/sharded_steps.py STORE RANK PROCESSES SHARD PARTS PRECISION

prints the bytes at the peak of rank 0.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training.device_setup import autocast
from rewarm.training.optimizer import build_adamw

ARCHITECTURE = Architecture(layers=6, hidden=128, heads=4, vocabulary=512, positions=128)
CONTEXT = 32


class ResizedMemoryMeter(TorchDispatchMode):
    """The peak bytes of all tensors that are alive; FSDP resizes theirs, so sizes are read anew."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, Any] = {}
        for tensor in tensors:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
        self._storages[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, (args, result))
        storages = [reference() for reference in self._storages.values()]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in storages if storage))
        return result


def sharded_model(processes: int, shard: int) -> NeoX:
    """Returns a model of which `shard` processes divide the weights."""
    model = NeoX(ARCHITECTURE)
    initialize_weights(model, 1)
    names = ("replicate", "shard")
    mesh = init_device_mesh("cpu", (processes // shard, shard), mesh_dim_names=names)
    for layer in model.gpt_neox.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    return model


def measured_peak(processes: int, shard: int, parts: int, precision: str) -> int:
    """Returns the bytes at the peak of a step with so many microbatches of one sequence."""
    model = sharded_model(processes, shard)
    optimizer = build_adamw(model, OptimizerSettings())

    def step() -> None:
        for part in range(parts):
            is_last = part == parts - 1
            model.set_requires_gradient_sync(shard > 1 or is_last)
            model.set_requires_all_reduce(is_last)
            tokens = torch.randint(0, ARCHITECTURE.vocabulary, (1, CONTEXT + 1))
            with autocast(precision, torch.device("cpu")):
                loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # so that there is optimizer state
    moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
    with ResizedMemoryMeter(*model.parameters(), *moments) as meter:
        step()
    return meter.peak


if __name__ == "__main__":
    store, rank, processes, shard, parts, precision = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(processes)
    )
    peak = measured_peak(int(processes), int(shard), int(parts), precision)
    if rank == "0":
        print(peak)
    dist.destroy_process_group()
