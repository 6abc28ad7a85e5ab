"""`memory: lean` gives the same bits, stores less, and recomputes one matmul of each layer."""

import pytest
import torch
from compiled_graphs import compiles, graphs
from functorch.compile import nop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode
from training_runs import metrics, run, trained_files

from rewarm.errors import CheckpointError
from rewarm.model import activation_recompute
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.selection import PYTORCH_KERNELS
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.training.device_setup import autocast

CPU = torch.device("cpu")
CHANGES = {
    "parallel": {},
    "sequential": {"parallel_residual": False, "attention_bias": False},
    "tied": {"ffn": 64, "heads": 8, "tied": True, "activation": "silu"},
}


def new_model(memory, *, layers=3, **changed):
    settings = {"hidden": 64, "heads": 4, "vocabulary": 97, "positions": 64} | changed
    model = NeoX(Architecture(layers=layers, **settings))
    initialize_weights(model, 1)
    model.configure(PYTORCH_KERNELS, memory=memory)
    return model


def loss_and_gradients(model, precision="fp32", **loss_arguments):
    """The loss and all gradients of a step, by name."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 97, (4, 38))
    with autocast(precision, CPU):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], **loss_arguments)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss_arguments", [{}, {"separator_id": 3}, {"reduction": "sum"}], ids=str)
@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_loss_and_gradients_have_the_same_bits(changed, loss_arguments, precision):
    fast, lean = (
        loss_and_gradients(new_model(memory, **changed), precision, **loss_arguments)
        for memory in ("fast", "lean")
    )
    assert all(torch.equal(fast[name], lean[name]) for name in fast)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chunked_loss_changes_only_the_order_of_its_own_sums(precision, monkeypatch):
    fast = loss_and_gradients(new_model("fast"), precision)
    ten_chunks = 97 * 16  # the last one short
    monkeypatch.setattr(activation_recompute, "_CHUNK_LOGITS", ten_chunks)
    lean = loss_and_gradients(new_model("lean"), precision)
    for name in fast:
        if name in ("loss", "embed_out.weight"):
            tolerance = 1e-6 if precision == "fp32" else 5e-3
            assert (fast[name] - lean[name]).norm() <= tolerance * fast[name].norm()
        else:
            assert torch.equal(fast[name], lean[name]), name


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return output


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_lean_memory_never_stores_all_logits(memory, monkeypatch):
    monkeypatch.setattr(activation_recompute, "_CHUNK_LOGITS", 4001 * 16)
    model, tokens = new_model(memory, vocabulary=4001), torch.zeros(2, 65, dtype=torch.int64)
    with LargestTensor() as largest:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        with torch.no_grad():
            model.loss(tokens[:, :-1], tokens[:, 1:])
    logits, weight = 128 * 4001, 64 * 4001
    assert largest.elements == (logits if memory == "fast" else weight)


def eager_flops(model, tokens):
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return counter.get_total_flops()


def compiled_flops(model, tokens):
    """The FLOPs of the matmuls in the layers' graphs, of both passes."""
    matmul_flops = []

    def count_matmuls(graph, inputs):
        for node in graph.graph.nodes:
            if node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                left, right = (argument.meta["val"].shape for argument in node.args[-2:])
                matmul_flops.append(2 * left.numel() * right[-1])
        return nop(graph, inputs)

    torch.compiler.reset()
    for layer in model.gpt_neox.layers:
        layer.compile(fullgraph=True, dynamic=False, backend=graphs(count_matmuls))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return sum(matmul_flops)


@compiles
@pytest.mark.parametrize(
    "changed", [CHANGES["parallel"], CHANGES["sequential"]], ids=list(CHANGES)[:2]
)
def test_the_mlps_first_matmul_and_the_head_are_recomputed(changed):
    tokens = torch.zeros(2, 65, dtype=torch.int64)
    width, inner, vocabulary = 64, 256, 97

    def recomputed(flops):
        """Multiplications per token that lean memory adds."""
        fast, lean = (flops(new_model(memory, **changed), tokens) for memory in ("fast", "lean"))
        return (lean - fast) / (2 * 128)

    # Attention's output projection as well, eagerly, and where the MLP reads attention's output.
    assert recomputed(eager_flops) == 3 * (width * inner + width * width) + width * vocabulary
    sequential = width * width if changed else 0
    assert recomputed(compiled_flops) == 3 * (width * inner + sequential)


@pytest.mark.parametrize("backend", ["cudnn", "flash", "efficient"])
def test_the_attention_of_every_fused_backend_is_stored(backend):
    operator = getattr(torch.ops.aten, f"_scaled_dot_product_{backend}_attention").default
    stored = activation_recompute._recompute_policy(192, None, operator)
    recomputed = activation_recompute._recompute_policy(192, None, torch.ops.aten.gelu.default)
    assert stored == CheckpointPolicy.MUST_SAVE
    assert recomputed == CheckpointPolicy.PREFER_RECOMPUTE


def test_the_recomputed_share_of_a_step():
    model = PRESETS["pythia-410m"]
    mlp = 2 * model.layers * model.hidden * model.inner / model.flops_per_token(2048)
    head = 2 * model.vocabulary * model.hidden / model.flops_per_token(2048)
    assert mlp == pytest.approx(0.074, abs=5e-4)
    assert mlp + head == pytest.approx(0.112, abs=5e-4)


def test_a_run_learns_the_same_but_resumes_with_other_memory_only_if_accepted(
    recipe_text, tmp_path
):
    fast = run(recipe_text, tmp_path / "fast")
    assert trained_files(run(recipe_text, tmp_path / "lean", memory="lean")) == trained_files(fast)
    assert metrics(tmp_path / "lean") == metrics(tmp_path / "fast")
    run(recipe_text, tmp_path / "both", tokens=10240)
    changed = {"resume": True, "tokens": 20480, "memory": "lean"}
    with pytest.raises(CheckpointError, match="memory: fast → lean"):
        run(recipe_text, tmp_path / "both", **changed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@compiles
@pytest.mark.parametrize("kernels", ["plain", "auto"])
@pytest.mark.parametrize("separator_id", [None, 7])
def test_on_a_gpu_compiled_gradients_are_the_same(kernels, separator_id):
    from rewarm.model.kernels.selection import choose_kernels

    device, results = torch.device("cuda"), {}
    tokens = torch.randint(0, 50_000, (2, 1025), device=device)
    with device:
        model = NeoX(PRESETS["pythia-160m"])
    initialize_weights(model.cpu(), 1)
    model.to(device)
    for memory in ("fast", "lean"):
        torch.compiler.reset()
        model.configure(choose_kernels(kernels, device)[0], memory=memory)
        model.compile_layers()
        with autocast("bf16", device):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:], separator_id=separator_id)
        loss.backward()
        results[memory] = [loss.detach(), *(p.grad for p in model.parameters())]
        model.zero_grad()
    for a, b in zip(*results.values(), strict=True):
        assert (a - b).norm() <= 2e-2 * a.norm()
