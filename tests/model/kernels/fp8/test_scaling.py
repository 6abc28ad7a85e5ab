"""Products in fp8 on a CPU, which rounds as a GPU does; for the kernels, see interpreted.py."""

import json
import re

import pytest
import torch
from compiled_graphs import compiles, graphs
from safetensors.torch import load_file, save_file
from torch import nn
from training_runs import StopAfter, learnt, metrics, run

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.manifest import MANIFEST, OPTIMIZER_FILE, build_manifest
from rewarm.errors import CheckpointError, Preempted, RecipeError
from rewarm.estimates.run_plan import plan_run
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.fp8 import pytorch_reference as fp8_reference
from rewarm.model.kernels.fp8 import scaling as fp8_scaling
from rewarm.model.kernels.fp8.scaling import GRADIENT, WEIGHT, Fp8Scaling, TensorScale, X
from rewarm.model.kernels.selection import PYTORCH_KERNELS, choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.fields import OptimizerSettings
from rewarm.recipe.recipe import load_recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.training import microbatch_search
from rewarm.training.device_setup import autocast
from rewarm.training.loop import take_step
from rewarm.training.optimizer import build_adamw

CPU = torch.device("cpu")
SHAPE = Architecture(layers=2, hidden=64, heads=4, vocabulary=512, positions=64)


def scales(x=1.0, weight=1.0, gradient=1.0):
    return tuple(
        TensorScale(torch.tensor(one), torch.tensor(1 / one), torch.tensor(0.0))
        for one in (x, weight, gradient)
    )


def model(precision, **settings):
    made = NeoX(SHAPE)
    initialize_weights(made, 0)
    made.use(PYTORCH_KERNELS, precision=precision, **settings)
    return made


def batch(seed=0, sequences=8):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 64, (sequences, 65), generator=draw)


def step(made, optimizer, tokens, precision="fp8"):
    cast = autocast(precision, CPU)
    return take_step(made, optimizer, tokens, microbatch=4, lr=1e-3, clip=1.0, cast=cast)


# By hand, from the formats (arXiv:2209.05433, table 1): e4m3 has three bits behind the point, 448
# at most and 2⁻⁹ at least; e5m2 two bits, 57,344 and 2⁻¹⁶.
@pytest.mark.parametrize(
    ("which", "number", "rounded"),
    [
        *((X, *pair) for pair in [(1.0, 1.0), (1.06, 1.0), (1.07, 1.125), (-17.1, -18.0)]),
        *((X, *pair) for pair in [(447.0, 448.0), (1e4, 448.0), (-1e30, -448.0)]),
        *((WEIGHT, *pair) for pair in [(2**-9, 2**-9), (2**-11, 0.0), (1.97, 2.0)]),
        *((GRADIENT, *pair) for pair in [(1.1, 1.0), (1.2, 1.25), (5e4, 49152.0), (6e4, 57344.0)]),
        *((GRADIENT, *pair) for pair in [(1e9, 57344.0), (2**-16, 2**-16), (2**-18, 0.0)]),
    ],
)
def test_a_number_is_rounded_as_the_format_has_it_and_cut_off_at_its_end(which, number, rounded):
    known = scales()
    there, across = fp8_reference.cast8(torch.tensor([[number, 0.0]]), known, which)
    assert there.float().tolist() == [[rounded, 0.0]]
    assert across.float().tolist() == [[rounded], [0.0]]
    assert known[which].seen == abs(torch.tensor(number))


def test_what_is_not_finite_is_no_number_and_not_the_largest():
    known = scales()
    known[X].seen.fill_(2.0)
    x = torch.tensor([[1.5, torch.inf], [torch.nan, -torch.inf]])
    there, _ = fp8_reference.cast8(x, known, X)
    assert there.float()[0, 0] == 1.5
    assert there.float().isnan().sum() == 3
    assert known[X].seen == 2.0  # of this step so far


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradients_are_those_of_the_rounded_numbers(bias):
    torch.manual_seed(0)
    linear = nn.Linear(32, 48, bias=bias)
    linear.scales = known = scales(64.0, 512.0, 2.0**12)
    x = torch.randn(2, 16, 32, requires_grad=True)
    dy = torch.randn(2, 16, 48) / 100
    fp8_reference.product(x, linear).backward(dy)

    def rounded(tensor, which):
        kind, factor = fp8_scaling.FORMATS[which], known[which].factor
        return (tensor.detach() * factor).to(kind).double() / factor

    x8, weight8, dy8 = rounded(x, X), rounded(linear.weight, WEIGHT), rounded(dy, GRADIENT)
    wanted = x8 @ weight8.T + (linear.bias.detach() if bias else 0)
    with torch.enable_grad():
        torch.testing.assert_close(fp8_reference.product(x, linear).double(), wanted)
    torch.testing.assert_close(x.grad.double(), dy8 @ weight8)
    torch.testing.assert_close(linear.weight.grad.double(), dy8.flatten(0, 1).T @ x8.flatten(0, 1))
    if bias:
        torch.testing.assert_close(linear.bias.grad, dy.sum((0, 1)))
    assert [float(one.seen) for one in known] == [
        float(one.detach().abs().max()) for one in (x, linear.weight, dy)
    ]


