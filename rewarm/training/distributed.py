"""Several processes, one per GPU: how they find each other, and what they do on the devices.

```
 torchrun, srun, `rewarm train --gpus`  ── RANK, WORLD_SIZE, ... ──> ProcessGroup
   devices   NCCL, or gloo on CPUs: gathers weights, reduces gradients, losses and norms
   hosts     gloo: host_agreement.py
```
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from typing_extensions import override

from rewarm.errors import RewarmError
from rewarm.model.neox import NeoX
from rewarm.training.host_agreement import AgreeingProcesses, first_sentence


class ProcessGroup(AgreeingProcesses):
    """Several processes on PyTorch's own engine; a context manager."""

    def __init__(self, timeout: float) -> None:
        """Joins the processes that the environment variables of torchrun describe.

        Args:
            timeout: seconds to wait for a rank that does not answer.

        Raises:
            RewarmError: they do not find each other in that time.
        """
        self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._device_type = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device_type == "cuda":
            torch.cuda.set_device(local_rank)
        _record_collectives()
        wait, started = timedelta(seconds=timeout), time.monotonic()
        try:
            launcher_store, rank, size = next(iter(rendezvous("env://", timeout=wait)))
            # The launcher keeps its store: what processes before a restart have published there
            # must not be found.
            store = PrefixStore(f"attempt/{self.restarts}", launcher_store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self._device_type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                # With NCCL the hosts notice first, and can say which rank it is.
                timeout=wait + timedelta(minutes=self._device_type == "cuda"),
            )
            super().__init__(store, rank, size, local_rank, timeout)
        except (RuntimeError, ValueError) as error:
            raise RewarmError(
                f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} did not find the "
                f"others in {time.monotonic() - started:.0f} s: {first_sentence(error)}; see what "
                "they have printed, that MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE are those "
                "of one run, and that no other process uses the port"
            ) from None

    @override
    def divide(self, model: NeoX, shard_size: int) -> None:
        """Wraps each layer, and what is outside of the layers, in a group of its own (FSDP2)."""
        mesh = init_device_mesh(
            self._device_type,
            (self.size // shard_size, shard_size),
            mesh_dim_names=("copies", "shards"),
        )
        for layer in model.gpt_neox.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")
        self._copies = self.size // shard_size

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    @override
    def sum_of_parts(self, tensor: Tensor) -> Tensor:
        return self.sum(tensor) / self._copies

    @override
    def maximum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    @override
    def set_last_microbatch(self, model: NeoX, is_last: bool) -> None:
        # Whole gradients are summed up locally: they are in memory anyway. Divided ones are reduced
        # after every microbatch, in groups; between groups once.
        assert isinstance(model, FSDPModule)
        if self._copies == self.size:
            model.set_requires_gradient_sync(is_last)
        else:
            model.set_requires_all_reduce(is_last)

    @override
    def free_whole_weights(self, model: NeoX) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _record_collectives() -> None:
    """Has NCCL's flight recorder write what each rank was doing when a collective times out."""
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", "2000"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        os.environ.setdefault(name, value)
