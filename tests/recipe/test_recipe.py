"""A whole recipe: derived numbers, settings that contradict each other, the JSON Schema."""

import ast
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import rewarm
from recipes import FULL_RECIPE, recipe_of, recipe_problems
from rewarm.checkpoints.retention import most_checkpoints_at_once
from rewarm.errors import RecipeError
from rewarm.model.architecture import PRESETS
from rewarm.recipe.json_schema import recipe_schema
from rewarm.recipe.recipe import Recipe, load_recipe


def test_derived_numbers(thousand_steps):
    recipe = recipe_of(thousand_steps, "tokens=100_099_999")
    assert (recipe.steps, recipe.accumulation, recipe.sequences_per_step) == (1000, 10, 100)
    assert [recipe.progress(step) for step in (1, 500, 1000)] == [0.001, 0.5, 1]
    assert recipe.lr(1) == pytest.approx(3e-6)
    assert recipe.lr(100) == 3e-4
    assert recipe.lr(1000) == 3e-5


def test_corpus_weights_change_at_whole_steps(thousand_steps):
    recipe = recipe_of(
        thousand_steps,
        "data.train.downstream.weight=[{from: 0, weight: 1}, {from: 50.01%, weight: 3}]",
    )
    assert recipe.corpus_weights["downstream"] == [(0, 1.0), (501 * 100, 3.0)]


def test_step_before_decay_and_checkpoints_saved_there(thousand_steps):
    cosine = recipe_of(thousand_steps)
    assert (cosine.step_before_decay, cosine.has_plateau_before_decay) == (100, False)
    assert cosine.checkpoint_count == 1
    constant = recipe_of(
        thousand_steps, "schedule={name: constant, lr: 1e-3}", "every.save=400", "seed=1"
    )
    assert (constant.step_before_decay, constant.has_plateau_before_decay) == (1000, False)
    assert constant.checkpoint_count == 3


def test_checkpoint_is_saved_at_the_end_of_a_plateau(plugins, thousand_steps):
    wsd = recipe_of(
        thousand_steps,
        "schedule={name: wsd, start_lr: 0, peak_lr: 3e-4, min_lr: 0, warmup: 1%, decay: 20%}",
        "every.save=500",
    )
    assert (wsd.step_before_decay, wsd.has_plateau_before_decay) == (800, True)
    assert (wsd.branch_step, wsd.checkpoint_count) == (800, 3)


def enumerated_step_before_decay(recipe):
    """Every step from the last one back: over the constant end, and up the decay before it."""
    step, rate = recipe.steps, recipe.lr(recipe.steps)
    while step > 1 and recipe.lr(step - 1) == rate:
        step -= 1
    if step == 1 or recipe.lr(step - 1) < rate:
        return recipe.steps
    while step > 1 and (previous := recipe.lr(step - 1)) > rate:
        step, rate = step - 1, previous
    return step


@pytest.mark.parametrize("tokens", ["100M", "2.5B", "3_999_900_000"])
@pytest.mark.parametrize(
    "schedule",
    [
        "{name: constant, lr: 1e-3}",
        "{name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 1.23%, decay: linear}",
        "{name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 37 steps, decay: inverse-sqrt}",
        "{name: no-warmup, peak_lr: 3e-4, min_lr: 3e-5, decay: 1-sqrt, preheat: 12 steps}",
        "{name: wsd, start_lr: 0, peak_lr: 3e-4, min_lr: 0, warmup: 1%, decay: 7.7%}",
        "{name: wsd, start_lr: 0, peak_lr: 3e-4, min_lr: 0, warmup: 1%, decay: 123 steps}",
        "{name: infinite, peak_lr: 3e-4, constant_lr: 1e-4, min_lr: 1e-5, warmup: 1%, "
        "cooling: 30%, annealing: 10.01%}",
    ],
)
def test_step_before_decay_of_long_runs_is_that_of_every_step(
    plugins, thousand_steps, schedule, tokens
):
    recipe = recipe_of(thousand_steps, f"tokens={tokens}", f"schedule={schedule}")
    assert recipe.step_before_decay == enumerated_step_before_decay(recipe)