def test_scales_are_the_largest_powers_of_two_at_which_nothing_is_cut_off():
    layers = nn.ModuleList([fp8_scaling.ScaledLinear(8, 8)])
    scaling, known = Fp8Scaling(layers), fp8_scaling.scales_of(layers[0])

    def factors():
        assert [float(one.inverse) for one in known] == [1 / float(one.factor) for one in known]
        return [float(one.factor) for one in known]

    for largest, power in [
        ((3.5, 448.0, 57344.0), (2**7, 1, 1)),  # exactly
        ((3.6, 449.0, 57345.0), (2**6, 2**-1, 2**-1)),
        ((0.0, 1e-3, 3e-7), (2**6, 2**-1, 2**-1)),  # what was before is still remembered
    ]:
        for scale, one in zip(known, largest, strict=True):
            scale.seen.fill_(one)
        scaling.follow()
        assert factors() == list(power)
        assert not any(one.seen for one in known)
    for _ in range(fp8_scaling.HISTORY - 1):
        assert known[0].factor == 2**6
        scaling.follow()
    assert factors() == [1, 2**18, 2**37]  # of the third alone
    scaling.follow()
    assert factors() == [1, 2**6, 2**20]  # as at the beginning
    for scale in known:
        scale.seen.fill_(1e-40)
    scaling.follow()
    assert factors() == [2.0**100] * 3


def test_a_first_steps_scales_are_found_whatever_was_guessed(monkeypatch):
    found = []
    for guesses in ((1.0, 2.0**6, 2.0**20), (1.0, 1.0, 1.0), (2.0**-4, 2.0**10, 2.0**40)):
        monkeypatch.setattr(fp8_scaling, "_GUESSES", guesses)
        made = model("fp8")
        passes = []
        made.scaling.settle(
            lambda made=made, passes=passes: (
                passes.append(1),
                made.loss(batch()[:, :-1], batch()[:, 1:]).backward(),
            )
        )
        assert not made.scaling.is_guess
        assert len(passes) <= 6
        found.append(made.scaling.amaxes[0])
        assert (found[-1] > 0).all()
        assert not made.scaling.amaxes[1:].any()
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=0.15, atol=0)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_steps_in_fp8_are_near_those_in_fp32(memory):
    losses = {}
    for precision in ("fp32", "fp8"):
        made = model(precision, memory=memory)
        optimizer = build_adamw(made, OptimizerSettings())
        losses[precision] = [
            float(step(made, optimizer, batch(n), precision).loss) for n in range(60)
        ]
    assert losses["fp32"][-1] < losses["fp32"][0] - 1.5
    assert losses["fp8"] == pytest.approx(losses["fp32"], rel=5e-3)
    assert losses["fp8"] != pytest.approx(losses["fp32"], rel=1e-5)  # it was rounded


def test_lean_gives_the_same_bits():
    ended = []
    for memory in ("fast", "lean"):
        made = model("fp8", memory=memory)
        optimizer = build_adamw(made, OptimizerSettings())
        for n in range(3):
            step(made, optimizer, batch(n))
        ended.append([*made.parameters(), made.scaling.amaxes])
    assert all(torch.equal(*pair) for pair in zip(*ended, strict=True))


class Overflow:
    """A gradient of which some numbers are still finite, and their squares not."""

    by = 1e34

    def __call__(self, _module, gradients):
        return tuple(one * self.by for one in gradients)


