"""The order of attention's backends, and the one that ran."""

import pytest
import torch
from compiled_graphs import compiles, graphs
from functorch.compile import nop
from tiny_models import random_tokens, tiny_model
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from rewarm.model.architecture import Architecture
from rewarm.model.attention_backend import (
    BACKENDS,
    choose_backend,
    cudnn_version,
    observed_backend,
    preferred_backend,
    set_first_backend,
)
from rewarm.model.kernels.selection import choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.training.device_setup import autocast, set_up_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDNN_9_19 = 91900


@pytest.fixture(autouse=True)
def _restore_order():
    everything = _cur_sdpa_kernel_backends(with_priority=True)
    with (
        torch.compiler.config.patch(cache_key_tag=""),
        sdpa_kernel(everything, set_priority=True),
    ):
        yield


@pytest.mark.parametrize(
    ("capability", "cudnn", "deterministic", "expected"),
    [
        ((9, 0), CUDNN_9_19, False, "cuDNN"),
        ((9, 0), 91501, False, "cuDNN"),
        ((9, 0), 91500, False, "flash"),
        ((9, 0), 0, False, "flash"),
        ((9, 0), CUDNN_9_19, True, "flash"),
        ((8, 0), CUDNN_9_19, False, "flash"),
        ((8, 9), CUDNN_9_19, False, "flash"),
        ((10, 0), CUDNN_9_19, False, "flash"),
        ((12, 0), CUDNN_9_19, False, "flash"),
    ],
)
def test_cudnn_is_preferred_on_hopper_only(capability, cudnn, deterministic, expected):
    assert preferred_backend(capability, cudnn, deterministic=deterministic) == expected


@pytest.mark.parametrize("first", BACKENDS)
def test_the_backends_below_the_first_are_its_fallbacks(first):
    cudnn, flash = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
    efficient, math = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    set_first_backend(first)
    assert (
        _cur_sdpa_kernel_backends(with_priority=True)
        == {
            "cuDNN": [cudnn, flash, efficient, math],
            "flash": [flash, efficient, math],
            "efficient": [efficient, math],
            "math": [math],
        }[first]
    )


