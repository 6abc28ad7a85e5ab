import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rewarm.errors import RecipeError
from rewarm.model.architecture import PRESETS
from rewarm.recipe.recipe import Recipe, load_recipe, recipe_schema, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument


def loaded(text: str, *overrides: str) -> Recipe:
    document = YamlDocument(text, "r.yaml")
    for override in overrides:
        document.set(override)
    return validate_recipe(document)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        loaded(text, *overrides)
    return raised.value.problems


def test_numbers_that_follow(thousand_steps):
    recipe = loaded(thousand_steps, "tokens=100_099_999")
    assert (recipe.steps, recipe.accumulation, recipe.sequences) == (1000, 10, 100)
    assert [recipe.progress(step) for step in (1, 500, 1000)] == [0.001, 0.5, 1]
    assert recipe.lr(1) == pytest.approx(3e-6)
    assert recipe.lr(100) == 3e-4
    assert recipe.lr(1000) == 3e-5


def test_every_default_is_spelled_out(thousand_steps):
    said = loaded(thousand_steps).document()
    assert said["seed"] == 17
    assert said["data"]["lanes"] == 16
    assert said["data"]["validation"] == {}
    assert said["model"] == {
        "base": None,
        "revision": None,
        "preset": "pythia-14m",
        "architecture": None,
        "base_lr": None,
        "fresh": False,
    }
    assert said["optimizer"] == {
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip": 1.0,
        "carry": False,
    }
    assert said["schedule"] == {
        "name": "rewarm",
        "peak_lr": 3e-4,
        "min_lr": 3e-5,
        "preheat": 0,
        "decay": "cosine",
        "start_lr": 0.0,
        "warmup": "100 steps",
    }
    assert said["every"] == {"log": 10, "evaluate": 500, "save": 1000}
    assert (said["precision"], said["compile"]) == ("bf16", True)


def test_what_is_written_is_read_back_equal(thousand_steps, tmp_path):
    recipe = loaded(thousand_steps)
    path = tmp_path / "r.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1))
def test_a_directory_of_any_name_is_read_back(name):
    recipe = loaded(FULL).model_copy(update={"run": name})
    assert loaded(recipe.to_yaml()).run == name


def test_a_recipe_is_frozen(thousand_steps):
    recipe = loaded(thousand_steps)
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


