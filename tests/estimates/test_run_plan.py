"""The plan of a run: its arithmetic by hand, as text and as JSON."""

import json
import re

import pytest

from rewarm import schedules
from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.data.shard_format import ShardIndex, ShardInfo, TokenizerInfo
from rewarm.errors import DataError, RecipeError
from rewarm.estimates import run_plan
from rewarm.estimates.run_plan import RunPlan, plan_as_text, plan_run
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.runs.resolve_run import resolve


def write_index(folder, tokens: int) -> None:
    """Writes a folder of shards as far as `check` reads it: its index."""
    folder.mkdir(parents=True)
    shard = ShardInfo(
        name="00000.tar", documents=9, tokens=tokens, bytes=10_240 + 2 * tokens, sha256="0" * 64
    )
    info = TokenizerInfo(digest="d", vocabulary=50_277, eos=0, eos_token="<|endoftext|>")
    index = ShardIndex(tokenizer=info, dtype="uint16", shards=[shard])
    (folder / "index.json").write_text(index.model_dump_json())
    (folder / "tokenizer.json").touch()
    for shard in index.shards:
        with (folder / shard.name).open("wb") as tar:
            tar.truncate(shard.bytes)  # all zeros, without a disk block


@pytest.fixture
def text(tmp_path) -> str:
    """The recipe of shared/design.md, from new weights."""
    return f"""\
run: runs/pythia-410m-rewarm
tokens: 10B
model: {{preset: pythia-410m}}
data:
  context: 2048
  train:
    downstream: {{shards: {tmp_path}/new, weight: 0.95}}
    upstream: {{shards: {tmp_path}/old, weight: 0.05}}
  validation:
    downstream: {{shards: {tmp_path}/new-val, tokens: 20M}}
    upstream: {{shards: {tmp_path}/old-val}}
batch: {{tokens: 2_097_152, microbatch: 16}}
schedule:
  {{name: rewarm, start_lr: 3e-5, peak_lr: 3e-4, min_lr: 3e-5, warmup: 1%, decay: clipped-cosine}}
every: {{log: 10, evaluate: 500, save: 1000}}
"""


@pytest.fixture
def data(tmp_path):
    """4.75B tokens of the new corpus, 1B of the old, 50M and 7M for validation."""
    for name, tokens in (
        ("new", 4_750_000_000),
        ("old", 1_000_000_000),
        ("new-val", 50_000_000),
        ("old-val", 7_000_000),
    ):
        write_index(tmp_path / name, tokens)


def checked(text: str, *overrides: str) -> Recipe:
    document = YamlDocument(text, "r.yaml")
    for override in overrides:
        document.apply_override(override)
    return validate_recipe(document, base_lr=last_lr_of_base)


def planned(text: str, *overrides: str) -> tuple[RunPlan, Exception | None]:
    """The plan of a recipe, and the first thing that prevents its run."""
    resolved = resolve(checked(text, *overrides))
    return plan_run(resolved), next(iter(resolved.problems), None)


def test_steps_parameters_memory_and_disk_by_hand(text, data):
    plan, problem = planned(text)
    assert problem is None
    assert plan.problems == []
    # 10^10 / 2,097,152 = 4,768.37; 2,097,152 / (16 · 2,048) = 64; 4,768 · 2,097,152.
    assert (plan.steps, plan.accumulation, plan.tokens) == (4768, 64, 9_999_220_736)
    assert plan.model.parameters == 405_334_016
    assert f"{plan.model.flops_per_token:.4e}" == "2.7269e+09"
    # 4 bytes a parameter for weights and for gradients, 8 for Adam's two moments; 12 are saved.
    memory = plan.memory
    assert (memory.weights, memory.gradients) == (1_621_336_064, 1_621_336_064)
    assert (memory.moments, memory.resting) == (3_242_672_128, 6_485_344_256)
    # 32,768 tokens × 12 bytes × 50,304 rows; test_memory.py has the rest by hand and by count.
    assert memory.logits == 19_780_337_664
    assert memory.accumulates
    assert plan.checkpoint_bytes == 4_864_008_192
    # Saved at 1,000 … 4,000 and the end; evaluated before step 1, at 500 … 4,500 and the end.
    assert (plan.checkpoints, plan.evaluations) == (5, 11)
    assert plan.schedule.startswith("rewarm (rewarm ")


