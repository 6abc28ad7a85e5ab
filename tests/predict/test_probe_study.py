"""Which recipes a probe is for, and the study that it writes for them."""

import math
import shutil
from dataclasses import replace

import pytest
import yaml

from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.errors import CheckpointError, DataError, RecipeError
from rewarm.predict.probe_plan import ProbeCosts, plan_probes
from rewarm.predict.probe_study import (
    STUDY_FILE,
    check_new_folder,
    check_same_target,
    scaled_schedule,
    write_probe_study,
)
from rewarm.predict.probe_target import check_base, probe_target
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.runs.resolve_run import resolve
from rewarm.study.preflight_study import check_study
from rewarm.study.study_file import load_study

RECIPE = """\
run: {folder}/run
seed: 5
tokens: 400k
model: {{base: {base}}}
data:
  context: 64
  lanes: 2
  max_epochs: null
  train: {{third: {{shards: {corpora}/third/train}}}}
  validation:
    third: {{shards: {corpora}/third/val, tokens: 640}}
    upstream: {{shards: {corpora}/upstream/val, tokens: 640}}
batch: {{tokens: 1024, microbatch: 16}}
schedule: {{name: rewarm, start_lr: base, peak_lr: 1e-2, min_lr: base, warmup: 39 steps}}
precision: fp32
tasks: {{limit: 5}}
"""
WEIGHT = "data.train.third.weight=95%"
COSTS = ProbeCosts(0.01, 0.01, 1.0)


@pytest.fixture
def target(trained_run, corpora, tmp_path):
    """Returns the recipe with changes, and the target of a probe that it is."""
    text = RECIPE.format(folder=tmp_path, base=trained_run, corpora=corpora)

    def load(*changes):
        document = YamlDocument(text, "recipe")
        for change in changes:
            document.apply_override(change)
        recipe = validate_recipe(document, base_lr=last_lr_of_base)
        check_base(recipe)
        resolved = resolve(recipe)
        resolved.raise_problems()
        return recipe, probe_target(resolved)

    return load


def written(target, folder, *changes):
    recipe, probe = target(*changes)
    plan = plan_probes(recipe.steps, COSTS, 1, probe.replay)
    write_probe_study(recipe, probe, plan, folder)
    return load_study(folder / STUDY_FILE)


def test_the_study_of_a_recipe(target, tmp_path, corpora):
    """Its arms can start, and differ in peak, replay and length only."""
    folder = tmp_path / "probe"
    plan = written(target, folder)
    check_study(plan)
    recipes = {run.arm: run.recipe for run in plan.runs}
    assert {arm: recipe.steps for arm, recipe in recipes.items()} == {
        **dict.fromkeys(("peak", "quarter"), 130),
        **dict.fromkeys(("long", "replay-5"), 390),
    }
    peak, quarter = recipes["peak"], recipes["quarter"]
    assert [peak.lr(step) for step in (1, 13, 130)] == pytest.approx(
        [1e-3 + 9e-3 / 13, 1e-2, 1e-3], rel=1e-4
    )
    for step in (1, 13, 60, 130):
        assert quarter.lr(step) == pytest.approx(peak.lr(step) / 4, rel=1e-4)
    weights = {name: pieces[0][1] for name, pieces in recipes["replay-5"].corpus_weights.items()}
    assert weights == pytest.approx({"third": 0.95, "upstream": 0.05})
    # The base was trained on a corpus that an upstream validation set was held out of.
    assert recipes["replay-5"].data.train["upstream"].shards == f"{corpora}/upstream/train"
    assert {run.seed for run in plan.runs} == {5}
    content = yaml.safe_load((folder / STUDY_FILE).read_text())
    assert content["arms"]["peak"] == {}
    assert content["arms"]["quarter"].keys() == {
        "schedule.peak_lr",
        "schedule.min_lr",
        "schedule.start_lr",
    }
    longer = {"tokens", "every.log", "every.evaluate", "every.save"}
    assert content["arms"]["long"].keys() == longer
    assert content["arms"]["replay-5"].keys() == longer | {"data.train"}
    assert all(recipe.tasks.names == () for recipe in recipes.values())


def test_replay_in_the_recipe_is_that_of_an_arm(target, tmp_path, corpora):
    old = f"data.train.old={{shards: {corpora}/downstream/train, weight: 1}}"
    plan = written(target, tmp_path / "probe", old, "data.train.third.weight=9")
    replay = {
        run.arm: {name: pieces[0][1] for name, pieces in run.recipe.corpus_weights.items()}
        for run in plan.runs
    }
    assert replay["peak"] == replay["long"] == {"third": 1}
    assert replay["replay-10"] == pytest.approx({"third": 0.9, "old": 0.1})