@compiles
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_compiled_it_sees_the_same_and_learns_the_same(memory):
    """Divided into forward and back as inductor does, with magnitudes noted on both ways."""
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        made = model("fp8", memory=memory)
        if compiled:
            for layer in made.gpt_neox.layers:
                layer.compile(fullgraph=True, dynamic=False, backend=graphs())
        optimizer = build_adamw(made, OptimizerSettings())
        losses = [float(step(made, optimizer, batch(n)).loss) for n in range(3)]
        found.append((losses, made.scaling.amaxes))
    (eager, seen), (losses, also) = found
    assert losses == pytest.approx(eager, rel=2e-4)
    torch.testing.assert_close(also[:3], seen[:3], rtol=0.2, atol=0)


def test_a_gradient_that_is_not_finite_reaches_the_guard_and_not_the_scales():
    made = model("fp8")
    optimizer = build_adamw(made, OptimizerSettings())
    step(made, optimizer, batch())
    before = made.scaling.amaxes[0].clone()
    made.gpt_neox.layers[1].register_full_backward_pre_hook(about_to_overflow := Overflow())
    assert step(made, optimizer, batch()).skipped == 1
    about_to_overflow.by = 1.0
    assert torch.equal(made.scaling.amaxes[0], before)
    assert step(made, optimizer, batch()).skipped == 0
    weight = made.gpt_neox.layers[1].mlp.dense_4h_to_h.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3, 4] = torch.inf
    assert step(made, optimizer, batch()).skipped == 1
    assert made.scaling.amaxes.isfinite().all()
    with torch.no_grad():
        weight.copy_(kept)
    assert step(made, optimizer, batch()).skipped == 0
    torch.testing.assert_close(made.scaling.amaxes[0], before, rtol=0.5, atol=0)


def test_only_a_layers_four_products_are_in_fp8():
    made = model("fp8")
    named = {name for name, one in made.named_modules() if hasattr(one, "scales")}
    products = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h")
    assert named == {
        f"gpt_neox.layers.{layer}.{one}"
        for layer in range(2)
        for one in (*products, "mlp.dense_4h_to_h")
    }
    with torch.no_grad(), autocast("fp8", CPU):
        found = made.loss(batch()[:, :-1], batch()[:, 1:])
        made.use(PYTORCH_KERNELS, precision="bf16")
        assert made.scaling is None
        assert made.loss(batch()[:, :-1], batch()[:, 1:]) == found


def test_twenty_steps_are_seven_and_thirteen(recipe_text, tmp_path, monkeypatch):
    text = recipe_text.replace("precision: fp32", "precision: fp8")
    straight = run(text, tmp_path / "straight")
    half = tmp_path / "half"
    with monkeypatch.context() as patch:
        StopAfter(patch, 7)
        with pytest.raises(Preempted):
            run(text, half)
    assert learnt(run(text, half, resume=True)) == learnt(straight)
    assert metrics(half) == metrics(tmp_path / "straight")


def test_a_run_may_go_on_in_another_precision(recipe_text, tmp_path, capfd):
    there = tmp_path / "run"
    run(recipe_text, there, precision="bf16", tokens=10240, every__save="null")
    changed = {"resume": True, "accept_changes": True}
    run(recipe_text, there, precision="fp8", tokens=15360, **changed)
    last = run(recipe_text, there, precision="bf16", tokens=20480, **changed)
    assert last.name == "step-00000020"
    losses = [line["loss"] for line in metrics(there) if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    said = capfd.readouterr().err
    assert "runs    in fp8 on cpu, which rounds as a GPU does, slower than in bf16" in said
    assert "precision: bf16 → fp8" in said


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda t: t[:, :1], "torch.float32 (16, 1, 3), and wanted is fp32 (16, 8, 3)"),
        (lambda t: t.half(), "torch.float16 (16, 8, 3), and wanted is fp32 (16, 8, 3)"),
        (lambda t: t * torch.nan, "not magnitudes"),
        (lambda t: t + torch.inf, "not magnitudes"),
        (lambda t: -t - 1, "not magnitudes"),
    ],
)
def test_amaxes_that_are_none_are_refused(damage, what):
    made = model("fp8")
    with pytest.raises(ValueError, match=re.escape(what)):
        made.scaling.load(damage(torch.zeros(16, 8, 3)))