def test_rates_at_marks_by_hand(text, data):
    plan, _ = planned(text)
    # Step 1 of a rise over 47.68 steps; T/2 and the floor as in the paper's table.
    assert [(rate.step, rate.what, f"{rate.lr:.4e}") for rate in plan.rates] == [
        (1, "first", "3.5663e-05"),
        (48, "end of warm-up", "3.0000e-04"),
        (2384, "middle", "1.5471e-04"),
        (3840, "floor", "3.0000e-05"),
        (4768, "last", "3.0000e-05"),
    ]
    assert plan.start.first_lr == plan.rates[0].lr


def test_tokens_and_epochs_by_hand(text, data):
    plan, _ = planned(text)
    new, old = plan.train["downstream"], plan.train["upstream"]
    assert new.needed == pytest.approx(9_499_259_699, abs=2048)
    assert old.needed == pytest.approx(499_961_037, abs=2048)
    assert (new.available, old.available) == (4_750_000_000, 1_000_000_000)
    assert (new.share, old.share) == pytest.approx((0.95, 0.05))
    assert (new.epochs, old.epochs) == pytest.approx((1.99984, 0.49996), abs=1e-5)
    # The limit, and all tokens where there are fewer.
    assert plan.validation["downstream"].needed == 20_000_000
    assert plan.validation["upstream"].needed == 7_000_000


def test_text_shows_the_same_numbers(text, data):
    text_of_plan = plan_as_text(planned(text)[0])
    for line in (
        "start       new weights (seed 17), architecture of pythia-410m",
        "model       405,334,016 parameters: 24 layers × 1,024 wide, 16 heads, ",
        "10,000,000,000 tokens / 2,097,152 a step = 4,768 steps (9,999,220,736 tokens)",
        "16 sequences × 2,048 tokens × 64 accumulated = 2,097,152 tokens",
        "step     3,840  lr 3.0000e-05  floor",
        "95.0% of the tokens: 9.5B tokens of 4.75B = 2.00 epochs",
        "validation  downstream  20M tokens of 50M",
        "5 checkpoints × 4.86 GB = 24.32 GB",
        "GB at the peak on a CPU: 6.49 GB weights, gradients, optimizer state + 707.00 MB rounded",
        "GB activations + 19.78 GB logits",
    ):
        assert line in text_of_plan


def test_corpus_weights_are_relative(text, data):
    plan, _ = planned(
        text,
        "data.train.downstream.weight=3",
        "data.train.upstream.weight=1",
        "tokens=2_097_152",
    )
    assert plan.train["downstream"].share == pytest.approx(0.75)
    assert plan.train["upstream"].needed == 2_097_152 / 4


def test_without_periodic_evaluations_and_saves(text, data):
    plan, _ = planned(text, "every.evaluate=null", "every.save=null")
    assert (plan.checkpoints, plan.evaluations) == (1, 2)


def test_run_of_one_step(text, data):
    plan, _ = planned(text, "tokens=2_097_152")
    assert (plan.steps, plan.checkpoints, plan.evaluations) == (1, 1, 2)
    assert [(rate.step, rate.what) for rate in plan.rates] == [(1, "last")]


def test_too_many_epochs_are_a_problem(text, data):
    plan, problem = planned(text, "data.max_epochs=1.5")
    assert isinstance(problem, DataError)
    assert "corpus 'downstream': the run needs 9,499,258,880 tokens" in str(problem)
    assert "2.00 epochs" in str(problem)
    assert plan.train["upstream"].epochs == pytest.approx(0.49996, abs=1e-5)
    assert "9.5B tokens of 4.75B = 2.00 epochs" in plan_as_text(plan)  # its shards are there
    assert "see the error" not in plan_as_text(plan)


def test_missing_corpora_are_listed_and_the_rest_is_planned(text, tmp_path):
    write_index(tmp_path / "old", 1_000_000_000)
    (tmp_path / "new").mkdir()
    plan, problem = planned(text)
    assert problem.exit_code == 3
    assert [problem.partition(": ")[0] for problem in plan.problems] == [
        f"{tmp_path}/{name}" for name in ("new", "new-val", "old-val")
    ]
    assert "new: an empty folder; expected" in plan.problems[0]
    assert "no such folder" in plan.problems[1]
    assert plan.train["downstream"].available is None
    assert plan.train["upstream"].epochs == pytest.approx(0.49996, abs=1e-5)
    assert (plan.steps, plan.memory.resting) == (4768, 6_485_344_256)
    assert len(plan.rates) == 5
    assert "tokens; see the error below" in plan_as_text(plan)


def test_the_json_form_keeps_its_names(text, data):
    plan, _ = planned(text)
    printed = json.loads(plan.model_dump_json(by_alias=True))
    assert printed["train"]["upstream"]["there"] == 1_000_000_000
    assert printed["begins"]["weights"].startswith("new weights")
    assert RunPlan.model_validate(printed) == plan


