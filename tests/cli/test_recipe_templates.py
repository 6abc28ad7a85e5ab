"""The recipes that are shipped, and `rewarm new`."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from repository import ROOT

from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.cli.recipe_templates import SCHEMA_FILE, STUDY_SCHEMA_FILE, schema_json
from rewarm.recipe.recipe import load_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.study.study_file import Study, is_study, load_study

SHIPPED = {path.stem: path for path in (ROOT / "recipes").glob("*.yaml")}
STUDIES = {name: path for name, path in SHIPPED.items() if is_study(path)}
RECIPES = {name: path for name, path in SHIPPED.items() if name not in STUDIES}
DEFAULT = "pythia-410m-rewarm"

# What each arm of arXiv:2308.04014 changes in the default one, and how many steps it warms up.
ARMS = {
    "constant": {"schedule": {"name": "constant", "lr": 3e-5}},
    "no-warmup": {"schedule.name": "no-warmup", "schedule.start_lr": None, "schedule.warmup": None},
    "warmup-0.5": {"schedule.warmup": "0.5%"},
    "warmup-2": {"schedule.warmup": "2%"},
    "peak-1.5e-4": {"schedule.peak_lr": 1.5e-4, "schedule.min_lr": 1.5e-5},
    "peak-6e-4": {"schedule.peak_lr": 6e-4, "schedule.min_lr": 6e-5},
    "scratch": {"model.fresh": True},
    "step10000": {"model.revision": "step10000"},
    "step27000": {"model.revision": "step27000"},
    "pile": {"data.train": {"upstream": {"shards": "data/pile/train"}}},
}


def load(name):
    return load_recipe(RECIPES[name], base_lr=last_lr_of_base)


def in_studies(name):
    """The run directories that the studies have for a recipe as it is."""
    for path in STUDIES.values():
        said = YamlDocument.load(path).data
        for base, file in said.get("bases", {}).items():
            if file == f"{name}.yaml":
                yield Path(said["study"]) / "bases" / base
        if said["recipe"] == f"{name}.yaml":
            yield Path(said["study"]) / next(iter(said["arms"])) / "17"


def settings(name):
    return load(name).document()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_one_and_says_how_to_run_it(plugins, name):
    said = RECIPES[name].read_text()
    loaded = load(name)
    # Those of a study lie where the study would train them.
    assert loaded.run in (f"runs/{name}", *(str(one) for one in in_studies(name)))
    assert said.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    assert [line for line in re.findall(r"#   rewarm (.*)", said) if "shard" not in line][:3] == [
        f"new {name}",
        f"check {name}.yaml",
        f"train {name}.yaml",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_editors_find_every_recipe_valid(plugins, name):
    jsonschema.validate(YamlDocument.load(RECIPES[name]).data, json.loads(schema_json()))


def test_editors_find_what_is_wrong():
    schema = json.loads(schema_json())
    for wrong in ("schedule.peak_lr=5y base", "schedule.warmup=soon", "seed=-1", "sede=1"):
        document = YamlDocument.load(RECIPES[DEFAULT])
        document.set(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document.data, schema)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_from_the_default_in_what_it_names(arm):
    expected = settings(DEFAULT)
    expected["run"] = f"runs/pythia-410m-{arm}"
    for path, value in ARMS[arm].items():
        *parents, last = path.split(".")
        section = expected
        for part in parents:
            section = section[part]
        if value is None:
            del section[last]
        elif path == "data.train":
            section[last] = {"upstream": {**section[last]["downstream"], **value["upstream"]}}
        else:
            section[last] = value
    assert settings(f"pythia-410m-{arm}") == expected


@pytest.mark.parametrize(
    ("name", "steps"), [("warmup-0.5", 656), ("rewarm", 1313), ("warmup-2", 2626)]
)
def test_warm_ups_are_as_long_as_in_the_paper(name, steps):
    loaded = load(f"pythia-410m-{name}")
    assert loaded.steps == 131_296
    rates = [loaded.lr(step) for step in (steps - 1, steps, steps + 1)]
    assert rates[0] < rates[1] == pytest.approx(3e-4, rel=1e-3)
    assert rates[1] >= rates[2] or rates[2] == pytest.approx(3e-4, rel=1e-6)


# Where the follow-ups are to be at which step of 4,768, by the papers' own numbers.
FOLLOW_UPS = {
    "replay": {0: 3e-5, 48: 3e-4, 4768: 3e-5},
    "infinite": {48: 3e-4, 2909: 1.65e-4, 4052: 1.65e-4, 4768: 3e-5},
    "wsd": {48: 3e-4, 3814: 3e-4, 4053: 1.65e-4, 4768: 3e-5},  # √¼ down a quarter of the way
    "d2z": {477: 3e-4, 2622: 1.5e-4, 4768: 0.0},
    "reuse": {0: 3e-5, 3392: 6e-6, 4768: 3e-7},  # a fifth at 71.13 %
}


@pytest.mark.parametrize("name", FOLLOW_UPS)
def test_the_follow_ups_are_where_their_papers_say(plugins, name):
    loaded = load(f"pythia-410m-{name}")
    rates = {step: loaded.lr(step or 1) for step in FOLLOW_UPS[name]}
    # A step is 0.02 % of the run, which a warm-up of 48 steps feels most.
    assert rates == pytest.approx(FOLLOW_UPS[name], rel=0.2 if name == "replay" else 7e-3)


def test_the_blend_changes_where_reuse_says(plugins):
    loaded = load("pythia-410m-reuse")
    ((_, switch),) = loaded.schedule.marks().items()
    firsts = {first for pieces in loaded.weights.values() for first, _ in pieces}
    assert sorted(firsts) == [0, round(switch * loaded.steps) * loaded.sequences]


def test_new_lists_them(command):
    code, out, _ = command("new")
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert rows.keys() == SHIPPED.keys()
    assert rows[DEFAULT].startswith("Continue Pythia-410M from the Pile onto SlimPajama")


def test_the_previews_of_the_readme_run(command, tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    shells = "".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    lines = re.findall(r"^rewarm ((?:new|plot-schedule) .*)$", shells, re.MULTILINE)
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    for line in lines:
        code, out, err = command(*line.split())
        assert (code, err) == (0, "")
    # The last prints values: pythia's own end, the peak, the floor.
    assert [row.split(",")[-1] for row in out.splitlines()[1:]][-1] == "3e-05"


def test_new_writes_one_with_the_schema_beside_it(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("new", DEFAULT)
    assert (code, out.split()) == (0, [f"{DEFAULT}.yaml", SCHEMA_FILE])
    assert (tmp_path / f"{DEFAULT}.yaml").read_text() == RECIPES[DEFAULT].read_text()
    _, out, _ = command("schema")
    assert json.loads((tmp_path / SCHEMA_FILE).read_text()) == json.loads(out)
    code, _, err = command("new", DEFAULT)
    assert code == 2
    assert f"{DEFAULT}.yaml: is there already; remove it, or choose another folder" in err
    code, _, err = command("new", "pythia-410m-rewram")
    assert code == 2
    assert "no shipped recipe named 'pythia-410m-rewram'; did you mean" in err
    code, _, err = command("new", DEFAULT, "--out", tmp_path / "nowhere")
    assert code == 2
    assert "cannot be written: No such file or directory" in err


def test_new_brings_what_a_study_names(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu-mini-base.yaml").write_text("mine")
    code, out, _ = command("new", "cpu-mini")
    names = ["cpu-mini.yaml", "cpu-mini-rewarm.yaml", "cpu-mini-base.yaml"]
    assert (code, out.split()) == (0, [*names, SCHEMA_FILE, STUDY_SCHEMA_FILE])
    assert (tmp_path / names[1]).read_text() == SHIPPED["cpu-mini-rewarm"].read_text()
    assert (tmp_path / names[2]).read_text() == "mine"
    _, out, _ = command("schema", "--study")
    assert json.loads((tmp_path / STUDY_SCHEMA_FILE).read_text()) == json.loads(out)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_one_and_says_how_to_run_it(plugins, name):
    said = STUDIES[name].read_text()
    plan = load_study(STUDIES[name])
    assert plan.study.study == f"runs/{name}"
    assert plan.claims
    assert said.startswith(f"# yaml-language-server: $schema={STUDY_SCHEMA_FILE}\n")
    assert [line for line in re.findall(r"#   rewarm (.*)", said) if "shard" not in line] == [
        f"new {name}",
        f"check {name}.yaml",
        f"compare {name}.yaml --workers {2 if name == 'cpu-mini' else 3 if plan.bases else 8}",
    ]
    jsonschema.validate(YamlDocument.load(STUDIES[name]).data, json.loads(schema_json(Study)))


@pytest.mark.parametrize("arm", ["rewarm", *sorted(ARMS.keys() - {"pile"})])
def test_the_papers_study_has_the_arms_that_stand_alone(arm):
    [job] = load_study(STUDIES["paper"]).of(arm)
    assert job.recipe.document() | {"run": ""} == settings(f"pythia-410m-{arm}") | {"run": ""}


@pytest.mark.parametrize("peak", ["1.5e-4", "3e-4", "6e-4"])
def test_the_papers_study_is_near_its_curve_without_a_shift(peak):
    whole = load(DEFAULT)  # to 3e-4
    [job] = load_study(STUDIES["paper"]).of(f"pile-{peak}")
    assert job.recipe.steps == 22_114
    for step in (1, 656, 1313, 2000, 13_130, 22_114):
        expected = whole.lr(step) * float(peak) / 3e-4
        assert job.recipe.lr(step) == pytest.approx(expected, rel=0.016)
