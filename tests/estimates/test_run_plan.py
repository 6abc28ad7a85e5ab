import json

import pytest

from rewarm import schedules
from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.data.shard_format import ShardIndex, ShardInfo, TokenizerInfo
from rewarm.errors import DataError, RecipeError
from rewarm.estimates.run_plan import RunPlan, plan_as_text, plan_run
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument


def write_index(folder, tokens: int) -> None:
    """A folder of shards as far as looking ahead reads it: its index."""
    folder.mkdir(parents=True)
    shard = ShardInfo(
        name="00000.tar", documents=9, tokens=tokens, bytes=10_240 + 2 * tokens, sha256="0" * 64
    )
    facts = TokenizerInfo(digest="d", vocabulary=50_277, eos=0, eos_token="<|endoftext|>")
    index = ShardIndex(tokenizer=facts, dtype="uint16", shards=[shard])
    (folder / "index.json").write_text(index.model_dump_json())


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
    """4.75B tokens of the new corpus, 1B of the old, 50M and 7M to measure on."""
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
        document.set(override)
    return validate_recipe(document, base_lr=last_lr_of_base)


def planned(text: str, *overrides: str) -> tuple[RunPlan, Exception | None]:
    return plan_run(checked(text, *overrides))


def test_the_numbers_by_hand(text, data):
    found, problem = planned(text)
    assert problem is None
    assert found.problems == []
    # 10^10 / 2,097,152 = 4,768.37; 2,097,152 / (16 · 2,048) = 64; 4,768 · 2,097,152.
    assert (found.steps, found.accumulation, found.tokens) == (4768, 64, 9_999_220_736)
    assert found.model.parameters == 405_334_016
    assert f"{found.model.flops_per_token:.4e}" == "2.7269e+09"
    # 4 bytes a parameter for weights and for gradients, 8 for two moments; 12 are saved.
    memory = found.memory
    assert (memory.weights, memory.gradients) == (1_621_336_064, 1_621_336_064)
    assert (memory.moments, memory.resting) == (3_242_672_128, 6_485_344_256)
    # 32,768 tokens × 12 bytes × 50,304 rows; test_memory.py has the rest by hand and by count.
    assert memory.logits == 19_780_337_664
    assert memory.accumulates
    assert found.checkpoint_bytes == 4_864_008_192
    # Saved at 1,000 … 4,000 and the end; evaluated before step 1, at 500 … 4,500 and the end.
    assert (found.checkpoints, found.evaluations) == (5, 11)
    assert found.schedule.startswith("rewarm (rewarm ")


def test_the_rates_by_hand(text, data):
    found, _ = planned(text)
    # Step 1 of a rise over 47.68 steps; T/2 and the floor as in the paper's table.
    assert [(one.step, one.what, f"{one.lr:.4e}") for one in found.rates] == [
        (1, "first", "3.5663e-05"),
        (48, "end of warm-up", "3.0000e-04"),
        (2384, "middle", "1.5471e-04"),
        (3839, "floor", "3.0002e-05"),
        (4768, "last", "3.0000e-05"),
    ]
    assert found.begins.first_lr == found.rates[0].lr


def test_the_data_by_hand(text, data):
    found, _ = planned(text)
    new, old = found.train["downstream"], found.train["upstream"]
    assert new.needed == pytest.approx(9_499_259_699, abs=2048)
    assert old.needed == pytest.approx(499_961_037, abs=2048)
    assert (new.there, old.there) == (4_750_000_000, 1_000_000_000)
    assert (new.share, old.share) == pytest.approx((0.95, 0.05))
    assert (new.epochs, old.epochs) == pytest.approx((1.99984, 0.49996), abs=1e-5)
    # A limit where there is one, and all that is there where there is less.
    assert found.validation["downstream"].needed == 20_000_000
    assert found.validation["upstream"].needed == 7_000_000


def test_the_text_says_the_same(text, data):
    said = plan_as_text(planned(text)[0])
    for line in (
        "begins    new weights (seed 17) in the shape of pythia-410m",
        "model     405,334,016 parameters: 24 layers × 1,024 wide, 16 heads, 50,304 embedding rows",
        "10,000,000,000 tokens / 2,097,152 a step = 4,768 steps (9,999,220,736 tokens)",
        "1 GPU × 16 sequences × 2,048 tokens × 64 accumulated = 2,097,152 tokens",
        "step     3,839  lr 3.0002e-05  floor",
        "95.0% of the tokens: 9.5B tokens of 4.75B there = 2.00 epochs",
        "measured  downstream  20M tokens of 50M there",
        "5 checkpoints × 4.86 GB = 24.32 GB",
        "GB at the peak: 6.49 GB weights, gradients, moments + 707.00 MB rounded weights",
        "GB activations + 19.78 GB logits",
    ):
        assert line in said


def test_weights_are_relative(text, data):
    found, _ = planned(
        text,
        "data.train.downstream.weight=3",
        "data.train.upstream.weight=100%",
        "tokens=2_097_152",
    )
    assert found.train["downstream"].share == pytest.approx(0.75)
    assert found.train["upstream"].needed == 2_097_152 / 4


def test_what_is_due_never(text, data):
    found, _ = planned(text, "every.evaluate=null", "every.save=null")
    assert (found.checkpoints, found.evaluations) == (1, 2)


def test_a_run_of_one_step(text, data):
    found, _ = planned(text, "tokens=2_097_152")
    assert (found.steps, found.checkpoints, found.evaluations) == (1, 1, 2)
    assert [(one.step, one.what) for one in found.rates] == [(1, "last")]


