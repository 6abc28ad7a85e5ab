"""The recipe and study templates: valid, runnable as their comments say, true to their papers."""

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
from rewarm.study.decidable_claims import undecidable_claims
from rewarm.study.study_file import is_study, load_study
from rewarm.study.study_plan import Study

TEMPLATES = {path.stem: path for path in (ROOT / "recipes").glob("*.yaml")}
STUDIES = {name: path for name, path in TEMPLATES.items() if is_study(path)}
RECIPES = {name: path for name, path in TEMPLATES.items() if name not in STUDIES}
DEFAULT = "pythia-410m-rewarm"

# What each arm of arXiv:2308.04014 changes in the default recipe.
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
    "pile": {"data.train": {"upstream": {"shards": str(ROOT / "recipes/data/pile/train")}}},
}


def load(name):
    return load_recipe(RECIPES[name], base_lr=last_lr_of_base)


def run_directories_in_studies(name):
    """Yields the run directories of a recipe in the studies that train it unchanged."""
    for path in STUDIES.values():
        study = YamlDocument.load(path).data
        for base, file in study.get("bases", {}).items():
            if file == f"{name}.yaml":
                yield Path(study["study"]) / "bases" / base
        if study["recipe"] == f"{name}.yaml":
            yield Path(study["study"]) / next(iter(study["arms"])) / "17"


def commands(text):
    """The `rewarm` commands in a template's comments, without those that write shards."""
    return [line for line in re.findall(r"#   rewarm (.*)", text) if "shard" not in line]


def settings(name):
    return load(name).document()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_its_comments_show_how_to_run_it(plugins, name):
    text = RECIPES[name].read_text()
    # A recipe of a study has the run directory that the study gives it.
    directories = (Path("runs", name), *run_directories_in_studies(name))
    assert Path(load(name).run).relative_to(ROOT / "recipes") in directories
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    assert commands(text)[:3] == [f"new {name}", f"check {name}.yaml", f"train {name}.yaml"]


@pytest.mark.parametrize("name", RECIPES)
def test_json_schema_accepts_every_recipe(plugins, name):
    jsonschema.validate(YamlDocument.load(RECIPES[name]).data, json.loads(schema_json()))


def test_json_schema_rejects_wrong_settings():
    schema = json.loads(schema_json())
    for wrong in ("schedule.peak_lr=5y base", "schedule.warmup=soon", "seed=-1", "sede=1"):
        document = YamlDocument.load(RECIPES[DEFAULT])
        document.apply_override(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document.data, schema)


@pytest.mark.parametrize("arm", ARMS)
def test_arm_differs_from_the_default_recipe_as_stated(arm):
    expected = settings(DEFAULT)
    expected["run"] = str(ROOT / "recipes" / "runs" / f"pythia-410m-{arm}")
    for path, value in ARMS[arm].items():
        *parents, last = path.split(".")
        section = expected
        for part in parents:
            section = section[part]
        if value is None:
            del section[last]
        elif path == "data.train":
            section[last] = {
                "upstream": {**section[last]["c4"], "weight": 1.0, **value["upstream"]}
            }
        else:
            section[last] = value
    assert settings(f"pythia-410m-{arm}") == expected


@pytest.mark.parametrize(
    ("name", "steps"), [("warmup-0.5", 656), ("rewarm", 1313), ("warmup-2", 2626)]
)
def test_warm_up_is_as_long_as_in_the_paper(name, steps):
    recipe = load(f"pythia-410m-{name}")
    assert recipe.steps == 131_296
    rates = [recipe.lr(step) for step in (steps - 1, steps, steps + 1)]
    assert rates[0] < rates[1] == pytest.approx(3e-4, rel=1e-3)
    assert rates[1] >= rates[2] or rates[2] == pytest.approx(3e-4, rel=1e-6)


# Rates at steps of 4,768, from the numbers in the follow-up papers.
FOLLOW_UPS = {
    "replay": {0: 3e-5, 48: 3e-4, 4768: 3e-5},
    "infinite": {48: 3e-4, 2909: 1.65e-4, 4052: 1.65e-4, 4768: 3e-5},
    "wsd": {
        48: 3e-4,
        3814: 3e-4,
        4053: 1.65e-4,
        4768: 3e-5,
    },  # 1 - sqrt(1/4), a quarter into the decay
    "d2z": {477: 3e-4, 2622: 1.5e-4, 4768: 0.0},
    "reuse": {0: 3e-5, 3392: 6e-6, 4768: 3e-7},  # a fifth at 71.13 %
}


@pytest.mark.parametrize("name", FOLLOW_UPS)
def test_follow_up_has_the_rates_of_its_paper(plugins, name):
    recipe = load(f"pythia-410m-{name}")
    rates = {step: recipe.lr(step or 1) for step in FOLLOW_UPS[name]}
    # Rounding to a step (0.02 % of the run) matters most in a warm-up of 48 steps.
    assert rates == pytest.approx(FOLLOW_UPS[name], rel=0.2 if name == "replay" else 7e-3)


def test_mixture_of_reuse_changes_at_the_mark_of_its_schedule(plugins):
    recipe = load("pythia-410m-reuse")
    (switch,) = recipe.schedule.marks().values()
    starts = {start for pieces in recipe.corpus_weights.values() for start, _ in pieces}
    assert sorted(starts) == [0, round(switch * recipe.steps) * recipe.sequences_per_step]


