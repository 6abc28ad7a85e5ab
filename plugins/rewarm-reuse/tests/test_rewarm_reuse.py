import plain_reuse as plain
import pytest
from pydantic import ValidationError

from rewarm import recipe, schedules
from rewarm.testing import check_schedule, rates


def test_it_keeps_the_contract():
    check_schedule("reuse")
    check_schedule("reuse", start_lr=4.5e-5, ratio="0%", switch_ratio="50%")


@pytest.mark.parametrize(("settings", "steps", "expected"), plain.REFERENCE)
def test_reference_values(settings, steps, expected):
    found = rates("reuse", steps, **settings)
    assert {step: found[step - 1] for step in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("settings", "steps"), plain.CASES)
def test_every_step_equals_the_plain_implementation(settings, steps):
    expected = plain.by_hand(steps, **settings)
    assert rates("reuse", steps, **settings) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_blend_switches_where_the_rate_is_a_fifth_of_its_start():
    curve = schedules.find("reuse")(start_lr=4.5e-5)
    assert f"{curve.blend_switch():.2%}" == "71.13%"
    assert curve(curve.blend_switch()) == pytest.approx(4.5e-5 / 5, rel=1e-12)
    assert curve.marks() == {"blend switch": curve.blend_switch()}


@pytest.mark.parametrize(("ratio", "switch", "place"), [("0%", "50%", 0.5), ("1%", "1%", 1.0)])
def test_other_switches_by_hand(ratio, switch, place):
    curve = schedules.find("reuse")(start_lr=4.5e-5, ratio=ratio, switch_ratio=switch)
    assert curve.blend_switch() == pytest.approx(place, rel=1e-12)


def test_it_starts_from_the_rate_of_the_base(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = (
        "run: runs/reuse\ntokens: 64000\nmodel: {base: models/base, base_lr: 4.5e-5}\n"
        "data: {context: 64, train: {new: {shards: data/new}}}\n"
        "batch: {tokens: 64, microbatch: 1}\nschedule: {name: reuse}\n"
    )
    path.write_text(text)
    run = recipe.load(path)
    assert run.lr(1000) == pytest.approx(4.5e-7, rel=1e-12)
    assert list(schedules.of_base(run.schedule)) == [
        "start_lr = 1 × 4.5e-05 (the base's last) = 4.5e-05"
    ]
    assert run.document()["schedule"]["start_lr"] == 4.5e-5
    path.write_text(text.replace("{base: models/base, base_lr: 4.5e-5}", "{preset: pythia-14m}"))
    with pytest.raises(recipe.RecipeError, match=r"start_lr: there is no base here"):
        recipe.load(path)


def test_a_switch_that_is_never_reached_is_refused():
    with pytest.raises(ValidationError) as caught:
        schedules.find("reuse")(start_lr=4.5e-5, switch_ratio="0.5%")
    (only,) = caught.value.errors()
    assert only["msg"] == (
        "Value error, switch_ratio 0.005 is never reached; "
        "the rate falls to ratio 0.01 of its start"
    )