def test_with_an_automatic_microbatch_memory_is_of_one_sequence(text, data, monkeypatch):
    monkeypatch.setattr(run_plan, "_has_gpu", lambda: True)
    plan, _ = planned(text, "batch.microbatch=auto", "data.context=1024")
    assert (plan.microbatch, plan.accumulation, plan.memory.accumulates) == (None, None, True)
    text_of_plan = plan_as_text(plan)
    assert "2,048 sequences × 1,024 tokens = 2,097,152 tokens, as many at once as" in text_of_plan
    assert "logits, with one sequence at once\n" in text_of_plan
    assert re.search(r"\n +[\d.]+ GB with memory: lean\n", text_of_plan)
    lean = plan_as_text(planned(text, "batch.microbatch=auto", "memory=lean")[0])
    assert re.search(r"logits, with one sequence .+\n +[\d.]+ GB with memory: fast\n", lean)


@pytest.fixture
def base(reached):
    return reached("pythia-70m", step=1000, tokens=2_097_152_000, lrs=(1e-6, 1e-3, 1.25e-5))


def test_base_is_a_rewarm_checkpoint(text, data, base):
    plan, problem = planned(text, f"model={{base: {base}}}", "optimizer.carry=true")
    assert problem is None
    assert plan.model.parameters == 70_426_624
    assert plan.start.weights == f"weights of {base} (rewarm checkpoint, step 1,000)"
    assert plan.start.base_lr == 1.25e-5
    assert "optimizer state of the base" in plan.start.optimizer
    text_of_plan = plan_as_text(plan)
    assert "(sha256 c0ffee000000)" in text_of_plan
    assert "lr 1.25e-05 at the last step → 3.566e-05 next" in text_of_plan
    assert "trained on 2.1B tokens → 12.1B at the end of this run" in text_of_plan


def test_carrying_missing_optimizer_state_is_a_problem(text, data):
    published = "model={base: EleutherAI/pythia-410m, revision: step143000}"
    plan, problem = planned(text, published)
    assert "fresh optimizer state (the base has none to carry)" in plan.start.optimizer
    assert problem is None
    plan, problem = planned(text, published, "optimizer.carry=true")
    assert "EleutherAI/pythia-410m: has no optimizer state to carry" in str(problem)


def test_rates_as_multiples_of_the_base(text, data, base):
    wanted = ("schedule.start_lr=base", "schedule.peak_lr=4x base", "schedule.min_lr=0.5 × base")
    resolved = checked(text, f"model={{base: {base}}}", *wanted)
    assert resolved.document()["schedule"]["peak_lr"] == 5e-5
    text_of_plan = plan_as_text(plan_run(resolve(resolved)))
    assert "peak_lr = 4 × 1.25e-05 (the base's last) = 5e-05" in text_of_plan
    assert "min_lr = 0.5 × 1.25e-05 (the base's last) = 6.25e-06" in text_of_plan
    with pytest.raises(RecipeError, match=r"someone/else: no such folder .* set model.base_lr"):
        checked(text, "model={base: someone/else}", *wanted)
    given = checked(text, "model={base: someone/else, base_lr: 1e-5}", *wanted)
    assert given.schedule.peak_lr == 4e-5
    _, problem = planned(text, f"model={{base: {base}, base_lr: 1e-5}}", *wanted)
    assert "model.base_lr is 1e-05, and the last rate of" in str(problem)


def test_fresh_keeps_only_the_shape_of_the_base(text, data, base):
    plan, _ = planned(text, f"model={{base: {base}, fresh: true}}", "seed=3")
    assert plan.start.weights == f"new weights (seed 3), architecture of {base}"
    assert plan.model.parameters == 70_426_624


def test_missing_base_is_a_problem(text, data, tmp_path):
    plan, problem = planned(text, f"model={{base: {tmp_path}/nowhere}}")
    assert problem.exit_code == 3
    assert "nowhere: no such folder" in str(problem)
    assert (plan.model, plan.memory, plan.steps) == (None, None, 4768)
    assert "4,768 steps" in plan_as_text(plan)


def test_damaged_base_checkpoint_is_a_problem(text, data, base):
    (base / "checkpoints" / "step-00001000" / "progress.json").write_text("{")
    plan, problem = planned(text, f"model={{base: {base}}}")
    assert problem.exit_code == 3
    assert "progress.json: changed since it was written" in str(problem)
    assert plan.model.parameters == 70_426_624


def test_plan_names_the_schedules_distribution(text, data):
    plugin = schedules.origin("rewarm")
    assert planned(text)[0].schedule == f"rewarm ({plugin.distribution} {plugin.version})"