def test_preview_commands_in_the_readme_run(command, tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("\n## Schedules\n")[2]
    shells = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    lines = re.findall(r"^rewarm ((?:new|plot-schedule) .*)$", shells, re.MULTILINE)
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    for line in lines:
        code, out, err = command(*line.split())
        assert (code, err) == (0, "")
    # The last one prints rates; the run ends at min_lr.
    assert [row.split(",")[-1] for row in out.splitlines()[1:]][-1] == "3e-05"


@pytest.mark.parametrize("name", STUDIES)
def test_study_is_valid_and_its_comments_show_how_to_run_it(plugins, name):
    text = STUDIES[name].read_text()
    plan = load_study(STUDIES[name])
    assert Path(plan.study.study) == ROOT / "recipes" / "runs" / name
    assert plan.claims
    assert text.startswith(f"# yaml-language-server: $schema={STUDY_SCHEMA_FILE}\n")
    assert commands(text) == [
        f"new {name}",
        f"check {name}.yaml",
        f"compare {name}.yaml --workers {2 if name == 'cpu-mini' else 3 if plan.bases else 8}",
    ]
    jsonschema.validate(YamlDocument.load(STUDIES[name]).data, json.loads(schema_json(Study)))


@pytest.mark.parametrize("arm", ["rewarm", *sorted(ARMS.keys() - {"pile"})])
def test_arms_of_the_papers_study_equal_their_own_recipes(arm):
    job = load_study(STUDIES["paper"]).runs_of(arm)[0]
    assert job.recipe.document() | {"run": ""} == settings(f"pythia-410m-{arm}") | {"run": ""}


@pytest.mark.parametrize("peak", ["1.5e-4", "3e-4", "6e-4"])
def test_pile_arms_of_the_papers_study_follow_its_schedule(peak):
    full = load(DEFAULT)  # its peak is 3e-4
    job = load_study(STUDIES["paper"]).runs_of(f"pile-{peak}")[0]
    assert job.recipe.steps == 22_114
    for step in (1, 656, 1313, 2000, 13_130, 22_114):
        expected = full.lr(step) * float(peak) / 3e-4
        assert job.recipe.lr(step) == pytest.approx(expected, rel=0.016)


# arXiv:2308.04014, section 3: the sampling of SlimPajama's sources, in %.
SOURCES = {
    "commoncrawl": 67, "c4": 15, "github": 4.5, "books": 4.5, "wikipedia": 4.5, "arxiv": 2.5,
    "stackexchange": 2,
}  # fmt: skip


def shares(recipe):
    """The share of each corpus in the first batch, in %."""
    weights = {name: pieces[0][1] for name, pieces in recipe.corpus_weights.items()}
    return {name: 100 * weight / sum(weights.values()) for name, weight in weights.items()}


def test_slimpajama_is_sampled_as_in_the_paper():
    assert shares(load(DEFAULT)) == pytest.approx(SOURCES)
    page = (ROOT / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `\w+` \| ([\d.]+) % \|", page, re.MULTILINE)
    assert {name: float(weight) for name, weight in rows} == SOURCES


def test_the_studies_are_as_the_readme_says(plugins):
    readme = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", readme, re.MULTILINE))
    assert rows.keys() == STUDIES.keys()
    plans = {name: load_study(path) for name, path in STUDIES.items()}
    assert "10 B tokens: 0 to 50 % replay" in rows["follow-ups"]
    assert {round(job.recipe.tokens / 1e9) for job in plans["follow-ups"].runs} == {10}
    for name, millions in (("gpu-mini", 30), ("cpu-mini", 1.2)):
        assert f" at {millions} M" in rows[name]
        (base, *_) = plans[name].bases.values()
        parameters = base.model.explicit_architecture.parameters
        assert parameters / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize("replay", [0, 0.5, 1, 5, 10, 50])
def test_replay_takes_its_share_of_all_sources_alike(plugins, replay):
    recipe = load_study(STUDIES["follow-ups"]).runs_of(f"replay-{replay:g}")[0].recipe
    expected = {name: share * (1 - replay / 100) for name, share in SOURCES.items()}
    upstream = {"upstream": replay} if replay else {}
    assert shares(recipe) == pytest.approx({**expected, **upstream}, rel=1e-6)


@pytest.mark.parametrize("name", ["paper", "follow-ups"])
def test_the_seeds_and_evaluations_of_a_papers_study_can_decide_its_claims(plugins, name):
    plan = load_study(STUDIES[name])
    assert len(plan.study.seeds) == 3
    assert undecidable_claims(plan) == {}
    one = undecidable_claims(load_study(STUDIES[name], ["seeds=[17]"]))
    assert set(one) == set(plan.claims)


def test_lengths_in_tokens_are_those_of_the_paper():
    claims = load_study(STUDIES["paper"]).claims
    text = "4.2 it is ahead for the first 100 B tokens"
    difference = claims[text].difference(lambda _request, _seed: 0.4, 17)
    assert 0.4 - difference == pytest.approx(100e9 / 296_859_205_632)  # 33.69 %, not 33 %


def test_full_size_recipes_hold_out_the_piles_own_validation_file():
    """A hash of the Pile's training text is no held-out set: Pythia was trained on all of it."""
    for name, path in TEMPLATES.items():
        if name.startswith(("pythia", "paper", "follow")):
            assert "--validation" not in path.read_text(), name
            commands_for_pile = re.findall(r"rewarm shard PILE(\S*) --out (\S*)", path.read_text())
            assert {(source, out) for source, out in commands_for_pile} <= {
                ("/val.jsonl.zst", "data/pile/val"),
                ("/train", "data/pile/train"),
            }
