"""Study files: the runs of their arms, and located error messages."""

import pytest

from rewarm.errors import RecipeError
from rewarm.recipe.recipe import load_recipe
from rewarm.study.study_file import is_study, load_study


@pytest.fixture
def write_study(tmp_path, thousand_steps):
    """Writes a study, its recipe and the recipe of a base; returns the study's file."""

    def write(text: str):
        (tmp_path / "recipe.yaml").write_text(thousand_steps)
        (tmp_path / "base.yaml").write_text(thousand_steps)
        path = tmp_path / "study.yaml"
        path.write_text(f"study: {tmp_path}/runs\nrecipe: recipe.yaml\n{text}")
        return path

    return write


def problems(path, *overrides):
    with pytest.raises(RecipeError) as raised:
        load_study(path, list(overrides))
    return [problem.replace(f"{path.parent}/", "") for problem in raised.value.problems]


def test_every_arm_runs_with_every_seed(write_study, tmp_path):
    path = write_study("arms: {a: , b: {schedule.peak_lr: 1e-3, data.lanes: 4}}\nseeds: [3, 1]\n")
    plan = load_study(path)
    assert [run.name for run in plan.runs] == ["a/3", "b/3", "a/1", "b/1"]
    assert [run.name for run in load_study(path, ["order=by-arm"]).runs] == [
        *("a/3", "a/1", "b/3", "b/1")
    ]
    assert [run.seed for run in plan.runs_of("b")] == [1, 3]
    recipe = plan.runs[1].recipe
    assert (recipe.seed, recipe.schedule.peak_lr, recipe.data.lanes) == (3, 1e-3, 4)
    assert recipe.run == f"{tmp_path}/runs/b/3"
    assert plan.runs[0].recipe.schedule.peak_lr == 3e-4
    assert plan.reference == "a"
    assert load_study(path, ["reference=b"]).reference == "b"


def test_arms_start_from_bases_that_are_not_trained_yet(write_study, tmp_path):
    root = f"{tmp_path}/runs/bases/up"
    path = write_study(
        "bases: {up: base.yaml}\n"
        f"arms:\n  last: {{model: {{base: {root}}}, schedule: {{name: constant, lr: 2x base}}}}\n"
        f"  peak: {{model: {{base: {root}@100}}, schedule: {{name: constant, lr: base}}}}\n"
        f"  open: {{model: {{base: {root}/@before-decay}}, schedule: {{name: constant, "
        "lr: base}}\n"
        "  new:\n"
    )
    plan = load_study(path)
    # The base rises for 100 steps to 3e-4 and ends at 3e-5.
    rates = [run.recipe.lr(1) for run in plan.runs[:3]]
    assert rates == pytest.approx([6e-5, 3e-4, 3e-4])
    assert [run.needs_base for run in plan.runs] == ["up", "up", "up", None]
    assert plan.bases["up"].run == root


def test_is_study(write_study, tmp_path):
    assert is_study(write_study("arms: {a: }\n"))
    assert not is_study(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "study.yaml:1:1: arms: required, but missing"),
        ("arms: {}\n", "study.yaml:3:1: arms: should not be empty"),
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
            "study.yaml:4:1: seeds: each seed should be listed once",
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
            "model.base: runs/bases/up@soon: not a checkpoint reference",
        ),
    ],
)
def test_a_problem_is_reported_with_its_location(write_study, tmp_path, text, message):
    reported = problems(write_study(text.replace("ROOT", f"{tmp_path}/runs/bases/up")))
    assert any(message in problem for problem in reported), reported


CANNOT_READ = (
    "cannot read 'final('; a claim is written such as `final(upstream, a) < final(upstream, b)` or "
    "`overtakes(a, b, downstream) after 30%`"
)


