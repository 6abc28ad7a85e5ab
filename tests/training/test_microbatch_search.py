"""`microbatch: auto`: the rule for a CPU, the search on a GPU, and what a resume uses."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from training_runs import metrics, recipe_with, run, signal_in_step, trained_files

from recipes import recipe_of
from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.errors import CheckpointError, Preempted, RecipeError
from rewarm.model.architecture import PRESETS
from rewarm.model.kernels.selection import PYTORCH_KERNELS, choose_kernels
from rewarm.recipe import batch_split
from rewarm.recipe.batch_split import divisors
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.runs.resolve_run import resolve
from rewarm.training import microbatch_search
from rewarm.training.microbatch_search import largest_that_fits, resolve_microbatch

CUDA = torch.device("cuda")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("guess", divisors(1104))
@pytest.mark.parametrize("most", [0, 1, 5, 16, 47, 1104])
def test_largest_that_fits_is_found_from_any_guess(guess, most):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= most

    expected = max((n for n in divisors(1104) if n <= most), default=None)
    assert largest_that_fits(divisors(1104), guess, fits) == expected
    assert len(tried) == len(set(tried))


AUTO = {"batch": "{tokens: 1024}"}  # the default


@pytest.fixture
def at_most_four(monkeypatch):
    """Has the rule for a CPU choose 4 of the divisors of 16 sequences of 64 tokens."""
    with monkeypatch.context() as patch:
        patch.setattr(batch_split, "_CPU_TOKENS", 300)
        yield patch


def test_on_a_cpu_a_rule_decides_and_the_number_is_saved(
    recipe_text, tmp_path, at_most_four, capsys
):
    given = run(recipe_text, tmp_path / "given", batch="{tokens: 1024, microbatch: 4}")
    auto = run(recipe_text, tmp_path / "auto", **AUTO)
    assert "batch   4 × 64 tokens at once (auto: the rule for a CPU)" in capsys.readouterr().err
    assert trained_files(auto) == trained_files(given)
    for path in (tmp_path / "auto" / "recipe.yaml", auto / "recipe.yaml"):
        assert YamlDocument.load(path).data["batch"]["microbatch"] == 4


def test_a_resume_uses_the_number_that_the_run_was_started_with(
    recipe_text, tmp_path, at_most_four, capsys
):
    straight = run(recipe_text, tmp_path / "straight", **AUTO)
    signal_in_step(at_most_four, 7)
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "stopped", **AUTO)
    at_most_four.undo()  # the rule says 16 from here on
    with pytest.raises(CheckpointError, match="already has checkpoints"):
        run(recipe_text, tmp_path / "stopped", **AUTO)
    resumed = run(recipe_text, tmp_path / "stopped", resume=True, **AUTO)
    assert trained_files(resumed) == trained_files(straight)
    errors = capsys.readouterr().err
    assert "batch   4 × 64 tokens at once (auto: as the run was started)" in errors


def test_another_batch_has_another_number(recipe_text, tmp_path, at_most_four):
    run(recipe_text, tmp_path / "run", tokens=10240, **AUTO)
    six_sequences = {"batch": "{tokens: 384, microbatch: auto}"}
    with pytest.raises(CheckpointError, match=r"batch\.tokens: 1024 → 384"):
        run(recipe_text, tmp_path / "run", resume=True, **six_sequences)
    resolved = resolve(
        recipe_with(recipe_text, tmp_path / "run", **six_sequences),
        resume=True, accept_changes=True,
    )  # fmt: skip
    assert resolve_microbatch(resolved)[0].recipe.batch.microbatch == 3


def test_steps_are_known_before_the_microbatch_is(thousand_steps):
    recipe = recipe_of(thousand_steps, "batch.microbatch=auto")
    assert (recipe.steps, recipe.sequences_per_step) == (1000, 100)
    assert recipe.document()["batch"]["microbatch"] == "auto"
    assert Recipe.model_validate(recipe.document()) == recipe
    with pytest.raises(RecipeError) as error:
        recipe_of(thousand_steps, "batch.microbatch=auto", "batch.tokens=100_400")
    assert (
        "batch.tokens: should be a whole number of sequences of 1,000 tokens (data.context), got "
        "100,400; try 100,000" in str(error.value)
    )
    with pytest.raises(RecipeError, match=r"batch.microbatch: .*\(got 'most'\)"):
        recipe_of(thousand_steps, "batch.microbatch=most")


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """A GPU with 10 GB free where 20 sequences fit; returns the numbers that the search tries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**10, 10**11))
    monkeypatch.setattr(microbatch_search, "device_name", lambda _: "NVIDIA X1")
    numbers = []

    def fits(_recipe, _architecture, microbatch, *_):
        numbers.append(microbatch)
        return microbatch <= 20

    monkeypatch.setattr(microbatch_search, "_fits", fits)
    return numbers