def test_all_errors_at_once_in_order_of_place():
    text = """\
run: x
tokens: -5
modle: {preset: pythia-14m}
data:
  context: 1000
  train: {new: {shards: data/new, wieght: 2}}
batch: {tokens: 1.5, microbatch: 10}
schedule:
  name: rewarm
  peek_lr: 3e-4
  min_lr: 3e-5
  warmup: 1.5
every: {lgo: 5}
"""
    assert problems(text, "seed=x") == [
        "--set seed=x: seed: should be a valid integer (got 'x')",
        "r.yaml:1:1: model: required, but missing",
        "r.yaml:2:1: tokens: should be greater than 0 (got -5)",
        "r.yaml:3:1: modle: no such setting; did you mean 'model'?",
        "r.yaml:6:35: data.train.new.wieght: no such setting; did you mean 'weight'?",
        "r.yaml:7:9: batch.tokens: should be a count, such as 2_097_152, 20M, 10B or 1e9 (got 1.5)",
        "r.yaml:8:1: schedule.peak_lr: required, but missing",
        "r.yaml:10:3: schedule.peek_lr: no such setting; did you mean 'peak_lr'?",
        "r.yaml:12:3: schedule.warmup: should be less than 1 (got 1.5)",
        "r.yaml:13:9: every.lgo: no such setting; did you mean 'log'?",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # Names.
        (
            "schedule.name=rewram",
            "schedule.name: no schedule named 'rewram'; did you mean 'rewarm'? (installed: ",
        ),
        ("schedule.name={x}", "schedule.name: should be text"),
        ("schedule.name='{x}'", "schedule.name: no schedule named '{x}' (installed: "),
        ("schedule={}", "schedule.name: required, but missing"),
        ("schedule=rewarm", "schedule: should be settings, such as {name: rewarm"),
        (
            "model.preset=pythia-41m",
            "model.preset: no preset named 'pythia-41m'; did you mean 'pythia-410m'? (presets: ",
        ),
        (
            "optimizer.lr=3e-4",
            "optimizer.lr: no such setting (there are: betas, eps, weight_decay, clip, carry)",
        ),
        (
            "data.train={a b: {shards: x}}",
            "data.train.a b: a corpus's name should be letters, digits, '.', '_' and '-'",
        ),
        # What does not go together.
        (
            "batch.tokens=98_304",
            "batch.tokens: 98,304 is not a whole number of microbatches: 10 sequences × 1,000 "
            "tokens = 10,000; the nearest that fits is 100,000",
        ),
        (
            "batch.tokens=100",
            "batch.tokens: 100 is not a whole number of microbatches: 10 sequences × 1,000 "
            "tokens = 10,000; the nearest that fits is 10,000",
        ),
        ("tokens=99_999", "tokens: a budget of 99,999 tokens is less than one batch of 100,000"),
        (
            "data.context=2_500",
            "data.context: 2,500 is longer than the model's 2,048 positions",
        ),
        ("optimizer.carry=true", "optimizer.carry: there is nothing to carry (moments)"),
        (
            "schedule.min_lr=4e-4",
            "schedule: min_lr 0.0004 should not be above peak_lr 0.0003",
        ),
        (
            "model={preset: pythia-14m, base: x}",
            "model: should have exactly one of base, preset, architecture; has base and preset",
        ),
        ("model={}", "model: should have exactly one of base, preset, architecture; has none"),
        (
            "model.revision=main",
            "model: revision, fresh and base_lr say something about a base, and there is none",
        ),
        (
            "model.fresh=true",
            "model: revision, fresh and base_lr say something about a base, and there is none",
        ),
        (
            "model={architecture: {layers: 1, hidden: 10, heads: 3}}",
            "model.architecture: hidden 10 should divide evenly among 3 heads",
        ),
        ("schedule.warmup=1001 steps", "schedule.warmup: should be less than 1 (got '1001 steps')"),
    ],
)
def test_what_is_refused(thousand_steps, override, said):
    found = problems(thousand_steps, override)
    assert len(found) == 1
    assert f": {said}" in found[0]


def test_what_does_not_go_together_is_placed_at_the_setting_or_its_section():
    for override, place in (
        ("batch.tokens=98_304", "--set batch.tokens=98_304: batch.tokens: 98,304 is not a whole"),
        ("batch.microbatch=11", "r.yaml:34:3: batch.tokens: 100,000 is not a whole number"),
        ("model.architecture.positions=512", "r.yaml:21:3: data.context: 1,000 is longer than"),
        ("schedule.min_lr=4e-4", "r.yaml:36:1: schedule: min_lr 0.0004 should not be above"),
        ("model.architecture.heads=3", "r.yaml:6:3: model.architecture: hidden 128 should divide"),
    ):
        assert problems(FULL, override)[0].startswith(place)


def test_carrying_from_a_base_that_is_drawn_anew_is_refused(thousand_steps):
    said = problems(thousand_steps, "model={base: x, fresh: true}", "optimizer.carry=true")
    assert said[0].startswith(
        "--set optimizer.carry=true: optimizer.carry: there is nothing to carry"
    )


def test_a_span_in_tokens_needs_a_valid_budget(thousand_steps):
    for override in ("tokens=ten", "batch.microbatch=0"):
        found = problems(thousand_steps, override)
        assert any("schedule.warmup: cannot be placed without a valid budget" in p for p in found)


def test_a_base_says_its_own_shape(thousand_steps):
    assert loaded(thousand_steps).model.shape is PRESETS["pythia-14m"]
    assert loaded(thousand_steps, "model={base: a/b}", "data.context=10k").model.shape is None
    assert loaded(thousand_steps, "model={base: a/b, revision: main, fresh: true}").model.fresh


# Schedules of others.