def test_all_problems_are_reported_at_once_each_with_its_line(write_study):
    path = write_study("""\
bases: {up: nowhere.yaml, down: study.yaml}
order: by-sed
arms:
  good:
  a: {seed: -1}
  b: {tokens: 3}
  c: {tokens.x: 3}
  d: {model: {base: runs/nowhere}, schedule: {name: constant, lr: base}}
  e: [1]
seeds: [1, x]
reference: godo
control: none
claims:
  x: final(y, good) < 1
  z: final(
""")
    starts = [problem.split(": ")[:3] for problem in problems(path, "orders=1", "no assignment")]
    assert starts == [
        ["--set no assignment", "should be written --set section.setting=value"],
        ["--set orders=1", "orders", "no such setting; did you mean 'order'?"],
        ["study.yaml:3:9", "bases.up", "nowhere.yaml"],
        ["study.yaml:3:27", "bases.down", "study.yaml"],
        ["study.yaml:4:1", "order", "should be 'by-seed' or 'by-arm' (got 'by-sed')"],
        ["study.yaml:7:7", "arms.a", "seed"],
        ["study.yaml:8:7", "arms.b", "tokens"],
        ["study.yaml:9:7", "arms.c", "tokens is a value and has no settings"],
        ["study.yaml:10:7", "arms.d", "model.base"],
        ["study.yaml:11:3", "arms.e", "should be settings (`key"],
        ["study.yaml:12:12", "seeds.1", "should be a valid integer (got 'x')"],
        ["study.yaml:13:1", "reference", "no arm named 'godo'; did you mean 'good'?"],
        ["study.yaml:14:1", "control", "no arm named 'none' (arms"],
        ["study.yaml:16:3", "claims.x", "no validation set named 'y' (sets"],
        ["study.yaml:17:3", "claims.z", CANNOT_READ],
    ]


def test_a_recipe_that_is_not_there_is_reported_with_the_line_of_the_study(write_study, tmp_path):
    path = write_study("arms: {a: , b: {tokens: 3}}\n")
    (tmp_path / "recipe.yaml").unlink()
    assert problems(path) == [
        "study.yaml:2:1: recipe: recipe.yaml: no such file; a recipe is a YAML file; did you mean "
        "'base.yaml'?"
    ]


def test_an_override_changes_an_arm_that_is_written_without_changes(write_study):
    study = load_study(write_study("arms:\n  a:\n"), ["arms.a.seed=5", "arms.a.tokens=200M"])
    assert [run.recipe.tokens for run in study.runs] == [200_000_000]


@pytest.mark.parametrize(
    ("arm", "override"),
    [
        ("{schedule.min_lr: 1e-5}", "schedule.peak_lr=1e-4"),
        ("{schedule.peak_lr: 2e-4, schedule.min_lr: 1e-5}", "schedule.peak_lr=1e-4"),
        (
            "{schedule: {name: rewarm, peak_lr: 2e-4, min_lr: 1e-5, warmup: 1%}}",
            "schedule.peak_lr=1e-4",
        ),
        (
            "{schedule.peak_lr: 2e-4}",
            "schedule={name: rewarm, peak_lr: 1e-4, min_lr: 1e-5, warmup: 1%}",
        ),
    ],
)
def test_an_override_changes_a_setting_of_an_arm_and_nothing_else(write_study, arm, override):
    study = load_study(
        write_study(f"arms:\n  warmup-0.5: {arm}\n"), [f"arms.warmup-0.5.{override}"]
    )
    [run] = study.runs
    assert (run.recipe.schedule.peak_lr, run.recipe.schedule.min_lr) == (1e-4, 1e-5)


def test_an_override_of_a_setting_of_the_recipe_says_where_it_belongs(write_study):
    [problem] = problems(write_study("arms: {a: }\n"), "schedule.peak_lr=1e-3")
    assert problem == (
        "--set schedule.peak_lr=1e-3: schedule is a setting of the recipe, and this is a study; "
        "for one of its arms write --set arms.NAME.schedule.peak_lr=1e-3, for all of them change "
        "recipe.yaml"
    )