def test_damaged_amaxes_of_a_checkpoint_are_one_error(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run", precision="fp8", tokens=10240)
    last = last_checkpoint(tmp_path / "run")
    state = load_file(last / OPTIMIZER_FILE)
    save_file(state | {"fp8/amaxes": state["fp8/amaxes"] - 1e9}, last / OPTIMIZER_FILE)
    (last / MANIFEST).unlink()
    (last / MANIFEST).write_text(json.dumps(build_manifest(last)))
    with pytest.raises(CheckpointError, match=r"fp8/amaxes: not magnitudes.*another checkpoint"):
        run(recipe_text, tmp_path / "run", precision="fp8", resume=True, accept_changes=True)


def test_what_a_gpu_could_not_multiply_is_refused(recipe_text, tmp_path):
    with pytest.raises(RecipeError, match=r"context: 40 is not a multiple of 16.*nearest is 32"):
        run(recipe_text, tmp_path, precision="fp8", data__context=40, batch__tokens=1280)
    narrow = recipe_text.replace("hidden: 32, heads: 2", "hidden: 40, heads: 5")
    with pytest.raises(RecipeError, match="hidden width of 40 is not a multiple of 16"):
        run(narrow, tmp_path / "narrow", precision="fp8")
    assert not (tmp_path / "narrow" / "metrics.jsonl").exists()


def test_check_says_so_too(recipe_text):
    narrow = recipe_text.replace("hidden: 32, heads: 2", "hidden: 40, heads: 5")
    document = YamlDocument(narrow.replace("fp32", "fp8"), "recipe.yaml")
    _, problem = plan_run(validate_recipe(document))
    assert isinstance(problem, RecipeError)
    assert "hidden width of 40" in str(problem)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks of a GPU that is not there")
@pytest.mark.parametrize(("capability", "works"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_an_older_gpu_is_refused_by_its_name(monkeypatch, recipe_file, capability, works):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    if works:
        assert fp8_scaling.check_fp8_device(torch.device("cuda")) == ""
    else:
        old = r"A100.* multiplies no 8-bit floats.*bf16"
        with pytest.raises(RecipeError, match=old):
            fp8_scaling.check_fp8_device(torch.device("cuda"))
        with pytest.raises(RecipeError, match=old):  # before a microbatch is tried for its memory
            microbatch_search._remembered(
                load_recipe(recipe_file, ["precision=fp8"]), torch.device("cuda")
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("setting", ["plain", "auto"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_on_a_gpu_twenty_compiled_steps_have_the_losses_of_bf16(setting, memory):
    device, shape = torch.device("cuda"), PRESETS["pythia-410m"].model_copy(update={"layers": 4})
    chosen, _ = choose_kernels(setting, device)
    losses, grad_norms = {}, {}
    for precision in ("bf16", "fp8"):
        torch.compiler.reset()
        made = NeoX(shape)
        initialize_weights(made, 0)
        made.to(device).use(chosen, memory=memory, precision=precision)
        made.compile_layers()
        optimizer, cast = build_adamw(made, OptimizerSettings()), autocast(precision, device)
        draw = torch.Generator().manual_seed(2)
        tokens = torch.randint(0, 700, (20, 4, 2049), generator=draw)
        taken = [
            take_step(made, optimizer, one, microbatch=2, lr=3e-4, clip=1.0, cast=cast)
            for one in tokens
        ]
        losses[precision] = [float(one.loss) for one in taken]
        grad_norms[precision] = [float(one.grad_norm) for one in taken]
    assert losses["bf16"][-1] < losses["bf16"][0]
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=5e-3)
    assert grad_norms["fp8"] == pytest.approx(grad_norms["bf16"], rel=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_kernels_round_as_plain_pytorch_does():
    from rewarm.model.kernels.fp8 import rounding

    torch.manual_seed(0)
    x = torch.randn(2048, 1024, device="cuda") * torch.randn(2048, 1024, device="cuda").exp()
    for which in (X, WEIGHT, GRADIENT):
        for dtype in (torch.float32, torch.bfloat16):
            one, other = (
                [
                    TensorScale(*(part.cuda() for part in scale))
                    for scale in scales(64.0, 64.0, 512.0)
                ]
                for _ in range(2)
            )
            found = rounding.cast8(x.to(dtype), one, which)
            wanted = fp8_reference.cast8(x.to(dtype), other, which)
            for pair in zip(found, wanted, strict=True):
                assert torch.equal(*(p.view(torch.uint8) for p in pair))
            assert one[which].seen == other[which].seen
