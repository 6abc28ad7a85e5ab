import plain_power as plain
import pytest
from pydantic import ValidationError

from rewarm import recipe, schedules
from rewarm.quantities import Budget
from rewarm.testing import check_schedule, rates

WHOLE = Budget(300_000, plain.TOKENS_PER_STEP)


def made(budget=WHOLE, **settings):
    return schedules.find("power").model_validate(
        plain.PAPER | settings, context={"budget": budget}
    )


def test_it_keeps_the_contract():
    check_schedule("power")
    check_schedule("power", min_lr=0, shape="linear", seen="300B tokens", warmup="10 steps")


@pytest.mark.parametrize(("settings", "steps", "expected"), plain.REFERENCE)
def test_values_by_hand(settings, steps, expected):
    found = rates("power", steps, tokens_per_step=plain.TOKENS_PER_STEP, **settings)
    assert {step: found[step - 1] for step in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("settings", "steps"), plain.CASES)
def test_every_step_equals_the_plain_implementation(settings, steps):
    expected = plain.by_hand(steps, **settings)
    found = rates("power", steps, tokens_per_step=plain.TOKENS_PER_STEP, **settings)
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_figure_that_the_paper_prints_for_ten_trillion_tokens():
    budget = Budget(10 * 10**6, 10**6)
    curve = made(budget, a=4.6, decay="1 steps")
    assert f"{curve(1 - 1e-7):.4f}" == "0.0011"  # section 3.2


def test_the_curve_is_the_same_in_a_longer_run():
    places = [step * 1000 for step in range(1, 200)]
    short, long = (made(Budget(steps, 4096), warmup="1M tokens") for steps in (300_000, 900_000))
    assert [short(place / 300_000) for place in places] == pytest.approx(
        [long(place / 900_000) for place in places], rel=1e-12, abs=0
    )


def test_it_goes_on_where_a_base_stood():
    whole = made(warmup=0)
    rest = made(Budget(200_000, plain.TOKENS_PER_STEP), warmup=0, seen="419_430_400_000 tokens")
    for step in (1, 1000, 100_000):  # behind the 100,000 steps of the base
        assert rest(step / 200_000) == pytest.approx(whole((100_000 + step) / 300_000), rel=1e-12)


def test_marks():
    curve = made(warmup="1B tokens")
    marks = curve.marks()
    assert list(marks) == ["end of warm-up", "end of the peak", "start of decay"]
    assert marks["end of the peak"] * 300_000 * plain.TOKENS_PER_STEP == pytest.approx(
        25.964e9, 1e-4
    )
    assert curve(marks["end of the peak"]) == pytest.approx(0.02, rel=1e-12)
    assert curve(marks["end of the peak"] * 1.001) < 0.02
    assert "end of the peak" not in made(Budget(1000, 4096)).marks()
    assert schedules.origin("power").distribution == "rewarm-power"


def test_a_recipe_with_it_comes_back_equal(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run: runs/power\ntokens: 100B\nmodel: {preset: pythia-14m}\n"
        "data: {context: 2048, train: {new: {shards: data/new}}}\n"
        "batch: {tokens: 2_097_152, microbatch: 16}\n"
        "schedule: {name: power, peak_lr: 0.02, batch: 512, min_lr: 1e-5, warmup: 1B tokens}\n"
    )
    run = recipe.load(path)
    assert run.document()["schedule"]["token"] == "1 token"
    step = 20_000
    assert run.lr(step) == pytest.approx(512 * 4 * (step * 2_097_152) ** -0.51, rel=1e-12)
    path.write_text(run.to_yaml())
    assert recipe.load(path) == run


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"warmup": "60%", "decay": "50%"},
            "Value error, warmup takes 60 % of the run and decay 50 %; "
            "together they should take at most 100 %, not 110 %",
        ),
        (
            {"min_lr": 0},
            "Value error, an exponential decay never reaches 0; min_lr should be above 0",
        ),
        (
            {"min_lr": 0.01},
            "Value error, min_lr 0.01 should not be above 0.00291614, the rate where the decay "
            "starts: the lower of peak_lr 0.02 and 1024 × 4 × 1.13246e+12 tokens ^ -0.51",
        ),
        (
            {"warmup": 0, "decay": "100%"},
            "Value error, the power of no tokens is no rate; give a warmup, or a shorter decay",
        ),
        ({"b": 0.51}, "Input should be less than 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(settings, problem):
    with pytest.raises(ValidationError) as caught:
        made(**settings)
    (only,) = caught.value.errors()
    assert only["msg"] == problem
