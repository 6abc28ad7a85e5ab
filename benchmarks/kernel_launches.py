"""What a step has a Hopper GPU do, and how long that takes at the least: without one.

    python benchmarks/kernel_launches.py --model pythia-410m --microbatch 16 --precision bf16
    python benchmarks/kernel_launches.py --precision fp8 --memory lean --list

A compiled layer is lowered by Inductor for an H100 that is not there, up to the code that would
call its kernels; of each launch the bytes that it reads and writes and the FLOPs of its product are
counted, and divided by what such a GPU was seen to do. What lies beside the layers (embedding, last
norm, head, optimiser) is counted by hand. So it is a floor: kernels that fall short of memory's
speed, gaps between them and what they share with each other are not in it. What it is for: a pass
over memory that nobody meant shows at once, and so does a layer that cannot be compiled.

The rates: 3.0 TB/s of a copy, bytes read and written; 747 TFLOP/s of a step's products in bf16,
1.34 PFLOP/s in fp8; of causal attention with heads of 64, 366 TFLOP/s forward and 284 back (cuDNN).
Each was seen on an H100 (SXM); no kernel of rewarm was.
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

COPY, PRODUCTS, PRODUCTS8 = 3.0e12, 747e12, 1.34e15
ATTENTION = {"forward": 366e12, "backward": 284e12}

FAMILIES = {
    "attention": "attention",
    "norms": "norms",
    "gelu": "GELU",
    "turn_": "rotary",
    "pack": "rotary",
    "round8": "rounding to fp8",
}
"""By what the operators of rewarm are called."""


class Launch(NamedTuple):
    """A kernel that a step runs, or an operator of a few."""

    where: str
    """`forward` or `backward`, of a layer; `beside` the layers."""
    name: str
    family: str
    bytes: float
    """Read and written."""
    flops: float = 0.0
    rate: float = PRODUCTS
    """FLOP/s that such products were seen at."""

    @property
    def seconds(self) -> float:
        """The least that it takes."""
        return max(self.bytes / COPY, self.flops / self.rate)


# A GPU that is not there, as far as Inductor and Triton ask it, and attention that is not computed.


class Properties:
    """Of an H100 (SXM)."""

    name, major, minor = "NVIDIA H100 80GB HBM3", 9, 0
    multi_processor_count, warp_size = 132, 32
    regs_per_multiprocessor, max_threads_per_multi_processor = 65_536, 2048
    max_threads_per_block, total_memory, L2_cache_size = 1024, 80 * 2**30, 50 * 2**20
    shared_memory_per_block, shared_memory_per_block_optin = 49_152, 232_448
    shared_memory_per_multiprocessor, gcnArchName = 233_472, ""  # noqa: N815


class Hopper:
    """What Triton asks."""

    def get_current_target(self) -> GPUTarget:
        """Returns what is compiled for."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Returns the only one."""
        return 0


@contextmanager
def hopper() -> Iterator[None]:
    """Has Inductor find an H100."""
    from torch._dynamo import device_interface

    driver.set_active(Hopper())
    found = device_interface.get_interface_for_device("cuda")
    worker: Any = found.Worker
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
            found,
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
    """Stands where cuDNN's would, whose layouts it has."""
    raise NotImplementedError  # never run


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, K = q.shape
    return q.new_empty(B, T, H, K).transpose(1, 2), q.new_empty(B, H, T, 1, dtype=torch.float32)