def test_an_override_changes_a_claim_whose_name_has_dots(write_study):
    path = write_study("arms: {a: }\nclaims:\n  at 0.5: final(old, a) < 1\n")
    [problem] = problems(path, "claims.at 0.5=final(new, a) < 2")
    assert problem.startswith(
        "--set claims.at 0.5=final(new, a) < 2: claims.at 0.5: no validation set named 'new'"
    )


def test_a_recipe_is_not_a_study(write_study, tmp_path):
    write_study("arms: {a: }\n")
    [problem] = problems(tmp_path / "recipe.yaml")
    assert problem == (
        "recipe.yaml: this is a recipe, and a study is expected here (it has `arms`); run it with "
        "`rewarm train recipe.yaml`"
    )


def test_a_study_is_not_a_recipe(write_study, tmp_path):
    path = write_study("arms: {a: }\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert str(raised.value).replace(f"{tmp_path}/", "") == (
        "study.yaml: this is a study, and a recipe is expected here; run all its arms with `rewarm "
        "compare study.yaml`, or name its recipe, recipe.yaml"
    )


def test_an_arm_cannot_have_the_folder_of_the_bases_or_of_the_results(write_study):
    [problem] = problems(write_study("bases: {up: recipe.yaml}\narms: {bases: }\n"))
    assert "arms.bases: the study needs STUDY/bases itself; give the arm another name" in problem
    [problem] = problems(write_study("arms: {results.json: }\n"))
    assert "arms.results.json: the study needs STUDY/results.json itself" in problem
    assert load_study(write_study("arms: {bases: }\n")).runs[0].arm == "bases"


def test_overrides_change_the_study(write_study):
    path = write_study("arms: {a: }\n")
    assert len(load_study(path, ["seeds=[1, 2, 3]"]).runs) == 3
    assert "--set seads=1" in problems(path, "seads=1")[0]


def test_paths_are_relative_to_the_file_they_are_written_in(thousand_steps, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(thousand_steps)
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: runs\nrecipe: recipes/r.yaml\nbases: {up: recipes/r.yaml}\narms:\n"
        "  a: {data.train.downstream.shards: data/mine}\n"
        "  b: {model: {base: runs/bases/up}}\n"
        "  c: {model: {base: ./runs/bases/up@10}}\n"
    )
    monkeypatch.chdir("/")
    plan = load_study(path, ["arms.d={model: {base: ./base}}"])
    a, b, c, d = (run.recipe for run in plan.runs)
    assert plan.study.study == f"{tmp_path}/runs"
    assert a.run == f"{tmp_path}/runs/a/17"
    assert a.data.train["downstream"].shards == f"{tmp_path}/data/mine"
    assert a.data.train["upstream"].shards == f"{tmp_path}/recipes/data/old"
    assert [recipe.model.base for recipe in (b, c)] == [
        f"{tmp_path}/runs/bases/up",
        f"{tmp_path}/runs/bases/up@10",
    ]
    assert d.model.base == "/base"  # of the command line
    assert [run.needs_base for run in plan.runs] == [None, "up", "up", None]
    assert plan.study.arms["a"] == {"data.train.downstream.shards": "data/mine"}
    assert load_study(path, ["study=tmp/other"]).study.study == "/tmp/other"


def test_a_base_in_the_folder_of_the_study_is_no_hub_name(thousand_steps, tmp_path):
    (tmp_path / "r.yaml").write_text(thousand_steps)
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: .\nrecipe: r.yaml\nbases: {up: r.yaml}\narms: {a: {model: {base: bases/up}}}\n"
    )
    [run] = load_study(path).runs
    assert run.needs_base == "up"


def test_a_study_that_exists_only_in_the_working_directory_is_refused(
    write_study, tmp_path, monkeypatch
):
    (tmp_path / "files").mkdir()
    path = write_study("arms: {a: }\n").rename(tmp_path / "files" / "study.yaml")
    path.write_text("study: runs\nrecipe: ../recipe.yaml\narms: {a: }\n")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    [problem] = problems(path)
    assert "write ../runs, or use --set study=runs" in problem
