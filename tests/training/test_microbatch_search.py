import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from training_runs import signal_in_step, trained_files, run

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.errors import CheckpointError, Preempted, RecipeError
from rewarm.estimates.run_plan import plan_as_text, plan_run
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.selection import PYTORCH_KERNELS, choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.training import microbatch_search
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass

SHAPE = Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16)
CUDA = torch.device("cuda")

BROKEN = """
from functools import partial
import torch
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass
from rewarm.model.architecture import Architecture
from rewarm.training.device_setup import autocast
from rewarm.model.neox import NeoX, initialize_weights

model = NeoX(Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16))
initialize_weights(model, 3)
tokens = torch.arange(32).reshape(2, 16)
before = model.loss(tokens, tokens)
cast = autocast("fp32", torch.device("cpu"))
attempt = partial(run_trial_pass, model, microbatch=2, context=16, cast=cast)
for line in compile_or_run_eagerly(model, attempt):
    print(line)
print(torch.equal(before, model.loss(tokens, tokens)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["/nowhere/c++", "/bin/false"])
def test_a_compiler_that_is_missing_or_fails_costs_a_line_and_speed(tmp_path, compiler):
    away = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN], capture_output=True, text=True, check=False,
        env={**os.environ, **away},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    warning, same = ended.stdout.splitlines()
    assert warning.startswith("warning: the layers cannot be compiled and run one operation at a")
    assert "set compile: false" in warning
    assert len(warning) < 450
    assert same == "True"
    assert "Traceback" not in ended.stderr


def test_what_fails_without_a_compiler_too_is_told_as_it_is():
    def attempt():
        raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        compile_or_run_eagerly(NeoX(SHAPE), attempt)


def test_layers_that_compile_stay_compiled():
    model, seen = NeoX(SHAPE), []
    initialize_weights(model, 1)
    assert compile_or_run_eagerly(model, lambda: seen.append("tried")) == []
    assert seen == ["tried"]
    assert all(layer._compiled_call_impl for layer in model.gpt_neox.layers)


def test_a_trial_leaves_nothing_behind():
    model = NeoX(SHAPE)
    initialize_weights(model, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cast = torch.autocast("cpu", enabled=False)
    run_trial_pass(model, microbatch=2, context=16, cast=cast, separator=0, parts=2)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("number", [1, 2, 12, 97, 1104])
def test_divisors(number):
    assert microbatch_search.divisors(number) == [
        n for n in range(1, number + 1) if number % n == 0
    ]


@pytest.mark.parametrize("guess", microbatch_search.divisors(1104))
@pytest.mark.parametrize("most", [0, 1, 5, 16, 47, 1104])
def test_the_largest_that_fits_is_found_from_any_guess(guess, most):
    choices, tried = microbatch_search.divisors(1104), []

    def fits(n):
        tried.append(n)
        return n <= most

    assert microbatch_search.largest_that_fits(choices, guess, fits) == max(
        (n for n in choices if n <= most), default=None
    )
    assert len(tried) == len(set(tried))


AUTO = {"batch": "{tokens: 1024, microbatch: auto}"}


def test_on_a_cpu_it_is_a_rule_and_written_down(recipe_text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        microbatch_search, "_ON_A_CPU", 300
    )  # of the divisors of 16 sequences of 64: 4
    four = {"batch": "{tokens: 1024, microbatch: 4}"}
    said = run(recipe_text, tmp_path / "said", **four)
    found = run(recipe_text, tmp_path / "auto", **AUTO)
    assert "at once 4 × 64 tokens (auto: the rule for a CPU)" in capsys.readouterr().err
    assert trained_files(found) == trained_files(said)
    for path in (tmp_path / "auto" / "recipe.yaml", found / "recipe.yaml"):
        assert YamlDocument.load(path).data["batch"]["microbatch"] == 4


def test_a_resume_takes_what_the_run_began_with(recipe_text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(microbatch_search, "_ON_A_CPU", 300)
    straight = run(recipe_text, tmp_path / "straight", **AUTO)
    signal_in_step(monkeypatch, 7)
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "stopped", **AUTO)
    monkeypatch.undo()  # now it would be 16
    with pytest.raises(CheckpointError, match="already has checkpoints"):
        run(recipe_text, tmp_path / "stopped", **AUTO)
    assert trained_files(run(recipe_text, tmp_path / "stopped", resume=True, **AUTO)) == trained_files(straight)
    assert "at once 4 × 64 tokens, as the run began (auto)" in capsys.readouterr().err


def test_another_batch_needs_another_number_and_a_word(recipe_text, tmp_path, monkeypatch):
    monkeypatch.setattr(microbatch_search, "_ON_A_CPU", 300)
    run(recipe_text, tmp_path / "run", tokens=10240, **AUTO)
    other = {"batch": "{tokens: 384, microbatch: auto}"}  # 6 sequences: not a whole number of 4
    with pytest.raises(CheckpointError, match=r"batch\.microbatch: 4 → 3"):
        run(recipe_text, tmp_path / "run", resume=True, **other)


def checked(text, *overrides):
    document = YamlDocument(text, "r.yaml")
    for override in overrides:
        document.apply_override(override)
    return validate_recipe(document)


def test_the_arithmetic_holds_without_a_number(thousand_steps):
    auto = checked(thousand_steps, "batch.microbatch=auto")
    assert (auto.steps, auto.sequences_per_step) == (1000, 100)
    assert auto.document()["batch"]["microbatch"] == "auto"
    assert Recipe.model_validate(auto.document()) == auto
    with pytest.raises(RecipeError) as error:
        checked(thousand_steps, "batch.microbatch=auto", "batch.tokens=100_400")
    assert (
        "batch.tokens: should be a whole number of sequences of 1,000 tokens, got 100,400; "
        "try 100,000" in str(error.value)
    )
    with pytest.raises(RecipeError, match=r"batch.microbatch: .*\(got 'most'\)"):
        checked(thousand_steps, "batch.microbatch=most")


def test_check_says_what_one_sequence_takes(thousand_steps):
    said = plan_as_text(plan_run(checked(thousand_steps, "batch.microbatch=auto"))[0])
    assert "1 GPU × 100 sequences × 1,000 tokens = 100,000 tokens, as many at once as fit" in said
    assert "logits, with one sequence at once\n" in said
    assert re.search(r"\n +[\d.]+ MB at the peak with memory: lean$", said)
    lean = plan_as_text(
        plan_run(checked(thousand_steps, "batch.microbatch=auto", "memory=lean"))[0]
    )
    assert re.search(r"MB made again, with one sequence .+\n +[\d.]+ MB at .+ memory: fast$", lean)
    # 12 bytes × 1,000 tokens × 50,304 rows.
    assert "603.65 MB logits" in said


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU as far as the search asks it: 10 GB are free, and 20 sequences fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**10, 10**11))
    monkeypatch.setattr(microbatch_search, "device_name", lambda _: "NVIDIA X1")
    tried = []
    monkeypatch.setattr(
        microbatch_search, "_fits", lambda _r, _s, n, *_: tried.append(n) or n <= 20
    )
    return tried


def settled(text, *overrides):
    found, (line,) = microbatch_search.resolve_microbatch(
        checked(text, "batch.microbatch=auto", *overrides)
    )
    return found.batch.microbatch, line


def test_on_a_gpu_it_is_tried_once_and_remembered(thousand_steps, gpu, tmp_path):
    assert settled(thousand_steps) == (
        20,
        "at once 20 × 1,000 tokens (auto: the largest that fits NVIDIA X1)",
    )
    tries = len(gpu)
    assert 25 in gpu  # the next larger divisor of 100 was tried
    number, line = settled(thousand_steps)
    path = tmp_path / "cache" / "rewarm" / "microbatch.json"
    assert (number, len(gpu)) == (20, tries)
    assert f"it fitted NVIDIA X1 before, says {path}" in line
    for other in ("precision=fp32", "data.context=500", "compile=false", "memory=lean"):
        settled(thousand_steps, other)
        assert len(gpu) > tries
        tries = len(gpu)
    for notes in ("[]", "{", json.dumps(dict.fromkeys(json.loads(path.read_text()), 7))):
        path.write_text(notes)  # 7 does not divide 100
        assert settled(thousand_steps)[0] == 20


def test_the_guess_is_the_arithmetic_of_memory(thousand_steps, gpu, monkeypatch):
    settled(thousand_steps)
    # 16 bytes × 14.07M parameters rest; a sequence takes 0.60 GB of logits and 0.04 of activations.
    assert gpu[0] == 10


def test_where_nothing_fits_the_recipe_is_to_blame(thousand_steps, gpu, monkeypatch):
    monkeypatch.setattr(microbatch_search, "_fits", lambda *_: False)
    with pytest.raises(RecipeError, match="not even one sequence of 1,000 tokens fits") as error:
        settled(thousand_steps)
    assert error.value.exit_code == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("how", ["compile=true", "compile=false"])
def test_the_search_on_a_gpu_ends_at_the_largest(thousand_steps, monkeypatch, tmp_path, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 10**9, 10**11))
    said = checked(thousand_steps, "batch={tokens: 64_000, microbatch: auto}", "kernels=plain", how)
    before = torch.cuda.memory_allocated()
    found, _ = microbatch_search.resolve_microbatch(said)
    most = found.microbatch
    shape, free = PRESETS["pythia-14m"], int(0.95 * 8e9)
    fits = partial(
        microbatch_search._fits, said, shape, device=CUDA, free=free, chosen=PYTORCH_KERNELS
    )
    assert 4 <= most <= 16
    assert fits(most)
    assert not fits(2 * most)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_does_not_fit_at_all_is_no_crash(thousand_steps):
    said = checked(thousand_steps, "batch={tokens: 40M, microbatch: auto}")
    chosen, _ = choose_kernels("auto", CUDA)
    assert not microbatch_search._fits(said, PRESETS["pythia-14m"], 40_000, CUDA, 10**12, chosen)
    assert microbatch_search._fits(said, PRESETS["pythia-14m"], 1, CUDA, 10**12, chosen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_precision_trains_and_resumes_on_a_gpu(recipe_text, tmp_path, precision):
    settings = {"precision": precision, **AUTO, "tokens": 10240, "deterministic": True}
    straight = run(recipe_text, tmp_path / "straight", **settings)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, 5)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped", **settings)
    resumed = run(recipe_text, tmp_path / "stopped", resume=True, **settings)
    assert trained_files(resumed) == trained_files(straight)
    assert last_checkpoint(tmp_path / "stopped") == resumed
