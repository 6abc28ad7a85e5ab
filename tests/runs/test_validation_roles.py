"""The role of a validation set: from the base's lineage, the recipe, or the set's name."""

import pytest
from training_runs import recipe_with

from recipes import recipe_of
from rewarm.errors import RecipeError
from rewarm.estimates.run_plan import plan_as_text, plan_run
from rewarm.runs.resolve_run import resolve
from rewarm.runs.validation_roles import resolve_roles, saved_roles

RECIPE = """\
run: runs/x
tokens: 100M
model: {preset: pythia-14m}
data:
  context: 1000
  train: {code: {shards: data/code/train}}
  validation:
    docs: {shards: data/docs/val}
    code: {shards: data/code/val}
    news: {shards: data/news}
batch: {tokens: 100_000, microbatch: 10}
schedule: {name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 100 steps}
"""


def roles(*overrides, lineage=()):
    found = resolve_roles(recipe_of(RECIPE, *overrides), lineage)
    return {name: role.role for name, role in found.items()}


def test_what_the_base_was_trained_on_is_upstream_and_what_is_new_to_it_downstream():
    known = {"docs": "upstream", "code": "downstream", "news": None}
    assert roles(lineage=[{"docs": "data/docs/train"}]) == known
    # By the folder, whatever the corpus is called; or by the name, if the folder was moved.
    assert roles(lineage=[{"text": "data/docs/train"}]) == known
    assert roles(lineage=[{"docs": "elsewhere/train"}]) == known
    assert roles(lineage=[{"docs": "data/docs/{00000..00003}.tar"}]) == known
    # An earlier ancestor counts; one of which nothing is known may have read the code, too.
    assert roles(lineage=[{"docs": ""}, {"web": "data/web"}]) == known
    assert roles(lineage=[{}, {"docs": ""}]) == known | {"code": None}


def test_replay_does_not_make_old_text_new():
    replay = "data.train.docs={shards: data/docs/train, weight: 0.05}"
    assert roles(replay, lineage=[{"docs": "data/docs/train"}])["docs"] == "upstream"
    assert roles(replay)["docs"] is None


def test_a_run_that_continues_on_its_bases_data_keeps_the_roles_of_the_recipe():
    lineage = [{"code": "data/code/train"}]
    assert roles(lineage=lineage) == {"docs": None, "code": None, "news": None}
    assert roles("data.validation.code.role=downstream", lineage=lineage)["code"] == "downstream"


def test_other_text_under_the_name_of_an_old_corpus_is_new():
    assert roles(lineage=[{"code": "data/old-code/train"}])["code"] == "downstream"


def test_a_set_held_out_of_old_text_stays_upstream_if_its_name_is_that_of_a_new_corpus():
    renamed = ("data.train={docs: {shards: data/new/train}}",)
    lineage = [{"docs": "data/docs/train"}]
    assert roles(*renamed, lineage=lineage)["docs"] == "upstream"
    moved = (*renamed, "data.validation.docs.shards=data/new/val")
    assert roles(*moved, lineage=lineage)["docs"] == "downstream"


def test_without_a_lineage_the_recipe_decides_and_then_the_name():
    assert roles("data.validation.docs.role=upstream")["docs"] == "upstream"
    named = "data.validation.upstream={shards: data/x}"
    assert roles(named)["upstream"] == "upstream"
    assert roles(named, "data.validation.upstream.role=downstream")["upstream"] == "downstream"
    with pytest.raises(RecipeError, match="'upstream' or 'downstream'"):
        roles("data.validation.docs.role=old")


def test_the_lineage_outranks_the_recipe_and_check_says_so():
    recipe = recipe_of(RECIPE, "data.validation.docs.role=downstream")
    role = resolve_roles(recipe, [{"docs": ""}])["docs"]
    assert str(role) == (
        "upstream (the base was trained on it; its role in the recipe is not used)"
    )


def test_check_states_the_roles_and_the_run_records_them(
    recipe_text, tmp_path, trained_run, corpora
):
    settings = {
        "model": f"{{base: {trained_run}}}",
        "data__train": f"{{new: {{shards: {corpora}/third/train}}}}",
        "data__validation": f"{{old: {{shards: {corpora}/upstream/val}}, "
        f"new: {{shards: {corpora}/third/val}}, other: {{shards: {corpora}/upstream.jsonl}}}}",
    }
    resolved = resolve(recipe_with(recipe_text, tmp_path / "run", **settings))
    lines = plan_as_text(plan_run(resolved)).splitlines()
    [old] = [line for line in lines if " old " in line]
    assert old.endswith(", upstream (the base was trained on it)")
    [new] = [line for line in lines if line.startswith(" ") and " new " in line]
    assert new.endswith(", downstream (the base was not trained on it, this run is)")
    [other] = [line for line in lines if " other " in line]
    assert other.endswith("no role (data.validation.other.role: upstream, or downstream)")
    written = resolved.recipe.data.validation
    assert [written[name].role for name in written] == ["upstream", "downstream", None]


def test_saved_roles():
    settings = {
        "data.train.web.shards": "data/web/train",
        "data.validation.a.b.shards": "data/web/val",
        "data.validation.a.b.role": "upstream",
        "data.validation.c.shards": "data/c/val",
        "data.validation.c.role": None,
        "data.validation.d.shards": "data/web/val",
        "data.validation.d.role": "else",
        "data.validation.role.tokens": 5,
        "data.validation.upstream.shards": "data/docs/val",
    }
    assert saved_roles(settings, []) == {"a.b": "upstream", "upstream": "upstream"}
    assert saved_roles(settings, [{"c": ""}]) == {
        "a.b": "upstream",
        "c": "upstream",
        "d": "downstream",
        "upstream": "upstream",
    }