def test_more_epochs_than_allowed_are_a_problem(text, data):
    found, problem = planned(text, "data.max_epochs=1.5")
    assert isinstance(problem, DataError)
    assert "downstream" in str(problem)
    assert found.train["upstream"].epochs == pytest.approx(0.49996, abs=1e-5)


def test_every_missing_corpus_is_said_and_the_rest_is_planned(text, tmp_path):
    write_index(tmp_path / "old", 1_000_000_000)
    (tmp_path / "new").mkdir()
    found, problem = planned(text)
    assert problem.exit_code == 3
    assert [one.partition(": ")[0] for one in found.problems] == [
        f"{tmp_path}/{name}" for name in ("new", "new-val", "old-val")
    ]
    assert "no index.json in this folder" in found.problems[0]
    assert "no such folder" in found.problems[1]
    assert found.train["downstream"].there is None
    assert found.train["upstream"].epochs == pytest.approx(0.49996, abs=1e-5)
    assert (found.steps, found.memory.resting) == (4768, 6_485_344_256)
    assert len(found.rates) == 5
    assert "no shards here" in plan_as_text(found)


def test_the_command_prints_the_plan_then_what_is_missing(text, data, tmp_path, command):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    code, out, err = command("check", path)
    assert (code, err) == (0, "")
    assert "4,768 steps" in out
    (tmp_path / "old-val" / "index.json").unlink()
    code, out, err = command("check", path)
    assert code == 3
    assert "4,768 steps" in out
    assert "9.5B tokens of 4.75B there" in out
    assert f"{tmp_path}/old-val: no index.json in this folder" in err


def test_json_is_the_plan(text, data, tmp_path, command):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    code, out, _ = command("check", path, "--json")
    said = json.loads(out)
    assert code == 0
    assert said["steps"] == 4768
    assert said["train"]["upstream"]["there"] == 1_000_000_000
    assert RunPlan.model_validate(said) == planned(text)[0]
    (tmp_path / "old-val" / "index.json").unlink()
    code, out, _ = command("check", path, "--json")
    assert code == 3
    assert len(json.loads(out)["problems"]) == 1


@pytest.fixture
def base(reached):
    return reached("pythia-70m", step=1000, tokens=2_097_152_000, lrs=(1e-6, 1e-3, 1.25e-5))


def test_a_base_that_rewarm_trained(text, data, base):
    found, problem = planned(text, f"model={{base: {base}}}", "optimizer.carry=true")
    assert problem is None
    assert found.model.parameters == 70_426_624
    assert found.begins.weights == f"the weights of {base} (rewarm checkpoint, step 1,000)"
    assert found.begins.base_lr == 1.25e-5
    assert "Adam's moments are the base's" in found.begins.optimizer
    said = plan_as_text(found)
    assert "(sha256 c0ffee000000)" in said
    assert "lr 1.25e-05 at the last step → 3.566e-05 next" in said
    assert "trained on 2.1B tokens → 12.1B at the end of this run" in said


def test_moments_that_are_not_there(text, data):
    published = "model={base: EleutherAI/pythia-410m, revision: step143000}"
    found, problem = planned(text, published)
    assert "fresh Adam moments (the base has none to carry)" in found.begins.optimizer
    assert problem is None
    found, problem = planned(text, published, "optimizer.carry=true")
    assert "EleutherAI/pythia-410m: has no Adam moments to carry" in str(problem)


def test_rates_of_the_base(text, data, base):
    wanted = ("schedule.start_lr=base", "schedule.peak_lr=4x base", "schedule.min_lr=0.5 × base")
    resolved = checked(text, f"model={{base: {base}}}", *wanted)
    assert resolved.document()["schedule"]["peak_lr"] == 5e-5
    said = plan_as_text(plan_run(resolved)[0])
    assert "peak_lr = 4 × 1.25e-05 (the base's last) = 5e-05" in said
    assert "min_lr = 0.5 × 1.25e-05 (the base's last) = 6.25e-06" in said
    with pytest.raises(RecipeError, match="the last rate of someone/else is not known; give it"):
        checked(text, "model={base: someone/else}", *wanted)
    given = checked(text, "model={base: someone/else, base_lr: 1e-5}", *wanted)
    assert given.schedule.peak_lr == 4e-5
    _, problem = planned(text, f"model={{base: {base}, base_lr: 1e-5}}", *wanted)
    assert "model.base_lr is 1e-05, and the last rate of" in str(problem)


def test_a_base_whose_shape_alone_is_kept(text, data, base):
    found, _ = planned(text, f"model={{base: {base}, fresh: true}}", "seed=3")
    assert found.begins.weights == f"new weights (seed 3) in the shape of {base}"
    assert found.model.parameters == 70_426_624


def test_a_base_that_is_not_there(text, data, tmp_path):
    found, problem = planned(text, f"model={{base: {tmp_path}/nowhere}}")
    assert problem.exit_code == 3
    assert "nowhere: no such folder, and not a hub name" in str(problem)
    assert (found.model, found.memory, found.steps) == (None, None, 4768)
    assert "4,768 steps" in plan_as_text(found)


def test_a_damaged_checkpoint_is_a_problem(text, data, base):
    (base / "checkpoints" / "step-00001000" / "progress.json").write_text("{")
    found, problem = planned(text, f"model={{base: {base}}}")
    assert problem.exit_code == 3
    assert "progress.json: cannot be read" in str(problem)
    assert found.model.parameters == 70_426_624


def test_the_schedules_distribution_is_named(text, data):
    plugin = schedules.origin("rewarm")
    assert planned(text)[0].schedule == f"rewarm ({plugin.distribution} {plugin.version})"