def test_without_old_data_no_arm_replays(target, tmp_path, trained_run):
    """The base is not a rewarm checkpoint: what it was trained on is not known."""
    base = next(trained_run.glob("checkpoints/step-*20"))
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (copy / name).write_bytes((base / name).read_bytes())
    changes = [f"model={{base: {copy}, base_lr: 1e-3}}", "data.validation.third.role=downstream"]
    plan = written(target, tmp_path / "probe", *changes)
    assert [run.arm for run in plan.runs] == ["peak", "quarter", "long"]
    recipe, probe = target(*changes)
    assert "what the base was trained on is not on record" in probe.note
    assert "add it to data.train, under the name upstream" in probe.note
    old = dict(recipe.data.train)["third"].shards.replace("third", "downstream")
    _, advised = target(*changes, f"data.train.upstream={{shards: {old}, weight: 5%}}", WEIGHT)
    assert advised.replay == pytest.approx(0.05)
    with pytest.raises(RecipeError, match=r"are not on record.*give it as model\.base_lr"):
        target(f"model={{base: {copy}}}", changes[1], "schedule={name: constant, lr: 1e-3}")
    with pytest.raises(RecipeError, match=r"the base's last rate is 0\.8 of its peak"):
        target(f"model={{base: {copy}, base_lr: 8e-3}}", changes[1])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            ["model={preset: pythia-14m}", "schedule.start_lr=0", "schedule.min_lr=0"],
            "model.base: none",
        ),
        (["model.fresh=true"], "model.fresh: true: newly initialized weights"),
        (["data.validation={}"], r"no set is upstream or downstream \(sets: none\)"),
        (["data.validation.upstream=null"], "should be"),
    ],
)
def test_what_no_probe_is_for_is_refused(target, changes, problem):
    with pytest.raises(RecipeError, match=problem):
        target(*changes)


def test_a_recipe_without_old_data_to_measure_is_refused(target, corpora):
    only_new = f"data.validation={{third: {{shards: {corpora}/third/val}}}}"
    with pytest.raises(RecipeError, match=r"no set is upstream \(sets: third: downstream, "):
        target(only_new)


