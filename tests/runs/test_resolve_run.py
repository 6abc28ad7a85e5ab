"""A recipe is resolved once: base, resume state and every dataset are read one time per run."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from training_runs import metrics, recipe_with, run

from recipes import recipe_of
from rewarm.checkpoints import lineage
from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.data import shard_source
from rewarm.data.shard_format import Shard
from rewarm.data.shard_source import ShardSource
from rewarm.errors import CheckpointError, DataError, RewarmError
from rewarm.runs import corpus_sources, model_origin
from rewarm.runs.resolve_run import preflight, resolve
from rewarm.training import loop


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of what `resolve` reads with, by name."""
    counts = Counter()

    def count(module, name, label=None):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            counts[label or name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(corpus_sources, "ShardSource")
    for name in ("locate_base", "read_training_state", "read_architecture"):
        count(model_origin, name)
    count(lineage, "read_training_state", "read_training_state of the lineage")
    return counts


@pytest.fixture
def opened_shards(monkeypatch):
    """Counts how often each shard is opened and its sha256 checked, by path."""
    counts = Counter()

    def open_shard(folder, info, *args, verify, verified):
        counts[folder / info.name] += verify and verified is None
        return Shard(folder, info, *args, verify=verify, verified=verified)

    monkeypatch.setattr(shard_source, "Shard", open_shard)
    return counts


def test_shards_are_opened_and_verified_once_per_run(recipe_text, tmp_path, calls, opened_shards):
    run(recipe_text, tmp_path / "run")
    assert len(metrics(tmp_path / "run", "evaluate")) == 5
    folders = {path.parent for path in opened_shards}
    assert Counter(folder.name for folder in folders) == {"train": 2, "val": 2}
    assert set(opened_shards.values()) == {1}
    assert calls["ShardSource"] == 4  # two corpora, two validation sets


def test_a_folder_for_training_and_validation_is_opened_once(recipe_text, tmp_path, corpora, calls):
    shards = f"{corpora}/upstream/train"
    settings = {
        "data__train__downstream__shards": shards,
        "data__validation": f"{{a: {{shards: {shards}}}, b: {{shards: {shards}, tokens: 640}}}}",
    }
    resolved = resolve(recipe_with(recipe_text, tmp_path / "run", **settings))
    assert resolved.problems == []
    assert calls["ShardSource"] == 1
    sources = [part.source for part in (resolved.corpora | resolved.validation).values()]
    assert len(sources) == 4
    assert len(set(map(id, sources))) == 1


@pytest.fixture
def base(recipe_text, tmp_path):
    """The directory of a complete run of 20 steps."""
    run(recipe_text, tmp_path / "base")
    return tmp_path / "base"


def test_a_base_is_located_and_its_state_read_once(recipe_text, tmp_path, base, calls):
    settings = {"model": f"{{base: {base}}}", "optimizer__carry": "true", "data__carry": "true"}
    run(recipe_text, tmp_path / "run", tokens=2048, **settings)
    assert calls["locate_base"] == 1
    assert calls["read_training_state"] == 1
    assert calls["read_training_state of the lineage"] == 0


def test_a_resume_reads_its_state_once_and_locates_no_base(recipe_text, tmp_path, base, calls):
    settings = {"model": f"{{base: {base}}}", "tokens": 4096, "batch__microbatch": "auto"}
    run(recipe_text, tmp_path / "run", every__save=2, **settings)
    shutil.rmtree(last_checkpoint(tmp_path / "run"))
    shutil.rmtree(base)  # a resumed run does not need it any more
    calls.clear()
    checkpoint = run(recipe_text, tmp_path / "run", resume=True, **settings)
    assert checkpoint.name == "step-00000004"
    assert calls["locate_base"] == 0
    assert calls["read_training_state"] == 1
    assert calls["read_training_state of the lineage"] == 0
    assert calls["read_architecture"] == 1


def test_weights_and_optimizer_state_of_each_way_to_start(recipe_text, tmp_path, base):
    checkpoint = last_checkpoint(base)

    def sources(resume=False, **settings):
        directory = base if resume else tmp_path / "run"
        resolved = resolve(recipe_with(recipe_text, directory, **settings), resume=resume)
        assert resolved.problems == []
        return resolved.weights_directory, resolved.optimizer_state_directory

    assert sources() == (None, None)
    assert sources(model=f"{{base: {base}}}") == (checkpoint, None)
    assert sources(model=f"{{base: {base}}}", optimizer__carry="true") == (checkpoint, checkpoint)
    assert sources(model=f"{{base: {base}, fresh: true}}") == (None, None)
    assert sources(resume=True) == (checkpoint, checkpoint)


def test_what_a_resume_starts_from(recipe_text, base):
    resolved = resolve(recipe_with(recipe_text, base), resume=True)
    assert resolved.resume_state.checkpoint == last_checkpoint(base)
    assert resolved.resume_state.state == read_training_state(last_checkpoint(base))
    assert (resolved.resume_state.changes, resolved.resume_state.microbatch) == ([], 8)
    assert resolved.origin.base is None
    assert resolved.tokenizer_directory == last_checkpoint(base)
    assert "resumes after step 20" in resolved.start.weights


def test_a_checkpoint_saved_while_a_run_starts_is_refused(recipe_text, tmp_path, base, monkeypatch):
    """Another process trains in the same directory between `resolve` and the lock."""
    shutil.copytree(base, tmp_path / "other")

    def resolve_slowly(recipe, **options):
        resolved = resolve(recipe, **options)
        shutil.move(tmp_path / "other", recipe.run)
        return resolved

    monkeypatch.setattr(loop, "resolve", resolve_slowly)
    message = "another process saved step-00000020 while this one was starting"
    with pytest.raises(CheckpointError, match=message):
        run(recipe_text, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(base)
    assert last_checkpoint(tmp_path / "run").name == "step-00000020"


def test_data_is_carried_on_from_the_bases_position(recipe_text, tmp_path, base):
    long = run(recipe_text, tmp_path / "long", tokens=40960)
    settings = {"model": f"{{base: {base}}}", "data__carry": "true"}
    carried = read_training_state(run(recipe_text, tmp_path / "carried", **settings))
    # 20 steps and 20 more have read the blocks of 40.
    assert carried.carried == read_training_state(last_checkpoint(base)).blocks
    both = {name: carried.carried[name] + count for name, count in carried.blocks.items()}
    assert both == read_training_state(long).blocks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 6}, "seed was 5 and is 6; make them the same"),
        ({"data__lanes": 1}, "data.lanes was 2 and is 1"),
        (
            {"data__train__upstream__order": "sequential"},
            "data.train.upstream.order was shuffled and is sequential",
        ),
        (
            {"data__train": "{other: {shards: nowhere}}"},
            "no corpus in common: it has downstream, upstream, the recipe other",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_data_in_another_order_is_not_carried_on(recipe_text, tmp_path, base, settings, message):
    recipe = recipe_with(
        recipe_text, tmp_path / "run", model=f"{{base: {base}}}", data__carry="true", **settings
    )
    assert message in "\n".join(map(str, preflight(recipe)))


def test_a_run_is_not_resumed_with_other_shards(recipe_text, tmp_path, corpora):
    folder = shutil.copytree(corpora / "upstream" / "train", tmp_path / "upstream")
    settings = {"data__train__upstream__shards": folder}
    run(recipe_text, tmp_path / "run", **settings)
    index = json.loads((folder / "index.json").read_text())
    del index["shards"][-1]
    (folder / "index.json").write_text(json.dumps(index))
    max(folder.glob("*.tar")).unlink()
    with pytest.raises(CheckpointError, match="the shards of upstream are not those"):
        run(recipe_text, tmp_path / "run", resume=True, **settings)
    longer = {"tokens": 21504, **settings}
    resumed = run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **longer)
    assert resumed.name == "step-00000021"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda data: data[:-10]),
        ("optimizer.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("progress.json", lambda data: data.replace(b'"step": 20', b'"step": 19')),
        ("recipe.yaml", lambda data: data + b"\n"),
        ("MANIFEST.json", lambda _: b"{}"),
        ("MANIFEST.json", lambda data: data.replace(b"optimizer.safetensors", b"../../outside")),
    ],
    ids=["truncated", "a bit", "another step", "recipe", "empty manifest", "outside"],
)
def test_a_damaged_checkpoint_is_not_resumed_from(recipe_text, base, name, damage):
    path = last_checkpoint(base) / name
    path.write_bytes(damage(path.read_bytes()))
    recipe = recipe_with(recipe_text, base, tokens=30720)
    problems = resolve(recipe, resume=True, accept_changes=True, thorough=True).problems
    assert any("step-00000020" in str(problem) for problem in problems)
    assert {type(problem) for problem in problems} == {CheckpointError}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.architecture.vocabulary=64"],
            "its tokenizer has 377 entries, and the model only 64",
        ),
        (["data.max_epochs=0.1"], "the run needs "),
        (["data.max_epochs=0.1"], " epochs, and data.max_epochs is 0.1"),
    ],
)
def test_problems_have_the_arithmetic(recipe_text, overrides, message):
    problems = preflight(recipe_of(recipe_text, *overrides))
    assert any(message in str(problem) for problem in problems), problems


def test_all_problems_are_in_one_error_with_the_code_of_the_first(recipe_text):
    resolved = resolve(recipe_of(recipe_text))
    resolved.raise_problems()
    problems = [DataError("first"), RewarmError("second"), DataError("first")]
    with pytest.raises(DataError, match=r"\Afirst\nsecond\Z") as error:
        dataclasses.replace(resolved, problems=problems).raise_problems()
    assert error.value.exit_code == 3


def test_nothing_is_created(recipe_text, tmp_path):
    before = set(Path(tmp_path).rglob("*"))
    assert resolve(recipe_of(recipe_text), thorough=True).problems == []
    assert set(Path(tmp_path).rglob("*")) == before


def test_tokenizer_files_come_from_the_base_or_the_shards(recipe_text, tmp_path, base, corpora):
    new = resolve(recipe_of(recipe_text))
    assert new.tokenizer_directory == corpora / "downstream" / "train"
    from_base = resolve(recipe_of(recipe_text, f"model={{base: {base}}}"))
    assert from_base.tokenizer_directory == last_checkpoint(base)
    assert isinstance(new.corpora["upstream"].source, ShardSource)
