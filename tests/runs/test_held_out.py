"""Warnings of validation sets that the base may have been trained on."""

import pytest
from training_runs import recipe_with

from rewarm.runs.held_out import held_out_warnings
from rewarm.runs.validation_roles import resolve_roles, with_roles


@pytest.fixture
def warnings(recipe_text, tmp_path):
    """Returns a function of the lineage's corpora; the sets are the `val` of splits."""

    def of(*lineage, **settings):
        recipe = recipe_with(recipe_text, tmp_path / "run", **settings)
        return held_out_warnings(with_roles(recipe, resolve_roles(recipe, lineage)), lineage)

    return of


def test_a_split_of_other_text_than_the_bases_own_shards_is_a_warning(warnings, corpora):
    (warning,) = warnings({})  # a model from elsewhere: what it was trained on is not known
    assert warning.startswith("upstream: ")
    assert "upstream/val was split from the text of " in warning
    assert warning.endswith("left out, for Pythia the Pile's own val.jsonl.zst")
    # Also after a run on other text.
    assert warnings({}, {"third": f"{corpora}/third/train"}) == [warning]


def test_the_held_out_part_of_the_bases_own_shards_is_none(warnings, corpora):
    assert warnings() == []  # new weights
    assert warnings({"upstream": f"{corpora}/upstream/train"}) == []
    assert warnings({"x": f"{corpora}/upstream/train"}, {"third": f"{corpora}/third/train"}) == []


def test_a_set_that_no_split_wrote_is_none(warnings, corpora, tmp_path):
    (tmp_path / "val").mkdir()
    assert warnings({}, data__validation__upstream=f"{{shards: {tmp_path}/val}}") == []


def test_text_of_the_base_itself_is_a_warning(warnings, corpora):
    own = f"{corpora}/upstream/train"
    (warning,) = warnings({"upstream": own}, data__validation__upstream=f"{{shards: {own}}}")
    assert warning.endswith("upstream/train is text that the base was trained on")


def test_text_that_the_run_trains_on_is_a_warning(warnings, tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    corpus = {"data__train__upstream": f"{{shards: {tmp_path}, weight: 30%}}"}
    file = f"{{shards: {tmp_path}/b.jsonl}}"
    (warning,) = warnings(**corpus, data__validation__upstream=file)
    assert warning.endswith("b.jsonl is text that this run trains on")
    other = f"{{shards: {tmp_path}, split: test}}"
    assert warnings(**corpus, data__validation__upstream=other) == []
