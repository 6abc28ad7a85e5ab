"""What a training step launches on a Hopper GPU and the least time it takes, without a GPU.

    python benchmarks/kernel_launches.py --model pythia-410m --microbatch 16 --precision bf16
    python benchmarks/kernel_launches.py --precision fp8 --memory lean --list

Inductor lowers a compiled layer for a simulated H100, up to the code that would call its kernels.
The bytes that each launch reads and writes and the FLOPs of its matmul are counted and divided by
rates measured on such a GPU. What is outside the layers (embedding, last norm, head, optimizer) is
counted by hand. The result is a lower bound: it has no kernels slower than memory bandwidth and no
gaps between kernels. Its use: an unintended pass over memory shows at once, and so does a layer
that cannot be compiled.

The rates: a copy at 3.0 TB/s, bytes read and written; matmuls of a step at 747 TFLOP/s in bf16 and
1.34 PFLOP/s in fp8; causal attention with heads of 64 at 366 TFLOP/s forward and 284 backward
(cuDNN). Each was measured on an H100 (SXM); no kernel of rewarm was.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.selection import triton_kernels
from rewarm.model.neox import NeoX
from rewarm.training.device_setup import autocast

COPY, MATMUL, MATMUL8 = 3.0e12, 747e12, 1.34e15
ATTENTION = {"forward": 366e12, "backward": 284e12}

FAMILIES = {
    "attention": "attention",
    "norms": "norms",
    "gelu": "GELU",
    "turn_": "rotary",
    "pack": "rotary",
    "round8": "rounding to fp8",
}
"""Kernel families by the names of rewarm's operators."""


class Launch(NamedTuple):
    """A kernel that a step launches, or an operator made of a few."""

    where: str
    """`forward` or `backward` of a layer, or `outside` the layers."""
    name: str
    family: str
    bytes: float
    """Read and written."""
    flops: float = 0.0
    rate: float = MATMUL
    """FLOP/s that were measured of such operations."""

    @property
    def seconds(self) -> float:
        """The least time that it takes."""
        return max(self.bytes / COPY, self.flops / self.rate)


# A simulated GPU, as far as Inductor and Triton query it, and attention that is not computed.


class Properties:
    """The device properties of an H100 (SXM)."""

    name, major, minor = "NVIDIA H100 80GB HBM3", 9, 0
    multi_processor_count, warp_size = 132, 32
    regs_per_multiprocessor, max_threads_per_multi_processor = 65_536, 2048
    max_threads_per_block, total_memory, L2_cache_size = 1024, 80 * 2**30, 50 * 2**20
    shared_memory_per_block, shared_memory_per_block_optin = 49_152, 232_448
    shared_memory_per_multiprocessor, gcnArchName = 233_472, ""  # noqa: N815


class Hopper:
    """The driver that Triton queries."""

    def get_current_target(self) -> GPUTarget:
        """Returns the GPU that is compiled for."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Returns the index of the only device."""
        return 0


@contextmanager
def hopper() -> Iterator[None]:
    """Makes Inductor see an H100."""
    from torch._dynamo import device_interface

    driver.set_active(Hopper())
    interface = device_interface.get_interface_for_device("cuda")
    worker: Any = interface.Worker
    with (
        mock.patch.multiple(
            torch.cuda,
            get_device_properties=lambda *_: Properties,
            get_device_capability=lambda *_: (9, 0),
            _lazy_init=lambda: None,
            current_device=lambda: 0,
            device_count=lambda: 1,
        ),
        mock.patch.multiple(
            worker, get_device_properties=lambda *_: Properties, current_device=lambda: 0
        ),
        mock.patch.multiple(
            interface,
            is_available=lambda: True,
            get_device_properties=lambda *_: Properties,
            current_device=lambda: 0,
            get_compute_capability=lambda *_: 90,
            is_triton_capable=lambda *_: True,
            raise_if_triton_unavailable=lambda *_: None,
        ),
    ):
        yield