def test_a_run_of_very_many_steps_is_planned_at_once(plugins, thousand_steps):
    started = time.perf_counter()
    recipe = recipe_of(
        thousand_steps,
        "tokens=1_000_000_000_000_000_000",
        "every={save: 1, evaluate: 1, log: 1}",
        "keep={last: 1_000_000, every: 7}",
        "schedule={name: wsd, start_lr: 0, peak_lr: 3e-4, min_lr: 0, warmup: 1%, decay: 10%}",
    )
    assert recipe.checkpoint_count == recipe.steps == 10**13
    assert recipe.branch_step == 9 * 10**12
    kept_before = (10**13 - 10**6 - 1) // 7 - (9 * 10**12 % 7 == 0) + 1
    assert most_checkpoints_at_once(recipe) == 10**6 + kept_before + 1
    assert time.perf_counter() - started < 5


def test_a_schedule_that_is_0_throughout_is_refused(thousand_steps):
    problems = recipe_problems(thousand_steps, "schedule={name: constant, lr: 0.0}")
    assert len(problems) == 1
    assert "should have a learning rate above 0 at some step; it is 0 throughout" in problems[0]
    late = "schedule={name: no-warmup, peak_lr: 1e-3, min_lr: 0.0, preheat: 99.5%}"
    assert recipe_of(thousand_steps, late).lr(999) > 0


def test_a_missing_rate_is_an_error(thousand_steps):
    (problem,) = recipe_problems(thousand_steps, "schedule={name: constant}")
    assert "schedule.lr" in problem


def test_shared_types_hold_no_field():
    """Pydantic 2.9 to 2.11.4 give the default of one setting with a shared Field to all others."""
    shared = [
        f"{path.name}: {ast.unparse(statement.targets[0])}"
        for path in Path(rewarm.__file__).parent.rglob("*.py")
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Assign) and "Annotated[" in ast.unparse(statement.value)
        for node in ast.walk(statement.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field"
    ]
    assert shared == []


def test_written_recipe_is_read_back_equal(thousand_steps, tmp_path):
    written = tmp_path / "written.yaml"
    written.write_text(thousand_steps)
    recipe = load_recipe(written)
    path = tmp_path / "another folder" / "saved.yaml"
    path.parent.mkdir()
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    read_back = load_recipe(path)
    assert read_back == recipe
    assert read_back.to_yaml() == recipe.to_yaml()


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1))
def test_any_run_directory_name_is_read_back(name):
    recipe = recipe_of(FULL_RECIPE).model_copy(update={"run": name})
    assert recipe_of(recipe.to_yaml()).run == name


def test_recipe_is_frozen(thousand_steps):
    recipe = recipe_of(thousand_steps)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.batch.tokens = 5
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 5


