"""Studies: what their arms become, and what is wrong with them, each where it stands."""

import pytest

from rewarm.errors import RecipeError
from rewarm.study.study_file import is_study, load_study


@pytest.fixture
def write(tmp_path, thousand_steps):
    """Writes a study beside a recipe and a base; returns its file."""

    def written(text: str):
        (tmp_path / "recipe.yaml").write_text(thousand_steps)
        (tmp_path / "base.yaml").write_text(thousand_steps)
        path = tmp_path / "study.yaml"
        path.write_text(f"study: {tmp_path}/runs\nrecipe: recipe.yaml\n{text}")
        return path

    return written


def problems(path, *overrides):
    with pytest.raises(RecipeError) as raised:
        load_study(path, list(overrides))
    return [one.replace(f"{path.parent}/", "") for one in raised.value.problems]


def test_every_arm_with_every_seed(write, tmp_path):
    path = write("arms: {a: , b: {schedule.peak_lr: 1e-3, data.lanes: 4}}\nseeds: [3, 1]\n")
    plan = load_study(path)
    assert [job.name for job in plan.jobs] == ["a/3", "b/3", "a/1", "b/1"]
    assert [job.name for job in load_study(path, ["order=by-arm"]).jobs] == [
        *("a/3", "a/1", "b/3", "b/1")
    ]
    assert [job.seed for job in plan.of("b")] == [1, 3]
    one = plan.jobs[1].recipe
    assert (one.seed, one.schedule.peak_lr, one.data.lanes) == (3, 1e-3, 4)
    assert one.run == f"{tmp_path}/runs/b/3"
    assert plan.jobs[0].recipe.schedule.peak_lr == 3e-4
    assert plan.reference == "a"
    assert load_study(path, ["reference=b"]).reference == "b"


def test_arms_start_from_bases_that_are_still_to_be_trained(write, tmp_path):
    root = f"{tmp_path}/runs/bases/up"
    path = write(
        "bases: {up: base.yaml}\n"
        f"arms:\n  last: {{model: {{base: {root}}}, schedule: {{name: constant, lr: 2x base}}}}\n"
        f"  peak: {{model: {{base: {root}@100}}, schedule: {{name: constant, lr: base}}}}\n"
        f"  open: {{model: {{base: {root}/@before-decay}}, schedule: {{name: constant, "
        "lr: base}}\n"
        "  new:\n"
    )
    plan = load_study(path)
    # The base rises for 100 steps to 3e-4 and ends at 3e-5.
    rates = [job.recipe.lr(1) for job in plan.jobs[:3]]
    assert rates == pytest.approx([6e-5, 3e-4, 3e-4])
    assert [job.needs for job in plan.jobs] == ["up", "up", "up", None]
    assert plan.bases["up"].run == root


def test_a_study_is_told_from_a_recipe(write, tmp_path):
    assert is_study(write("arms: {a: }\n"))
    assert not is_study(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "study.yaml:1:1: arms: required, but missing"),
        ("arms: {}\n", "study.yaml:3:1: arms: Dictionary should have at least 1 item"),
        (
            "arms:\n  a: {schedule.peek_lr: 1e-3}\n",
            "study.yaml:4:7: arms.a: schedule.peek_lr: no such setting; did you mean 'peak_lr'?",
        ),
        (
            "arms:\n  a: {schedule: {name: rewram}}\n",
            "study.yaml:4:7: arms.a: schedule.name: no schedule named 'rewram'",
        ),
        (
            "arms: {a: }\nseeds: [1, 1]\n",
            "study.yaml:4:1: seeds: each seed should stand there once",
        ),
        ("arms: {a: }\nseeds: [-1]\n", "study.yaml:4:9: seeds.0: should be greater than"),
        (
            "arms: {a: }\nseads: [1]\n",
            "study.yaml:4:1: seads: no such setting; did you mean 'seeds'",
        ),
        ("arms: {ab: }\nreference: ba\n", "reference: no arm named 'ba'"),
        ("arms: {a: }\nbases: {b: no.yaml}\n", "no.yaml: no such file; a recipe is a YAML file"),
        (
            "arms: {a: }\nclaims: {late: 'final(x, a) < 1'}\n",
            "study.yaml:4:10: claims.late: no validation set named 'x' (sets: none)",
        ),
        (
            "bases: {up: base.yaml}\n"
            "arms: {a: {model: {base: ROOT@soon}, schedule: {name: constant, lr: base}}}\n",
            "schedule.lr: should be a count",
        ),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(write, tmp_path, text, said):
    found = problems(write(text.replace("ROOT", f"{tmp_path}/runs/bases/up")))
    assert any(said in one for one in found), found


def test_all_that_is_wrong_is_told_at_once(write):
    path = write("arms:\n  a: {seed: -1}\n  b: {tokens: 3}\nclaims: {x: 'final(y, a) < 1'}\n")
    found = problems(path)
    assert len(found) == 3
    assert found[0].startswith("study.yaml:4:7: arms.a: seed: should be greater than or equal to 0")
    assert found[1].startswith("study.yaml:5:7: arms.b: tokens: a budget of 3 tokens is less than")


def test_an_override_reaches_the_study(write):
    path = write("arms: {a: }\n")
    assert len(load_study(path, ["seeds=[1, 2, 3]"]).jobs) == 3
    assert "--set seads=1" in problems(path, "seads=1")[0]