def test_data_that_moved_is_named_by_its_recorded_path(target, corpora, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(corpora, moved)

    def replayed(folder):
        shards = f"{{shards: {folder}/upstream/train, weight: 5%}}"
        return (f"data.train.upstream={shards}", WEIGHT)

    set_moved = f"data.validation.upstream.shards={moved}/upstream/val"
    role = "data.validation.upstream.role=upstream"
    for changes in ([set_moved], [set_moved, role]):
        with pytest.raises(RecipeError) as refused:
            target(*replayed(moved), *changes)
        message = str(refused.value)
        assert "no set is upstream" in message
        assert f"upstream ({corpora}/upstream/train): if that is elsewhere now, put" in message
        assert "or add a set of text that the base was trained on and data.train does" in message
    # Both ways work.
    _, probe = target(*replayed(corpora))
    assert list(probe.old) == ["upstream"]
    other = f"data.validation.other={{shards: {moved}/downstream/val, role: upstream}}"
    _, probe = target(*replayed(moved), set_moved, other)
    assert probe.arms.sets("upstream") == ("other",)


def test_a_link_at_the_recorded_path_is_replayed(target, corpora, tmp_path):
    recipe, _ = target()
    resolved = resolve(recipe)
    recorded = tmp_path / "recorded"
    *older, base = resolved.origin.ancestors
    base = base.model_copy(update={"corpora": {"upstream": f"{recorded}/upstream/train"}})
    origin = resolved.origin._replace(ancestors=(*older, base))
    elsewhere = replace(resolved, origin=origin)
    probe = probe_target(elsewhere)
    assert probe.old == {}
    assert f"{recorded}/upstream/train" in probe.note
    assert probe.note.endswith("put it, or a link to it, there")
    recorded.symlink_to(corpora)
    assert probe_target(elsewhere).old == {"upstream": 1}


def test_a_new_set_with_the_name_of_an_old_corpus_is_told_so(target, corpora):
    only = "data.validation={{{}: {{shards: {}/third/val, role: downstream}}, upstream: {}}}"
    upstream = f"{{shards: {corpora}/upstream/val}}"
    with pytest.raises(RecipeError, match=r"no set is downstream.*under another name and in"):
        target(only.format("downstream", corpora, upstream))
    _, probe = target(only.format("new", corpora, upstream))
    assert probe.arms.sets("downstream") == ("new",)


def test_a_recipe_of_old_data_only_is_refused(target, corpora):
    old = f"data.train={{upstream: {{shards: {corpora}/upstream/train}}}}"
    with pytest.raises(RecipeError, match="all of it is old data"):
        target(old, "data.validation.third.role=downstream")


def test_a_recipe_with_too_little_data_is_refused(target):
    with pytest.raises(DataError, match="corpus 'third': the run needs 399,360 tokens"):
        target("data.max_epochs=4")


def test_the_probe_of_another_recipe_is_refused(target, tmp_path):
    folder = tmp_path / "probe"
    written(target, folder)
    recipe, _ = target("run=elsewhere")
    check_same_target(recipe, folder)
    changed, _ = target("schedule.peak_lr=2e-2")
    with pytest.raises(CheckpointError, match=r"schedule\.peak_lr: 0\.01 → 0\.02; undo"):
        check_same_target(changed, folder)


def test_other_files_are_not_mixed_with_those_of_a_probe(target, tmp_path):
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"has other files, such as notes\.txt"):
        written(target, folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(
        CheckpointError, match=r"notes\.txt: cannot be the folder of a probe: Not a"
    ):
        check_new_folder(folder / "notes.txt")


def test_a_probe_without_its_target_is_told_so(target, tmp_path):
    folder = tmp_path / "probe"
    written(target, folder)
    (folder / "target.yaml").unlink()
    recipe, _ = target()
    with pytest.raises(CheckpointError, match=r"study\.yaml and no target\.yaml.*restore.*--out"):
        check_same_target(recipe, folder)


@pytest.mark.parametrize(
    "schedule",
    [
        "{name: rewarm, start_lr: 1e-4, peak_lr: 1e-2, min_lr: 1e-3, warmup: 20 steps}",
        "{name: no-warmup, peak_lr: 1e-2, decay: none, preheat: 2k tokens}",
        "{name: constant, lr: 1e-3}",
        "{name: d2z, peak_lr: 1e-2}",
        "{name: infinite, peak_lr: 3e-3, constant_lr: 1e-3, min_lr: 1e-4, annealing: 10%}",
        "{name: wsd, peak_lr: 1e-3, min_lr: 0, warmup: 65 steps, decay: 133120 tokens}",
    ],
)
def test_any_schedule_is_scaled(target, plugins, schedule):
    recipe, _ = target(f"schedule={schedule}")
    document = YamlDocument(recipe.to_yaml(), "recipe")
    document.set_value(("schedule",), scaled_schedule(recipe, 0.25), "test")
    document.set_value(("tokens",), recipe.tokens // 2, "test")
    short = validate_recipe(document)
    for progress in (0.1, 0.3, 0.7, 1.0):
        expected = recipe.schedule(progress) / 4
        assert math.isclose(short.schedule(progress), expected, rel_tol=1e-3, abs_tol=1e-9)


def test_a_steep_decay_of_tokens_is_scaled(target, plugins):
    """1 - sqrt is steepest at its start, which a third of 120 steps, rounded, would move."""
    wsd = "{name: wsd, peak_lr: 1e-3, min_lr: 1e-4, warmup: 20 steps, decay: 40960 tokens}"
    recipe, _ = target("tokens=122880", f"schedule={wsd}")
    settings = scaled_schedule(recipe, 0.25)
    assert settings["warmup"] == 20 / 120
    document = YamlDocument(recipe.to_yaml(), "recipe")
    document.set_value(("schedule",), settings, "test")
    scaled = validate_recipe(document)
    for step in range(1, 121):
        assert scaled.lr(step) == pytest.approx(recipe.lr(step) / 4, rel=1e-5)


def test_a_schedule_with_other_names_of_rates_is_refused(target, distribution):
    source = """
from typing import Literal
from rewarm import Schedule
class Other(Schedule):
    contract = 1
    name: Literal["other"] = "other"
    height: float
    def __call__(self, progress):
        return self.height
"""
    distribution("other_rates", source, other="Other")
    recipe, _ = target("schedule={name: other, height: 1e-3}")
    with pytest.raises(RecipeError, match="no arm with a lower peak can be made of it"):
        scaled_schedule(recipe, 0.25)