def test_overrides_are_applied_in_order(thousand_steps, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(thousand_steps)
    recipe = load_recipe(
        path, ["seed=1", "seed=2", "optimizer.clip=null", "schedule={name: constant, lr: 1e-5}"]
    )
    assert (recipe.seed, recipe.optimizer.clip, recipe.lr(1)) == (2, None, 1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "batch.tokens=98_304",
            "batch.tokens: should be a whole number of sequences of 1,000 tokens (data.context), "
            "got 98,304; try 98,000",
        ),
        (
            "batch.tokens=100",
            "batch.tokens: should be a whole number of sequences of 1,000 tokens (data.context), "
            "got 100; try 1,000",
        ),
        (
            "batch.microbatch=64",
            "batch.microbatch: should divide the 100 sequences of a batch (100,000 tokens / "
            "1,000), got 64; try 50, or auto",
        ),
        (
            "batch.microbatch=101",
            "batch.microbatch: should divide the 100 sequences of a batch (100,000 tokens / "
            "1,000), got 101; try 100, or auto",
        ),
        (
            "data.train={a: {shards: x, weight: 95}, b: {shards: x, weight: 5%}}",
            "data.train: weights in percent should make 100%, and these make 9505%: a 95 + b 5%; "
            "write all in percent, or all as numbers, which are relative to each other",
        ),
        (
            "data.train={a: {shards: x}, b: {shards: x, weight: 5%}}",
            "data.train: weights in percent should make 100%, and these make 105%: a 1 + b 5%",
        ),
        (
            "data.train.upstream.weight=24%",
            "data.train: weights in percent should make 100%, and these make 99%: downstream 0.75 "
            "+ upstream 24%; ",
        ),
        (
            "data.train={a: {shards: x, weight: 90%}}",
            "data.train: weights in percent should make 100%, and these make 90%: a 90%",
        ),
        (
            "data.train={a: {shards: x, weight: 50%}, b: {shards: x, weight: [{from: 0, weight: "
            "50%}, {from: 50%, weight: 60%}]}}",
            "data.train: weights in percent should make 100%, and these make 110% from step 501 "
            "on: a 50% + b 60%",
        ),
        (
            "data.train={a: {shards: x, weight: 99.9995%}, b: {shards: x, weight: 0.0005%}}",
            "data.train.b: its weight is 5e-06 of the run, 0.5 of 100,000 sequences of 1,000 "
            "tokens, and less than one cannot be read; give it more weight, or remove it",
        ),
        (
            "data.train={a: {shards: x}, b: {shards: x, weight: [{from: 0, weight: 0}, {from: "
            "99.95%, weight: 1e-3}]}}",
            "data.train.b: its weight is 0 of the run, 0 of 100,000 sequences",
        ),
        (
            "tf32=true",
            "tf32: should be false with precision: bf16, since TF32 is a way to compute fp32 "
            "matmuls; remove it, or set precision: fp32",
        ),
        (
            "precision=fp8",
            "data.context: should be a multiple of 16 for fp8 matmuls, got 1,000; try 992",
        ),
        ("tokens=99_999", "tokens: should be at least one batch of 100,000 tokens, got 99,999"),
        (
            "data.context=2_500",
            "data.context: should be at most the model's 2,048 positions, got 2,500",
        ),
        (
            "optimizer.carry=true",
            "optimizer.carry: should be false: the run starts from newly initialized weights, so "
            "there is no optimizer state to carry over; remove it, or start from a rewarm",
        ),
        (
            "data.carry=true",
            "data.carry: should be false: the run starts from newly initialized weights, so "
            "there is no data position to carry over; remove it, or start from a rewarm checkpoint",
        ),
        (
            "data.train={a: {shards: x, weight: [{from: 0, weight: 1}, {from: 50%, weight: 0}]}}",
            "data.train: should have a corpus with a weight above 0 at every step; from step 501 "
            "on, all weights are 0",
        ),
        ("schedule.min_lr=4e-4", "schedule: min_lr 0.0004 should not be above peak_lr 0.0003"),
        (
            "schedule.name=rewram",
            "schedule.name: no schedule named 'rewram'; did you mean 'rewarm'? (installed: ",
        ),
        ("schedule.name='{x}'", "schedule.name: no schedule named '{x}' (installed: "),
    ],
)
def test_contradictory_settings_are_refused(thousand_steps, override, message):
    (problem,) = recipe_problems(thousand_steps, override)
    assert f": {message}" in problem


@pytest.mark.parametrize(
    "weights",
    [
        "a: {shards: x, weight: 95%}, b: {shards: x, weight: 5%}",
        "a: {shards: x, weight: 0.95}, b: {shards: x, weight: 5%}",
        "a: {shards: x, weight: 95}, b: {shards: x, weight: 5}",
        "a: {shards: x, weight: 33.3%}, b: {shards: x, weight: 33.3%}, c: {shards: x, weight: "
        "33.4%}",
        "a: {shards: x, weight: [{from: 0, weight: 100%}, {from: 1 steps, weight: 30%}]}, "
        "b: {shards: x, weight: [{from: 0, weight: 0%}, {from: 1 steps, weight: 70%}]}",
        "a: {shards: x, weight: 99.999%}, b: {shards: x, weight: 0.001%}",  # one sequence
    ],
)
def test_weights_are_percentages_of_the_batch_or_relative_numbers(thousand_steps, weights):
    recipe = recipe_of(thousand_steps, f"data.train={{{weights}}}")
    assert recipe_of(recipe.to_yaml()) == recipe


def test_several_contradictions_are_reported_together(thousand_steps):
    problems = recipe_problems(thousand_steps, "tokens=50_000", "tf32=true", "data.carry=true")
    assert len(problems) == 3


def test_carry_from_a_base_with_newly_initialized_weights_is_refused(thousand_steps):
    problems = recipe_problems(
        thousand_steps, "model={base: x, fresh: true}", "optimizer.carry=true"
    )
    assert problems[0].startswith(
        "--set optimizer.carry=true: optimizer.carry: should be false: the run starts from newly"
    )


def test_fp8_needs_widths_that_are_multiples_of_16(thousand_steps):
    architecture = PRESETS["pythia-14m"]
    narrow = architecture.model_copy(update={"hidden": 40, "heads": 5})
    recipe_of(thousand_steps).check_fp8_widths(narrow)
    fp8 = recipe_of(thousand_steps, "precision=fp8", "data.context=1600", "batch.tokens=16_000")
    fp8.check_fp8_widths(architecture)
    with pytest.raises(RecipeError, match="hidden width of 40 should be a multiple of 16"):
        fp8.check_fp8_widths(narrow)