@torch.library.custom_op("launches::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for cuDNN's attention, with the same layouts."""
    raise NotImplementedError  # never run


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, K = q.shape
    return q.new_empty(B, T, H, K).transpose(1, 2), q.new_empty(B, H, T, 1, dtype=torch.float32)


@torch.library.custom_op("launches::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of `attention`."""
    raise NotImplementedError  # never run


@attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, K = q.shape
    dq, dk, dv = (q.new_empty(B, T, H, K).transpose(1, 2) for _ in range(3))
    return dq, dk, dv


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _attention_gradients(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = attention_backward(dout, *ctx.saved_tensors)
    return gradients


attention.register_autograd(_attention_gradients, setup_context=_save_for_backward)


# Lowering a layer.


def layer_launches(
    shape: Architecture, microbatch: int, context: int, precision: str, memory: str
) -> list[Launch]:
    """Returns what a compiled layer launches, forward and backward."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    launches: list[Launch] = []

    def lower(where: str, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from functorch.compile import make_boxed_func

        run = make_boxed_func(copy.deepcopy(graph).forward)  # on the CPU, where the tensors are
        nodes = _scheduled(graph, inputs, is_backward=where == "backward")
        lowered = [_launch(where, node, shape, microbatch, context) for node in nodes]
        launches.extend(launch for launch in lowered if launch.bytes)
        return run

    backend = aot_autograd(
        fw_compiler=partial(lower, "forward"),
        bw_compiler=partial(lower, "backward"),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        keep_inference_input_mutations=True,
        decompositions=select_decomp_table(),
    )
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    attention_patch = mock.patch(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda q, k, v, **_: attention(q, k, v)[0],
    )
    torch.compiler.reset()
    with hopper(), attention_patch, FakeTensorMode(allow_non_fake_inputs=True):
        model = NeoX(shape.model_copy(update={"layers": 1}))
        model.configure(triton_kernels(), memory=memory, precision=precision)
        (layer,) = model.gpt_neox.layers
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
        x = torch.empty(microbatch, context, shape.hidden, dtype=dtype, requires_grad=True)
        with autocast(precision, torch.device("cpu")):
            y = layer(x, model.cos[:context], model.sin[:context])
        y.backward(torch.empty_like(y))
    return launches


def _scheduled(
    graph: torch.fx.GraphModule, inputs: list[Any], *, is_backward: bool
) -> Iterator[Any]:
    """Yields what Inductor would launch, in order, after fusion."""
    from torch._inductor import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    fake = torch._guards.detect_fake_mode(inputs)

    def on_gpu(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0")
        return torch.device("cuda:0") if isinstance(x, torch.device) else x

    for node in graph.graph.nodes:
        node.args = tuple(on_gpu(argument) for argument in node.args)
        node.kwargs = {key: on_gpu(argument) for key, argument in node.kwargs.items()}
    with fake:
        inputs = [on_gpu(argument) for argument in inputs]
    with V.set_fake_mode(fake):
        compile_fx.view_to_reshape(graph)
        compile_fx.fake_tensor_prop(graph, inputs, True)
        compile_fx._recursive_post_grad_passes(graph, is_inference=False)
        compile_fx.fake_tensor_prop(graph, inputs, True)
        lowering = GraphLowering(graph, example_inputs=inputs, is_backward=is_backward)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            lowering.codegen()
            yield from lowering.scheduler.nodes


def _launch(where: str, node: Any, shape: Architecture, microbatch: int, context: int) -> Launch:
    """Returns what a scheduled node launches."""
    operator = str(getattr(node.node, "op_overload", None) or "")
    moved, flops = float(node.get_read_write_buffers_sizes()), float(node.estimate_flops() or 0)
    if flops or "_scaled_mm" in operator:
        rate = MATMUL8 if "_scaled_mm" in operator else MATMUL
        return Launch(where, operator, "matmuls", moved, flops, rate)
    if not operator:
        names = sorted(
            {str(origin.target) for part in node.get_nodes() for origin in _origins(part)}
        )
        return Launch(where, " ".join(names), "casts, sums, residual", moved)
    family = next(name for prefix, name in FAMILIES.items() if prefix in operator)
    if family == "attention":  # for half of all pairs, two matmuls forward and five backward
        pairs = microbatch * shape.heads * context**2 / 2
        size = shape.hidden // shape.heads
        flops = (4 if where == "forward" else 10) * pairs * size
        return Launch(where, operator, family, moved, flops, ATTENTION[where])
    if "turn_" in operator:  # it changes only this part of queries and keys
        moved *= 2 / 3 * shape.rotary_size / (shape.hidden // shape.heads)
    return Launch(where, operator, family, moved)


def _origins(node: Any) -> list[Any]:
    return list(node.node.origins) if node.node is not None else []


def outside_layers(shape: Architecture, tokens: int, precision: str) -> list[Launch]:
    """Returns what a step launches outside its layers, counted by hand."""
    D, V, P = shape.hidden, shape.vocabulary, shape.parameters
    h = 4 if precision == "fp32" else 2
    states, weight = tokens * D, V * D
    return [
        Launch("outside", "head, forward and backward", "matmuls", 0, 6.0 * states * V),
        Launch("outside", "logits, read twice and written", "cross-entropy", 3.0 * h * tokens * V),
        Launch("outside", "head's weight, cast", "cross-entropy", (4.0 + h) * weight),
        Launch("outside", "states and gradients, cast", "cross-entropy", (18.0 + 2 * h) * states),
        Launch(
            "outside", "embedding", "embedding, last norm", (16.0 + 2 * h) * states + 8 * weight
        ),
        Launch("outside", "last norm", "embedding, last norm", (40.0 + 2 * h) * states),
        Launch("outside", "gradient's norm, clipping", "optimizer", 12.0 * P),
        Launch("outside", "AdamW", "optimizer", 28.0 * P),
    ]


# Printing.


def in_markdown(options: argparse.Namespace, launches: list[Launch]) -> str:
    """Returns milliseconds of a step by family, and what a layer launches."""
    shape, tokens = PRESETS[options.model], options.microbatch * options.context
    spent: dict[str, float] = {}
    for launch in launches:
        times = 1 if launch.where == "outside" else shape.layers
        spent[launch.family] = spent.get(launch.family, 0.0) + 1e3 * times * launch.seconds
    total = sum(spent.values())
    lines = [
        f"{options.model}, {options.microbatch} × {options.context:,} tokens, {options.precision}, "
        f"memory: {options.memory}; torch {torch.__version__}, Triton {triton.__version__}; "
        "arithmetic",
        "",
        "| | ms per step, lower bound | launches |",
        "|---|---|---|",
    ]
    for family, milliseconds in sorted(spent.items(), key=lambda item: -item[1]):
        count = sum(
            1 if launch.where == "outside" else shape.layers
            for launch in launches
            if launch.family == family
        )
        lines.append(f"| {family} | {milliseconds:.1f} | {count:,} |")
    lines += [f"| sum | {total:.1f} | |", "", f"{1e3 * tokens / total:,.0f} tokens/s, upper bound"]
    if options.list:
        lines += ["", "| | family | launch | MB | GFLOP | µs |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {launch.where} | {launch.family} | {launch.name} | {launch.bytes / 1e6:.1f} | "
            f"{launch.flops / 1e9:.1f} | {1e6 * launch.seconds:.1f} |"
            for launch in launches
        ]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pythia-410m", choices=list(PRESETS))
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8", "fp32"])
    parser.add_argument("--memory", default="fast", choices=["fast", "lean"])
    parser.add_argument("--list", action="store_true", help="list each launch of a layer")
    return parser


def main() -> None:
    """Prints the table."""
    options = arguments().parse_args()
    shape = PRESETS[options.model]
    layer = layer_launches(
        shape, options.microbatch, options.context, options.precision, options.memory
    )
    rest = outside_layers(shape, options.microbatch * options.context, options.precision)
    print(in_markdown(options, [*layer, *rest]), end="")


if __name__ == "__main__":
    main()