def test_a_cpu_keeps_pytorchs_order():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    choose_backend(CPU, deterministic=False)
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_the_compile_caches_keep_a_users_own_tag(monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_CACHE_KEY_TAG", "mine")
    tags = []
    for first in BACKENDS:
        set_first_backend(first)
        tags.append(torch.compiler.config.cache_key_tag)
    assert len(set(tags)) == len(BACKENDS)
    assert all(tag.startswith("mine ") for tag in tags)


def operators(run):
    """The names of all operators that ran, by PyTorch's current profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        run()
    return {event.name for event in profiler.events()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("separator_id", [None, 3])
@pytest.mark.parametrize(
    ("first", "expected", "operator"),
    [
        ("cuDNN", "flash", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("flash", "flash", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("efficient", "math", "aten::_scaled_dot_product_attention_math"),
        ("math", "math", "aten::_scaled_dot_product_attention_math"),
    ],
)
def test_the_backend_that_ran_on_a_cpu(first, expected, operator, separator_id, precision):
    model, tokens = tiny_model(), random_tokens()

    def run():
        with autocast(precision, CPU):
            model.loss(tokens[:, :-1], tokens[:, 1:], separator_id=separator_id).backward()

    set_first_backend(first)
    assert observed_backend(run) == expected
    attention = {name for name in operators(run) if name.startswith("aten::_scaled_dot_product")}
    assert attention in ({operator}, {operator, f"{operator}_backward"})


def test_all_backends_that_ran_are_named_and_none_if_there_was_no_attention():
    q = torch.ones(1, 1, 4, 8)

    def run():
        for first in ("flash", "math"):
            set_first_backend(first)
            scaled_dot_product_attention(q, q, q)

    assert observed_backend(run) == "flash and math"
    assert observed_backend(lambda: q + q) is None


@compiles
@pytest.mark.parametrize("first", ["cuDNN", "flash", "math"])
def test_layers_stay_one_graph_with_the_same_numbers(first):
    model, tokens, compiled_graphs = tiny_model(), random_tokens(), []

    def loss():
        return model.loss(tokens[:, :-1], tokens[:, 1:])

    def count_graphs(graph, inputs):
        compiled_graphs.append(graph)
        return nop(graph, inputs)

    set_first_backend(first)
    eager = loss()
    torch.compiler.reset()
    backend = graphs(count_graphs)
    for layer in model.gpt_neox.layers:
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
    compiled = loss()
    compiled.backward()
    assert len(compiled_graphs) == 2  # forward and backward
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=0)
    assert observed_backend(loss) == (None if first == "math" else "flash")


@pytest.mark.slow
@compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_compile_caches_do_not_return_a_layer_with_another_backend(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, tokens = tiny_model(), random_tokens()

    def run():
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()

    observed = []
    for first in ("flash", "math", "flash"):
        set_first_backend(first)
        torch.compiler.reset()
        model.compile_layers()
        run()  # compiles
        observed.append(observed_backend(run))
    assert observed == ["flash", None, "flash"]


def new_model(heads, head_size):
    model = NeoX(
        Architecture(layers=2, hidden=heads * head_size, heads=heads, vocabulary=512, positions=256)
    )
    initialize_weights(model, 0)
    return model.to(GPU)


def loss_and_gradients(model, tokens, precision="bf16", **arguments):
    with autocast(precision, GPU):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], **arguments)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return [loss.detach(), *gradients]


@pytest.fixture
def gpu_tokens():
    torch.manual_seed(0)
    return torch.randint(0, 512, (4, 257), device=GPU)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("head_size", [64, 80, 128])  # those of Pythia
def test_on_a_gpu_the_preferred_backend_runs(head_size, precision, gpu_tokens):
    set_up_device(GPU, tf32=False, deterministic=False)
    model = new_model(2, head_size)
    expected = preferred_backend(
        torch.cuda.get_device_capability(), cudnn_version(), deterministic=False
    )
    observed = observed_backend(lambda: loss_and_gradients(model, gpu_tokens, precision))
    assert observed == ("efficient" if precision == "fp32" else expected)


@pytest.mark.gpu
@gpu
def test_on_hopper_cudnn_runs_unless_deterministic(gpu_tokens):
    if torch.cuda.get_device_capability() != (9, 0) or cudnn_version() < 91501:
        pytest.skip("neither Hopper nor cuDNN 9.15.1")
    model = new_model(4, 64)
    observed = []
    for deterministic in (False, True, False):
        set_up_device(GPU, tf32=False, deterministic=deterministic)
        observed.append(observed_backend(lambda: loss_and_gradients(model, gpu_tokens)))
    assert observed == ["cuDNN", "flash", "cuDNN"]


@pytest.mark.gpu
@gpu
def test_on_a_gpu_separate_documents_use_flex_attention(gpu_tokens):
    set_up_device(GPU, tf32=False, deterministic=False)
    model = new_model(4, 64)
    model.compile_layers()
    assert observed_backend(lambda: loss_and_gradients(model, gpu_tokens, separator_id=3)) is None


@pytest.mark.gpu
@gpu
@compiles
@pytest.mark.parametrize(
    ("head_size", "compiled"), [(64, False), (80, False), (128, False), (64, True)]
)
def test_on_a_gpu_all_backends_agree(head_size, compiled, gpu_tokens):
    model = new_model(2, head_size)
    set_first_backend("math")
    exact = loss_and_gradients(model, gpu_tokens, "fp32")
    model.configure(choose_kernels("auto", GPU)[0])
    for first in BACKENDS:
        set_first_backend(first)
        if compiled:
            torch.compiler.reset()
            model.compile_layers()
        result = loss_and_gradients(model, gpu_tokens)
        observed = observed_backend(lambda: loss_and_gradients(model, gpu_tokens))
        assert observed == (None if compiled and first == "math" else first)
        assert result[0].item() == pytest.approx(exact[0].item(), rel=2e-3)
        for a, b in zip(result[1:], exact[1:], strict=True):
            assert (a - b).norm() <= 3e-2 * b.norm(), first


@pytest.mark.gpu
@gpu
@compiles
@pytest.mark.parametrize("first", ["cuDNN", "flash"])
def test_on_a_gpu_lean_memory_does_not_recompute_attention(first, gpu_tokens):
    model = new_model(4, 64)
    model.configure(choose_kernels("auto", GPU)[0], memory="lean")
    set_first_backend(first)
    model.compile_layers()
    loss_and_gradients(model, gpu_tokens)
    with torch.autograd.profiler_legacy.profile() as profile:
        loss_and_gradients(model, gpu_tokens)
    name = BACKENDS[first].name.lower()
    forward = [e for e in profile.function_events if e.name == f"aten::_scaled_dot_product_{name}"]
    assert len(forward) == len(model.gpt_neox.layers)