def test_span_in_steps_needs_a_valid_budget(thousand_steps):
    for override in ("tokens=ten", "batch.microbatch=0"):
        problems = recipe_problems(thousand_steps, override)
        assert any(
            "schedule.warmup: " in problem and "without a valid budget" in problem
            for problem in problems
        )


# Third-party schedules

THIRD_PARTY = """
import math
from typing import ClassVar, Literal
from pydantic import BaseModel, ConfigDict, model_validator
from rewarm import Schedule, Span

class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    length: float

class ThirdParty(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["third-party"] = "third-party"
    fault: str = "none"
    stretch: Span = Span("10%")
    parts: list[Part] = []
    nested: Part | None = None

    @model_validator(mode="after")
    def _raise(self):
        return 1 / 0 if self.fault == "raise" else self

    def __call__(self, progress):
        return {"nan": math.nan, "negative": 0.5 - progress}.get(self.fault, self.stretch)

    def marks(self):
        return {"mark": math.nan} if self.fault == "marks" else {"mark": self.stretch}
"""


@pytest.fixture
def third_party(distribution):
    distribution("third_party", THIRD_PARTY, **{"third-party": "ThirdParty"})


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "fault: nan",
            "schedule: schedule 'third-party' at progress 0.005 gave nan; a rate is finite",
        ),
        ("fault: negative", "schedule: schedule 'third-party' at progress 0.505 gave -0.005"),
        (
            "fault: raise",
            "schedule: 'third-party' cannot check its settings: ZeroDivisionError",
        ),
        (
            "fault: marks",
            "schedule: schedule 'third-party' marks {'mark': nan}; a mark is a label",
        ),
        ("falut: nan", "schedule.falut: no such setting; did you mean 'fault'?"),
        ("nested: {lnegth: 1}", "schedule.nested.lnegth: no such setting; did you mean 'length'?"),
        (
            "parts: [{length: 1, x: 2}]",
            "schedule.parts.0.x: no such setting (settings here: length)",
        ),
    ],
)
def test_third_party_schedule_is_checked(thousand_steps, settings, message):
    problems = recipe_problems(thousand_steps, f"schedule={{name: third-party, {settings}}}")
    assert any(f": {message}" in problem for problem in problems), problems


@pytest.mark.usefixtures("third_party")
def test_third_party_spans_are_resolved_and_saved_as_written(thousand_steps):
    recipe = recipe_of(thousand_steps, "schedule={name: third-party, stretch: 5M tokens}")
    assert recipe.lr(1) == 0.05
    assert recipe_of(recipe.to_yaml()) == recipe
    assert recipe.document()["schedule"]["stretch"] == "5M tokens"


# JSON Schema


@pytest.mark.usefixtures("third_party")
def test_schema_lists_the_settings_of_every_schedule(distribution):
    distribution("broken_schema", "raise RuntimeError", broken="Broken")
    schema = recipe_schema()
    names = [
        choice["$ref"].rpartition("/")[2] for choice in schema["properties"]["schedule"]["oneOf"]
    ]
    schedules = {name: schema["$defs"][name] for name in names}
    assert schedules.keys() >= {
        "schedule-rewarm",
        "schedule-no-warmup",
        "schedule-constant",
        "schedule-third-party",
    }
    assert "schedule-broken" not in schedules
    rewarm = schedules["schedule-rewarm"]
    assert rewarm["properties"].keys() == {
        "name",
        "peak_lr",
        "min_lr",
        "preheat",
        "decay",
        "start_lr",
        "warmup",
    }
    assert set(rewarm["required"]) == {"name", "peak_lr"}
    assert rewarm["properties"]["name"]["const"] == "rewarm"
    assert not rewarm["additionalProperties"]


@pytest.mark.usefixtures("third_party")
def test_schema_has_no_dangling_references_and_every_setting_is_described():
    schema = json.loads(json.dumps(recipe_schema()))
    references = set()

    def collect(part):
        if isinstance(part, dict):
            references.update({part["$ref"]} if "$ref" in part else ())
            for inner in part.values():
                collect(inner)
        elif isinstance(part, list):
            for inner in part:
                collect(inner)

    collect(schema)
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert not any(" " in reference for reference in references)
    assert set(schema["required"]) == {"run", "tokens", "model", "data", "batch", "schedule"}
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert all(
        "description" in setting
        for name, definition in schema["$defs"].items()
        for key, setting in definition["properties"].items()
        if name.startswith("schedule-") and "third-party" not in name and key != "name"
    )
