"""`memory: lean`: the same numbers, fewer bytes, and what that costs."""

import pytest
import torch
from compiled_graphs import compiles, graphs
from functorch.compile import nop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training_runs import learnt, metrics, run

from rewarm.errors import CheckpointError
from rewarm.model import activation_recompute
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.selection import PYTORCH_KERNELS
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.training.device_setup import autocast

CPU = torch.device("cpu")
SHAPES = {
    "parallel": {},
    "in-a-row": {"parallel_residual": False, "attention_bias": False},
    "tied": {"ffn": 64, "heads": 8, "tied": True, "activation": "silu"},
}


def model(memory, *, layers=3, **changed):
    given = {"hidden": 64, "heads": 4, "vocabulary": 97, "positions": 64} | changed
    made = NeoX(Architecture(layers=layers, **given))
    initialize_weights(made, 1)
    made.use(PYTORCH_KERNELS, memory=memory)
    return made


def step(made, precision="fp32", **more):
    """The loss and all gradients of a step, by name."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 97, (4, 38))
    with autocast(precision, CPU):
        loss = made.loss(tokens[:, :-1], tokens[:, 1:], **more)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in made.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("more", [{}, {"separator": 3}, {"reduction": "sum"}], ids=str)
@pytest.mark.parametrize("changed", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradients_are_the_same_to_the_last_bit(changed, more, precision):
    wanted, found = (step(model(one, **changed), precision, **more) for one in ("fast", "lean"))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_in_chunks_adds_up_its_gradient_in_another_order_and_nothing_else(
    precision, monkeypatch
):
    wanted = step(model("fast"), precision)
    monkeypatch.setattr(
        activation_recompute, "LOGITS_AT_ONCE", 97 * 16
    )  # ten chunks, the last one short
    found = step(model("lean"), precision)
    for name in wanted:
        if name in ("loss", "embed_out.weight"):
            close = 1e-6 if precision == "fp32" else 5e-3
            assert (wanted[name] - found[name]).norm() <= close * wanted[name].norm()
        else:
            assert torch.equal(wanted[name], found[name]), name


class Largest(TorchDispatchMode):
    """Sees the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_logits_are_never_stored_whole(memory, monkeypatch):
    monkeypatch.setattr(activation_recompute, "LOGITS_AT_ONCE", 4001 * 16)
    made, tokens = model(memory, vocabulary=4001), torch.zeros(2, 65, dtype=torch.int64)
    with Largest() as largest:
        made.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        with torch.no_grad():
            made.loss(tokens[:, :-1], tokens[:, 1:])
    logits, weight = 128 * 4001, 64 * 4001
    assert largest.numbers == (logits if memory == "fast" else weight)


def eager_flops(made, tokens):
    with FlopCounterMode(display=False) as counted:
        made.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return counted.get_total_flops()


def compiled_flops(made, tokens):
    """Those of the products in the layers' graphs, forward and back."""
    products = []

    def tally(graph, inputs):
        for node in graph.graph.nodes:
            if node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                left, right = (one.meta["val"].shape for one in node.args[-2:])
                products.append(2 * left.numel() * right[-1])
        return nop(graph, inputs)

    torch.compiler.reset()
    for layer in made.gpt_neox.layers:
        layer.compile(fullgraph=True, dynamic=False, backend=graphs(tally))
    made.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return sum(products)


@compiles
@pytest.mark.parametrize("changed", [SHAPES["parallel"], SHAPES["in-a-row"]], ids=list(SHAPES)[:2])
def test_made_again_are_the_mlps_first_product_and_the_heads(changed):
    tokens = torch.zeros(2, 65, dtype=torch.int64)
    width, inner, vocabulary = 64, 256, 97

    def more(flops):
        fast, lean = (flops(model(one, **changed), tokens) for one in ("fast", "lean"))
        return (lean - fast) / (2 * 128)

    # Behind attention, where the MLP reads what it gave; eagerly, all that comes before is done.
    assert more(eager_flops) == 3 * (width * inner + width * width) + width * vocabulary
    assert more(compiled_flops) == 3 * (width * inner + (width * width if changed else 0))


def test_that_is_little_of_a_step():
    shape = PRESETS["pythia-410m"]
    again = 2 * shape.layers * shape.hidden * shape.inner / shape.flops_per_token(2048)
    head = 2 * shape.vocabulary * shape.hidden / shape.flops_per_token(2048)
    assert again == pytest.approx(0.074, abs=5e-4)
    assert again + head == pytest.approx(0.112, abs=5e-4)


def test_a_run_learns_the_same_and_only_with_a_word_goes_on_otherwise(recipe_text, tmp_path):
    fast = run(recipe_text, tmp_path / "fast")
    assert learnt(run(recipe_text, tmp_path / "lean", memory="lean")) == learnt(fast)
    assert metrics(tmp_path / "lean") == metrics(tmp_path / "fast")
    run(recipe_text, tmp_path / "both", tokens=10240)
    more = {"resume": True, "tokens": 20480, "memory": "lean"}
    with pytest.raises(CheckpointError, match="memory: fast → lean"):
        run(recipe_text, tmp_path / "both", **more)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@compiles
@pytest.mark.parametrize("kernels", ["plain", "auto"])
@pytest.mark.parametrize("separator", [None, 7])
def test_compiled_on_a_gpu_gradients_are_the_same(kernels, separator):
    from rewarm.model.kernels.selection import choose_kernels

    device, found = torch.device("cuda"), {}
    tokens = torch.randint(0, 50_000, (2, 1025), device=device)
    with device:
        made = NeoX(PRESETS["pythia-160m"])
    initialize_weights(made.cpu(), 1)
    made.to(device)
    for memory in ("fast", "lean"):
        torch.compiler.reset()
        made.use(choose_kernels(kernels, device)[0], memory=memory)
        made.compile_layers()
        with autocast("bf16", device):
            loss = made.loss(tokens[:, :-1], tokens[:, 1:], separator=separator)
        loss.backward()
        found[memory] = [loss.detach(), *(p.grad for p in made.parameters())]
        made.zero_grad()
    for a, b in zip(*found.values(), strict=True):
        assert (a - b).norm() <= 2e-2 * a.norm()