@torch.library.custom_op("launches::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The way back."""
    raise NotImplementedError  # never run


@attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, K = q.shape
    dq, dk, dv = (q.new_empty(B, T, H, K).transpose(1, 2) for _ in range(3))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _way_back(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = attention_backward(dout, *ctx.saved_tensors)
    return found


attention.register_autograd(_way_back, setup_context=_keep)


# A layer, lowered.


def of_layer(
    shape: Architecture, microbatch: int, context: int, precision: str, memory: str
) -> list[Launch]:
    """Returns what a compiled layer launches, forward and back."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    found: list[Launch] = []

    def lower(where: str, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from functorch.compile import make_boxed_func

        run = make_boxed_func(copy.deepcopy(graph).forward)  # on the CPU that the tensors are on
        nodes = _scheduled(graph, inputs, is_backward=where == "backward")
        said = [_launch(where, node, shape, microbatch, context) for node in nodes]
        found.extend(one for one in said if one.bytes)
        return run

    backend = aot_autograd(
        fw_compiler=partial(lower, "forward"),
        bw_compiler=partial(lower, "backward"),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        keep_inference_input_mutations=True,
        decompositions=select_decomp_table(),
    )
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    attend = mock.patch(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda q, k, v, **_: attention(q, k, v)[0],
    )
    torch.compiler.reset()
    with hopper(), attend, FakeTensorMode(allow_non_fake_inputs=True):
        model = NeoX(shape.model_copy(update={"layers": 1}))
        model.configure(triton_kernels(), memory=memory, precision=precision)
        (layer,) = model.gpt_neox.layers
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
        x = torch.empty(microbatch, context, shape.hidden, dtype=dtype, requires_grad=True)
        with autocast(precision, torch.device("cpu")):
            y = layer(x, model.cos[:context], model.sin[:context])
        y.backward(torch.empty_like(y))
    return found


def _scheduled(
    graph: torch.fx.GraphModule, inputs: list[Any], *, is_backward: bool
) -> Iterator[Any]:
    """Yields what Inductor would launch one after the other, having fused what it can."""
    from torch._inductor import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    fake = torch._guards.detect_fake_mode(inputs)

    def there(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0")
        return torch.device("cuda:0") if isinstance(x, torch.device) else x

    for node in graph.graph.nodes:
        node.args = tuple(there(one) for one in node.args)
        node.kwargs = {key: there(one) for key, one in node.kwargs.items()}
    with fake:
        inputs = [there(one) for one in inputs]
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
    """Returns what one of them is."""
    operator = str(getattr(node.node, "op_overload", None) or "")
    moved, flops = float(node.get_read_write_buffers_sizes()), float(node.estimate_flops() or 0)
    if flops or "_scaled_mm" in operator:
        rate = PRODUCTS8 if "_scaled_mm" in operator else PRODUCTS
        return Launch(where, operator, "products", moved, flops, rate)
    if not operator:
        names = sorted({str(one.target) for one in node.get_nodes() for one in _origins(one)})
        return Launch(where, " ".join(names), "casts, sums, residual", moved)
    family = next(to for word, to in FAMILIES.items() if word in operator)
    if family == "attention":  # of the half of all pairs, two products forward and five back
        pairs = microbatch * shape.heads * context**2 / 2
        size = shape.hidden // shape.heads
        flops = (4 if where == "forward" else 10) * pairs * size
        return Launch(where, operator, family, moved, flops, ATTENTION[where])
    if "turn_" in operator:  # only that part of queries and keys is touched
        moved *= 2 / 3 * shape.rotary_size / (shape.hidden // shape.heads)
    return Launch(where, operator, family, moved)


def _origins(node: Any) -> list[Any]:
    return list(node.node.origins) if node.node is not None else []


def beside(shape: Architecture, tokens: int, precision: str) -> list[Launch]:
    """Returns what a step launches beside its layers, counted by hand."""
    D, V, P = shape.hidden, shape.vocabulary, shape.parameters
    h = 4 if precision == "fp32" else 2
    states, weight = tokens * D, V * D
    return [
        Launch("beside", "head, forward and back", "products", 0, 6.0 * states * V),
        Launch("beside", "logits, read twice and written", "cross-entropy", 3.0 * h * tokens * V),
        Launch("beside", "head's weight, cast", "cross-entropy", (4.0 + h) * weight),
        Launch("beside", "states and gradients, cast", "cross-entropy", (18.0 + 2 * h) * states),
        Launch("beside", "embedding", "ends", (16.0 + 2 * h) * states + 8 * weight),
        Launch("beside", "last norm", "ends", (40.0 + 2 * h) * states),
        Launch("beside", "gradient's norm, clipping", "optimiser", 12.0 * P),
        Launch("beside", "AdamW", "optimiser", 28.0 * P),
    ]


# What is printed.


def in_markdown(said: argparse.Namespace, launches: list[Launch]) -> str:
    """Returns milliseconds of a step by family, and what a layer launches."""
    shape, tokens = PRESETS[said.model], said.microbatch * said.context
    spent: dict[str, float] = {}
    for one in launches:
        times = 1 if one.where == "beside" else shape.layers
        spent[one.family] = spent.get(one.family, 0.0) + 1e3 * times * one.seconds
    total = sum(spent.values())
    lines = [
        f"{said.model}, {said.microbatch} × {said.context:,} tokens, {said.precision}, memory: "
        f"{said.memory}; torch {torch.__version__}, Triton {triton.__version__}; arithmetic",
        "",
        "| | ms of a step, at the least | launches |",
        "|---|---|---|",
    ]
    for family, milliseconds in sorted(spent.items(), key=lambda item: -item[1]):
        count = sum(
            1 if one.where == "beside" else shape.layers for one in launches if one.family == family
        )
        lines.append(f"| {family} | {milliseconds:.1f} | {count:,} |")
    lines += [f"| sum | {total:.1f} | |", "", f"{1e3 * tokens / total:,.0f} tokens/s at the most"]
    if said.list:
        lines += ["", "| | family | launch | MB | GFLOP | µs |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {one.where} | {one.family} | {one.name} | {one.bytes / 1e6:.1f} | "
            f"{one.flops / 1e9:.1f} | {1e6 * one.seconds:.1f} |"
            for one in launches
        ]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.ArgumentParser:
    """Returns what the command takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pythia-410m", choices=list(PRESETS))
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8", "fp32"])
    parser.add_argument("--memory", default="fast", choices=["fast", "lean"])
    parser.add_argument("--list", action="store_true", help="each launch of a layer")
    return parser


def main() -> None:
    """Prints the table."""
    said = arguments().parse_args()
    shape = PRESETS[said.model]
    layer = of_layer(shape, said.microbatch, said.context, said.precision, said.memory)
    rest = beside(shape, said.microbatch * said.context, said.precision)
    print(in_markdown(said, [*layer, *rest]), end="")


if __name__ == "__main__":
    main()