STRANGER = """
import math
from typing import ClassVar, Literal
from pydantic import BaseModel, ConfigDict, model_validator
from rewarm import Schedule, Span

class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    length: float

class Stranger(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["stranger"] = "stranger"
    mood: str = "fine"
    stretch: Span = Span("10%")
    parts: list[Part] = []
    nested: Part | None = None

    @model_validator(mode="after")
    def _moody(self):
        return 1 / 0 if self.mood == "raise" else self

    def __call__(self, progress):
        return {"nan": math.nan, "negative": 0.5 - progress}.get(self.mood, self.stretch)

    def marks(self):
        return {"there": math.nan} if self.mood == "lost" else {"there": self.stretch}
"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("mood: nan", "schedule: schedule 'stranger' at progress 0.005 gave nan; a rate is finite"),
        ("mood: negative", "schedule: schedule 'stranger' at progress 0.505 gave -0.005"),
        ("mood: raise", "schedule: 'stranger' cannot check its settings: ZeroDivisionError"),
        ("mood: lost", "schedule: schedule 'stranger' marks {'there': nan}; a mark is a finite"),
        ("modo: fine", "schedule.modo: no such setting; did you mean 'mood'?"),
        ("nested: {lnegth: 1}", "schedule.nested.lnegth: no such setting; did you mean 'length'?"),
        ("parts: [{length: 1, x: 2}]", "schedule.parts.0.x: no such setting (there are: length)"),
    ],
)
def test_a_strangers_schedule_is_checked(distribution, thousand_steps, settings, said):
    distribution("stranger", STRANGER, stranger="Stranger")
    found = problems(thousand_steps, f"schedule={{name: stranger, {settings}}}")
    assert any(f": {said}" in problem for problem in found), found


def test_a_strangers_spans_are_placed_and_saved(distribution, thousand_steps):
    distribution("stranger", STRANGER, stranger="Stranger")
    recipe = loaded(thousand_steps, "schedule={name: stranger, stretch: 5M tokens}")
    assert recipe.lr(1) == 0.05
    assert loaded(recipe.to_yaml()) == recipe
    assert recipe.document()["schedule"]["stretch"] == "5M tokens"


# The schema.


def test_the_schema_lists_the_settings_of_every_schedule(distribution):
    distribution("stranger", STRANGER, stranger="Stranger")
    distribution("broken_schema", "raise RuntimeError", broken="Broken")
    schema = recipe_schema()
    offered = {
        choice["$ref"].rpartition("/")[2]: schema["$defs"][choice["$ref"].rpartition("/")[2]]
        for choice in schema["properties"]["schedule"]["oneOf"]
    }
    assert offered.keys() >= {
        "schedule-rewarm",
        "schedule-no-warmup",
        "schedule-constant",
        "schedule-stranger",
    }
    assert "schedule-broken" not in offered
    rewarm = offered["schedule-rewarm"]
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


def test_the_schema_is_whole(distribution):
    distribution("stranger", STRANGER, stranger="Stranger")
    schema = json.loads(json.dumps(recipe_schema()))
    references = set()

    def walk(part):
        if isinstance(part, dict):
            references.update({part["$ref"]} if "$ref" in part else ())
            for inner in part.values():
                walk(inner)
        elif isinstance(part, list):
            for inner in part:
                walk(inner)

    walk(schema)
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert not any(" " in reference for reference in references)
    required = {"run", "tokens", "model", "data", "batch", "schedule"}
    assert set(schema["required"]) == required
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert all(
        "description" in setting
        for name, one in schema["$defs"].items()
        for key, setting in one["properties"].items()
        if name.startswith("schedule-") and "stranger" not in name and key != "name"
    )


# The campaign: 200 mutations of a recipe with every setting, each to be named at its line.

FULL = """\
# A recipe with every setting that goes with an architecture.
run: runs/full
seed: 17
tokens: 100M
model:
  architecture:
    layers: 6
    hidden: 128
    heads: 4
    ffn: 512
    vocabulary: 50304
    positions: 2048
    rotary: 0.25
    rotary_base: 10000
    activation: gelu
    parallel_residual: true
    attention_bias: true
    tied: false
    layer_norm_eps: 1e-5
data:
  context: 1000
  lanes: 16
  train:
    new:
      shards: data/new/train
      weight: 95%
    old: {shards: data/old/train, weight: 0.05}
  validation:
    new:
      shards: data/new/val
      tokens: 20M
    old: {shards: data/old/val}
batch:
  tokens: 100_000
  microbatch: 10
schedule:
  name: rewarm
  start_lr: 3e-5
  peak_lr: 3e-4
  min_lr: 3e-5
  warmup: 10 steps
  decay: clipped-cosine