def search(text, *overrides):
    """The microbatch that `auto` becomes for pythia-14m, and the line that is printed."""
    recipe = recipe_of(text, "batch.microbatch=auto", *overrides)
    resolved, (line,) = resolve_microbatch(resolve(recipe))
    return resolved.recipe.batch.microbatch, line


def test_on_a_gpu_it_is_searched_once_and_remembered(thousand_steps, tried, tmp_path):
    assert search(thousand_steps) == (
        20,
        "batch   20 × 1,000 tokens at once (auto: the largest that fits NVIDIA X1)",
    )
    assert 25 in tried  # the next larger divisor of 100
    tries = len(tried)
    number, line = search(thousand_steps)
    path = tmp_path / "cache" / "rewarm" / "microbatch.json"
    assert (number, len(tried)) == (20, tries)
    assert f"it fitted NVIDIA X1 before, says {path}" in line
    for other in ("precision=fp32", "data.context=500", "compile=false", "memory=lean"):
        search(thousand_steps, other)
        assert len(tried) > tries
        tries = len(tried)
    for content in ("[]", "{", json.dumps(dict.fromkeys(json.loads(path.read_text()), 7))):
        path.write_text(content)  # 7 does not divide 100
        assert search(thousand_steps)[0] == 20


def test_the_search_starts_at_the_estimate_of_memory(thousand_steps, tried):
    search(thousand_steps)
    # 16 bytes × 14.07M parameters rest; a sequence takes 0.60 GB of logits and 0.04 of activations.
    assert tried[0] == 10


def test_a_recipe_of_which_nothing_fits_is_refused(thousand_steps, tried, monkeypatch):
    monkeypatch.setattr(microbatch_search, "_fits", lambda *_: False)
    with pytest.raises(RecipeError, match="not even one sequence of 1,000 tokens fits") as error:
        search(thousand_steps)
    assert error.value.exit_code == 2


def test_where_gpus_divide_the_weights_arithmetic_decides(thousand_steps, tried, monkeypatch):
    def divided(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**11))
        recipe = recipe_of(thousand_steps, "batch.microbatch=auto", "parallel.shard=all")
        four = SimpleNamespace(size=4, gather=lambda number: [number])
        resolved, (line,) = resolve_microbatch(resolve(recipe), four)
        return resolved.recipe.batch.microbatch, line

    # 85 % of 5 GB hold 5 sequences of 0.64 GB; of 10, each GPU would run 9 of its 25 at once.
    assert divided(5 * 10**9) == (
        5,
        "batch   at most 5 × 1,000 tokens at once (auto: fits NVIDIA X1 by arithmetic, which "
        "`rewarm check --gpus 4` shows)",
    )
    assert tried == []
    with pytest.raises(RecipeError, match="not even one sequence of 1,000 tokens fits"):
        divided(5 * 10**8)


@pytest.mark.gpu
@gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("compiled", ["compile=true", "compile=false"])
def test_the_search_on_a_gpu_ends_at_the_largest(thousand_steps, monkeypatch, tmp_path, compiled):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 10**9, 10**11))
    overrides = ("batch={tokens: 64_000, microbatch: auto}", "kernels=plain", compiled)
    recipe, architecture = recipe_of(thousand_steps, *overrides), PRESETS["pythia-14m"]
    before = torch.cuda.memory_allocated()
    resolved, _ = resolve_microbatch(resolve(recipe))
    most = resolved.recipe.microbatch
    fits = partial(
        microbatch_search._fits, recipe, architecture, device=CUDA, free=int(0.95 * 8e9),
        kernels=PYTORCH_KERNELS,
    )  # fmt: skip
    assert 4 <= most <= 16
    assert fits(most)
    assert not fits(2 * most)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
@gpu
def test_a_step_that_does_not_fit_in_the_gpu_is_no_crash(thousand_steps):
    recipe = recipe_of(thousand_steps, "batch={tokens: 40M, microbatch: auto}")
    kernels, _ = choose_kernels("auto", CUDA)
    fits = partial(
        microbatch_search._fits, recipe, PRESETS["pythia-14m"],
        device=CUDA, free=10**12, kernels=kernels,
    )  # fmt: skip
    assert not fits(40_000)
    assert fits(1)


@pytest.mark.gpu
@gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_each_precision_trains_and_resumes_exactly_on_a_gpu(recipe_text, tmp_path, precision):
    settings = {"precision": precision, **AUTO, "tokens": 10240, "deterministic": True}
    straight = run(recipe_text, tmp_path / "straight", **settings)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, 5)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped", **settings)
    resumed = run(recipe_text, tmp_path / "stopped", resume=True, **settings)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    assert last_checkpoint(tmp_path / "stopped") == resumed
