import json

import plain_sequence as plain
import pytest
from pydantic import ValidationError

from rewarm import recipe, schedules
from rewarm.errors import RecipeError
from rewarm.testing import check_schedule, rates

REWARM = {"name": "rewarm", "peak_lr": 3e-4, "min_lr": 3e-5}


@pytest.fixture
def load(tmp_path):
    """Returns a function from parts as YAML, in lines, to a Recipe of 1000 steps."""

    def from_yaml(*parts, model="{base: models/base, base_lr: 3e-5}", tokens=64_000):
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"run: runs/sequence\ntokens: {tokens}\nmodel: {model}\n"
            "data: {context: 64, train: {new: {shards: data/new}}}\n"
            "batch: {tokens: 64, microbatch: 1}\n"
            "schedule:\n  name: sequence\n  parts:\n" + "".join(f"  - {one}\n" for one in parts)
        )
        return recipe.load(path)

    return from_yaml


def test_it_keeps_the_contract():
    check_schedule("sequence")
    cycles = [{"length": "100%", "repeat": 4, "schedule": REWARM | {"peak_lr": "5x base"}}]
    check_schedule("sequence", parts=cycles)
    check_schedule("sequence", parts=plain.TWICE["parts"])
    nested = [{"length": 0.3, "schedule": REWARM}]
    nested += [{"length": 0.7, "schedule": {"name": "sequence", "parts": cycles}}]
    check_schedule("sequence", parts=nested)


@pytest.mark.parametrize(("settings", "steps", "expected"), plain.REFERENCE)
def test_values_by_hand(settings, steps, expected):
    found = rates("sequence", steps, **settings)
    assert {step: found[step - 1] for step in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("settings", "steps"), plain.CASES + plain.NESTED)
def test_every_step_equals_the_plain_implementation(settings, steps):
    expected = plain.by_hand(steps, **settings)
    assert rates("sequence", steps, **settings) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("cycles", [1, 3, 7, 10, 49, 1000])
def test_no_rounding_moves_the_end_of_a_cycle(cycles):
    """A falling line that starts again: its last step is its lowest, however steps round."""
    falling = {"name": "no-warmup", "peak_lr": 3e-4, "min_lr": 3e-5, "decay": "linear"}
    one = rates("no-warmup", 7, **falling)
    parts = [{"length": "100%", "repeat": cycles, "schedule": falling}]
    assert rates("sequence", 7 * cycles, parts=parts) == pytest.approx(one * cycles, rel=1e-12)


def test_no_rounding_moves_the_end_of_a_part():
    for first in range(1, 1000):
        curve = schedules.find("sequence").model_validate(
            {
                "parts": [
                    {"length": f"{first / 10}%", "schedule": {"name": "constant", "lr": 1.0}},
                    {
                        "length": f"{(1000 - first) / 10}%",
                        "schedule": {"name": "constant", "lr": 2},
                    },
                ]
            }
        )
        assert [curve(first / 1000), curve((first + 1) / 1000)] == [1.0, 2.0]


def test_spans_are_of_the_part_and_rates_of_the_base(load):
    run = load(
        "{length: 25%, schedule: {name: rewarm, peak_lr: 5x base, min_lr: base, warmup: 10%}}",
        "{length: 48_000 tokens, repeat: 3, schedule: "
        "{name: rewarm, start_lr: base, peak_lr: 3e-4, min_lr: base, warmup: 100 steps}}",
    )
    first, second = run.schedule.parts
    assert [float(one.schedule.warmup) for one in (first, second)] == [0.1, 0.4]
    assert first.schedule.peak_lr == pytest.approx(1.5e-4)
    assert run.lr(25) == pytest.approx(1.5e-4)
    assert run.lr(250) == run.lr(500) == run.lr(750) == run.lr(1000) == 3e-5
    assert [run.lr(step) for step in (350, 600, 850)] == pytest.approx([3e-4] * 3, rel=1e-12)
    said = "parts.0.schedule.peak_lr = 5 × 3e-05 (the base's last) = 0.00015"
    assert said in list(schedules.of_base(run.schedule))


def test_tokens_of_the_whole_budget_fill_a_run_that_leaves_out_what_makes_no_batch(load):
    fall = "schedule: {name: no-warmup, peak_lr: 3e-4, min_lr: 0, decay: linear}"
    run = load(
        f"{{length: 32_015 tokens, {fall}}}", f"{{length: 32_016 tokens, {fall}}}", tokens=64_031
    )
    assert run.steps == 1000
    assert run.lr(1000) == 0.0 < run.lr(999)


def test_marks_carry_the_number_of_their_part():
    curve = schedules.find("sequence").model_validate(
        {
            "parts": [
                {"length": "50%", "schedule": REWARM | {"warmup": "10%"}},
                {"length": "50%", "repeat": 2, "schedule": {"name": "constant", "lr": 1e-5}},
            ]
        }
    )
    assert curve.marks() == pytest.approx(
        {
            "part 1: floor": 0.5,
            "part 1: end of warm-up": 0.05,
            "end of part 1": 0.5,
            "end of part 2, cycle 1": 0.75,
            "end of part 2, cycle 2": 1.0,
        }
    )
    assert schedules.origin("sequence").distribution == "rewarm-sequence"