optimizer:
  betas: [0.9, 0.95]
  eps: 1e-8
  weight_decay: 0.1
  clip: 1.0
  carry: false
precision: fp32
compile: false
every:
  log: 10
  evaluate: 500
  save: null
"""

NUMBER = ["ten", "[1]", "{a: 1}", "true", "''"]
COUNT = [*NUMBER, "-5", "0", "1.5", "1.5B.", "10 B B", "1e30", "null"]
SIZE = [*NUMBER, "0", "-5", "1.5", "1e3", "null", "10k"]
RATE = [*NUMBER, "-1e-5", ".nan", ".inf", "1%", "null"]
TRUTH = ["maybe", "2", "[true]", "null", "{}"]
TEXT = ["''", "5", "[a]", "{a: b}", "true"]
SECTION = ["5", "text", "[1]", "true"]
WRONG = {
    "run": TEXT,
    "seed": [*NUMBER, "-1", "1.5", "9223372036854775808", "007"],
    "tokens": [*COUNT, "99_999"],
    "model": SECTION,
    "model.architecture": SECTION,
    "model.architecture.layers": SIZE,
    "model.architecture.hidden": SIZE,
    "model.architecture.heads": SIZE,
    "model.architecture.vocabulary": SIZE,
    "model.architecture.rotary": [*NUMBER, "0", "1.5", "-.inf", "25%"],
    "model.architecture.activation": ["tanh", "5", "null"],
    "model.architecture.tied": TRUTH,
    "model.architecture.layer_norm_eps": [*NUMBER, "0", "-1e-5"],
    "data": SECTION,
    "data.context": [*COUNT, "4096", "2_000_000"],
    "data.lanes": SIZE,
    "data.train": [*SECTION, "{}", "null", "{bad name: {shards: x}}"],
    "data.train.new": SECTION,
    "data.train.new.shards": TEXT,
    "data.train.new.weight": [
        *NUMBER,
        "0",
        "-1",
        ".inf",
        ".nan",
        "0%",
        "5 percent",
        "1" + "0" * 400,
    ],
    "data.validation.new.tokens": [one for one in COUNT if one != "null"],
    "batch": SECTION,
    "batch.tokens": [*COUNT, "100_001", "1B"],
    "batch.microbatch": [*SIZE, "11"],
    "schedule": SECTION,
    "schedule.name": ["rewram", "5", "[rewarm]", "null"],
    "schedule.start_lr": RATE,
    "schedule.peak_lr": RATE,
    "schedule.min_lr": RATE,
    "schedule.warmup": [
        *NUMBER,
        "1.5",
        "-1%",
        ".nan",
        "100%",
        "1000 steps",
        "5 apples",
        "100M tokens",
    ],
    "schedule.decay": ["exponential", "5", "null"],
    "optimizer": SECTION,
    "optimizer.betas": ["0.9", "[0.9]", "[0.9, 1.0]", "[0.9, x]", "[0.9, 0.95, 0.99]", "null"],
    "optimizer.eps": [*RATE, "0"],
    "optimizer.clip": [one for one in RATE if one != "null"] + ["0"],
    "optimizer.carry": [*TRUTH, "true"],
    "precision": ["fp4", "32", "null"],
    "compile": TRUTH,
    "every": SECTION,
    "every.log": [one for one in COUNT if one != "1e30"],
    "every.save": [one for one in COUNT if one not in ("null", "1e30")],
}
# Wrong only beside another setting, or a section as a whole: named at another line than their own.
NAMED_AT = {("batch.tokens", "1B"): "tokens", ("batch.microbatch", "11"): "batch.tokens"}
REQUIRED = [
    "run",
    "tokens",
    "model",
    "model.architecture",
    "model.architecture.layers",
    "model.architecture.hidden",
    "model.architecture.heads",
    "data",
    "data.train",
    "data.train.new.shards",
    "data.validation.new.shards",
    "batch",
    "batch.tokens",
    "batch.microbatch",
    "schedule",
    "schedule.name",
    "schedule.peak_lr",
    "schedule.min_lr",
]


class Mutation(NamedTuple):
    what: str
    line: int
    """Where the problem should be said to be."""
    text: str


def outline(text: str) -> dict[str, int]:
    """The line of every key, by indentation alone: independent of the parser under test."""
    above: list[str] = []
    places = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("#"):
            above[(len(line) - len(line.lstrip())) // 2 :] = [line.split(":")[0].strip()]
            places[".".join(above)] = number
    return places


LINES, PLACES = FULL.splitlines(), outline(FULL)


def full_with(number: int, *new: str, until: int | None = None) -> str:
    """FULL with `new` in the place of a line, or of the lines from it to before `until`."""
    return "\n".join([*LINES[: number - 1], *new, *LINES[(until or number + 1) - 1 :]]) + "\n"


def wrong_settings() -> Iterator[Mutation]:
    for path, number in PLACES.items():
        line = LINES[number - 1]
        above, _, key = path.rpartition(".")
        section = PLACES[above] if above else 2
        behind = [n for p, n in PLACES.items() if n > number and not p.startswith(f"{path}.")]
        until = behind[0] if behind else len(LINES) + 1
        if key not in ("new", "old"):  # corpora may have any name
            # Without its name, what settings a schedule has cannot be known.
            at = section if path == "schedule.name" else number
            for misspelt in (key[1:] + key[0], key + "s", key[:-1] + "_"):
                yield Mutation(misspelt, at, full_with(number, line.replace(key, misspelt, 1)))
        if path in REQUIRED:
            yield Mutation(f"no {path}", section, full_with(number, until=until))
        for wrong in WRONG.get(path, []):
            at = PLACES[NAMED_AT.get((path, wrong), path)]
            new = f"{line.partition(':')[0]}: {wrong}"
            yield Mutation(f"{path}={wrong:.20}", at, full_with(number, new, until=until))


OPENED = ("[", "{", "]", "'", '"', "*", "@", "!!str ")


def broken_yaml() -> Iterator[Mutation]:
    for path, number in PLACES.items():
        line = LINES[number - 1]
        key, _, value = line.partition(": ")
        broken = []
        if value.startswith(("[", "{")):
            broken.append(line[:-1])
        elif value:
            broken += [f"{key}: {opened}{value}" for opened in OPENED]
        if line.startswith(" "):
            broken += ["\t" + line.lstrip(), line.replace(line.lstrip(), "\t" + line.lstrip())]
        if number - 1 not in (1, PLACES.get(path.rpartition(".")[0])):
            # A first setting's indentation decides for its section, so no first ones here.
            broken += [" " + line, line.replace(":", "", 1)]
            broken += [line[1:]] if line.startswith(" ") else []
        for new in broken:
            yield Mutation(f"{number}:{new}", number, full_with(number, new))
        if value:
            yield Mutation(f"{number}: twice {path}", number + 1, full_with(number, line, line))


DRAW = random.Random(2308_04014)
CAMPAIGN = [one for kind in (wrong_settings, broken_yaml) for one in DRAW.sample(list(kind()), 100)]


def test_the_campaigns_recipe_is_valid_as_it_stands():
    assert loaded(FULL).steps == 1000
    assert PLACES.keys() >= {*WRONG, *REQUIRED}
    assert len({mutation.text for mutation in CAMPAIGN} - {FULL}) == 200


@pytest.mark.parametrize("mutation", CAMPAIGN, ids=lambda mutation: mutation.what)
def test_a_mutation_is_named_at_its_line(mutation, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(mutation.text, encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert any(p.startswith(f"{path}:{mutation.line}:") for p in raised.value.problems), str(
        raised.value
    )


@pytest.mark.parametrize("mutation", DRAW.sample(CAMPAIGN, 12), ids=lambda mutation: mutation.what)
def test_the_command_names_it_too(mutation, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(mutation.text, encoding="utf-8")
    command = Path(sys.executable).with_name("rewarm")
    ended = subprocess.run([command, "check", path], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"{path}:{mutation.line}:" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not ended.stdout


def test_a_near_miss_in_a_list_is_told_too(thousand_steps):
    weights = "data.train.downstream.weight=[{from: 0%, weight: 1}, {form: 50%, weight: 2}]"
    assert [said.rpartition(": data.")[2] for said in problems(thousand_steps, weights)] == [
        "train.downstream.weight.1.form: no such setting; did you mean 'from'?",
        "train.downstream.weight.1.from: required, but missing",
    ]