def test_a_recipe_with_it_comes_back_equal(load, tmp_path):
    run = load(
        "{length: 250 steps, schedule: {name: rewarm, peak_lr: 5x base, min_lr: base, warmup: 1%}}",
        "{length: 75%, schedule: {name: sequence, parts: [{length: 100%, repeat: 2, "
        "schedule: {name: constant, lr: 3e-5}}]}}",
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(run.to_yaml())
    assert recipe.load(path) == run
    first = run.document()["schedule"]["parts"][0]
    assert (first["length"], first["schedule"]["warmup"]) == ("250 steps", "1%")
    assert (
        json.loads(run.model_dump_json())["schedule"]["parts"][1]["schedule"]["name"] == "sequence"
    )


def test_its_schema_is_part_of_the_recipes():
    known = recipe.schema()["$defs"]
    assert known["schedule-sequence"]["properties"]["parts"]["items"] == {"$ref": "#/$defs/Part"}
    assert set(known["Part"]["properties"]) == {"length", "repeat", "schedule"}
    assert known["Part"]["properties"]["schedule"]["$ref"] == "#/properties/schedule"


@pytest.mark.parametrize(
    ("inner", "valid"),
    [
        ({"name": "rewarm", "peak_lr": "5x base", "min_lr": 3e-5, "warmup": "1%"}, True),
        ({"name": "sequence", "parts": [{"length": 1, "schedule": REWARM}]}, True),
        ({"name": "rewarm", "peek_lr": 3e-4, "min_lr": 3e-5}, False),
        ({"name": "sequence", "parts": [{"length": 1, "schedule": {"name": "rewarm"}}]}, False),
    ],
)
def test_the_schema_checks_the_schedules_inside(inner, valid):
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe.schema()
    only = {"$defs": schema["$defs"], "properties": {"schedule": schema["properties"]["schedule"]}}
    parts = [{"length": "50%", "schedule": REWARM}, {"length": "50%", "schedule": inner}]
    document = {"schedule": {"name": "sequence", "parts": parts}}
    assert jsonschema.Draft202012Validator(only).is_valid(document) == valid


CONSTANT = "{length: 50%, schedule: {name: constant, lr: 1e-5}}"


@pytest.mark.parametrize(
    ("parts", "problems"),
    [
        (
            [CONSTANT, "{length: 50%, schedule: {name: rewarm, peek_lr: 3e-4, min_lr: 3e-5}}"],
            [
                "10:19: schedule.parts.1.schedule.peak_lr: required, but missing",
                "10:44: schedule.parts.1.schedule.peek_lr: no such setting; "
                "did you mean 'peak_lr'?",
            ],
        ),
        (
            [CONSTANT, "{length: 50%, schedule: {name: rewram}}"],
            ["10:30: schedule.parts.1.schedule.name: no schedule named 'rewram'; did you mean "],
        ),
        (
            [CONSTANT, "{length: 50%, schedule: {lr: 3e-5}}"],
            ["10:19: schedule.parts.1.schedule.name: required, but missing"],
        ),
        (
            [CONSTANT, "{length: 50%, schedule: constant}"],
            ["10:19: schedule.parts.1.schedule: should be settings, such as {name: rewarm"],
        ),
        (
            [CONSTANT, "{lenght: 50%, schedule: {name: constant, lr: 1e-5}}"],
            [
                "10:5: schedule.parts.1.length: required, but missing",
                "10:6: schedule.parts.1.lenght: no such setting; did you mean 'length'?",
            ],
        ),
        (
            [CONSTANT, "{length: 50%, repeat: 2, schedule: {name: rewarm, peak_lr: 3e-4, "
             "min_lr: 3e-5, warmup: 300 steps}}"],
            ["10:84: schedule.parts.1.schedule.warmup: 300 steps are too many"],
        ),
        (
            ["{length: 30%, schedule: {name: constant, lr: 1e-5}}", CONSTANT, "{length: 100 steps, "
             "schedule: {name: constant, lr: 1e-5}}"],
            ["6:1: schedule: the parts should take the whole run, and take 30 % + 50 % + 10 % = "
             "90 % of it"],
        ),
        ([CONSTANT, CONSTANT, CONSTANT], ["take 50 % + 50 % + 50 % = 150 % of it"]),
    ],
)  # fmt: skip
def test_a_fault_is_told_where_it_is(load, parts, problems):
    with pytest.raises(RecipeError) as caught:
        load(*parts)
    assert len(caught.value.problems) == len(problems), caught.value.problems
    for found, wanted in zip(caught.value.problems, problems, strict=True):
        assert wanted in found


def test_without_a_base_its_rate_is_refused_where_it_is_named(load):
    with pytest.raises(RecipeError, match=r"schedule\.parts\.0\.schedule\.lr: there is no base"):
        load("{length: 100%, schedule: {name: constant, lr: base}}", model="{preset: pythia-14m}")


def test_it_needs_a_part():
    with pytest.raises(ValidationError, match="at least 1 item"):
        schedules.find("sequence")(parts=())
