"""What `train` refuses before its first step, `check` refuses with the same message and code."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from text_corpora import write_texts
from training_runs import run

from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import Preempted


@pytest.fixture(scope="module")
def base(tmp_path_factory, corpora):
    """A short run on the test corpora: 4 steps of a model with 64 positions."""
    folder = tmp_path_factory.mktemp("base")
    text = f"""\
run: {folder}/base
tokens: 4096
model: {{architecture: {{layers: 1, hidden: 32, heads: 2, vocabulary: 512, positions: 64}}}}
data:
  context: 64
  train: {{downstream: {{shards: {corpora}/downstream/train}}}}
batch: {{tokens: 1024, microbatch: 16}}
schedule: {{name: constant, lr: 1e-3}}
precision: fp32
"""
    return run(text, folder / "base")


@pytest.fixture
def copy(base, tmp_path):
    """A copy of the base's checkpoint that a test may damage."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture
def refused(recipe_text, tmp_path, command, capsys):
    """Has `check` and `train` refuse a recipe alike; returns the exit code and the message."""

    def refuse(*overrides: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe_text)
        capsys.readouterr()  # of runs that the test made before
        words = [path, *options]
        for override in overrides:
            words += ["--set", override]
        metrics = tmp_path / "run" / "metrics.jsonl"
        before = metrics.read_text() if metrics.is_file() else None
        checked, _, message = command("check", *words)
        trained, _, same_message = command("train", *words)
        assert (checked, message) == (trained, same_message)
        assert (metrics.read_text() if metrics.is_file() else None) == before
        assert "Traceback" not in message
        return checked, message

    return refuse


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory, corpora):
    """A folder of shards with a few tokens: less than a block of 65."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.jsonl").write_text(json.dumps({"text": "the rate"}) + "\n")
    tokenizer = load_tokenizer(str(corpora / "third" / "train"))
    write_shards([folder / "text.jsonl"], folder / "shards", tokenizer)
    return folder / "shards"


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory, corpora):
    """Shards of the same words, written with a tokenizer whose merges are in another order."""
    folder = tmp_path_factory.mktemp("other")
    settings = json.loads((corpora / "third" / "train" / "tokenizer.json").read_text())
    settings["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    text = write_texts(folder / "text.jsonl", "third", documents=40)
    write_shards([text], folder / "shards", load_tokenizer(str(folder / "tokenizer.json")))
    return folder / "shards"


def test_context_longer_than_the_bases_positions(refused, base):
    code, message = refused(f"model={{base: {base}}}", "data.context=128")
    assert code == 3
    assert "128" in message
    assert "64 positions" in message


def test_tokenizer_of_the_base_differs_from_the_shards(refused, base, other_tokenizer):
    code, message = refused(
        f"model={{base: {base}}}",
        f"data.train={{third: {{shards: {other_tokenizer}}}}}",
        "data.validation={}",
        "data.max_epochs=null",
    )
    assert code == 3
    assert f"{other_tokenizer}: not written with the tokenizer of {base}" in message


@pytest.mark.parametrize("where", ["data.train.third", "data.validation.third"])
def test_datasets_of_different_tokenizers(refused, other_tokenizer, where):
    settings = f"{{shards: {other_tokenizer}}}"
    relative = ("data.train.downstream.weight=0.7", "data.train.upstream.weight=0.3")
    code, message = refused(f"{where}={settings}", "data.max_epochs=null", *relative)
    assert code == 3
    assert "tokenizer" in message
    assert str(other_tokenizer) in message


def test_validation_tokens_shorter_than_the_context(refused):
    code, message = refused("data.validation.upstream.tokens=63")
    assert code == 3
    assert "63 tokens, less than one sequence of 64" in message


def test_validation_folder_shorter_than_a_block(refused, tiny_corpus):
    code, message = refused(f"data.validation.upstream={{shards: {tiny_corpus}}}")
    assert code == 3
    assert f"{tiny_corpus}: too little data to measure a loss on" in message


def test_training_folder_shorter_than_a_block(refused, tiny_corpus):
    code, message = refused(f"data.train.upstream.shards={tiny_corpus}")
    assert code == 3
    assert f"{tiny_corpus}: too little data" in message


def test_base_without_weights(refused, copy):
    for name in ("MANIFEST.json", "progress.json"):
        (copy / name).unlink()
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").unlink()
    code, message = refused(f"model={{base: {copy}}}")
    assert code == 3
    assert f"{copy}: no weights" in message


def test_base_checkpoint_with_a_missing_file(refused, copy):
    (copy / "optimizer.safetensors").unlink()
    code, message = refused(f"model={{base: {copy}}}")
    assert code == 3
    assert "optimizer.safetensors is missing" in message


def test_base_that_does_not_exist(refused, tmp_path):
    code, message = refused(f"model={{base: {tmp_path}/nowhere}}")
    assert code == 3
    assert "nowhere: no such folder" in message


def test_run_path_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    code, message = refused(f"run={tmp_path}/file")
    assert code == 3
    assert f"{tmp_path}/file: cannot be written: Not a directory" in message


def test_run_path_cannot_be_written(refused):
    code, message = refused("run=/proc/rewarm-run")  # not even root creates files there
    assert code == 3
    assert "/proc/rewarm-run: cannot be written: " in message


def test_run_directory_that_has_checkpoints(refused, tmp_path, recipe_text):
    run(recipe_text, tmp_path / "run", tokens=2048)
    code, message = refused()
    assert code == 3
    assert "already has checkpoints, up to step-00000002; continue it with --resume" in message


def test_run_directory_that_another_process_has_locked(refused, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with (tmp_path / "run" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, message = refused()
    assert code == 3
    assert "in use by another process" in message


def test_resume_with_a_recipe_that_changes_the_outcome(refused, tmp_path, recipe_text):
    run(recipe_text, tmp_path / "run", tokens=2048)
    code, message = refused("optimizer.weight_decay=0.2", options=("--resume",))
    assert code == 3
    assert "optimizer.weight_decay: 0.1 → 0.2" in message
    assert "accept them with --accept-changes" in message


def test_resume_from_a_damaged_recipe(refused, tmp_path, recipe_text):
    checkpoint = run(recipe_text, tmp_path / "run", tokens=2048)
    (checkpoint / "recipe.yaml").write_text("run: [")
    code, message = refused("tokens=2048", options=("--resume",))
    assert code == 3
    assert "recipe.yaml" in message


def test_epochs_include_the_data_that_the_base_has_read(refused, base, corpora):
    """Of 128 blocks, 64 before the run and 16 in it: each alone is within the limit."""
    index = json.loads((corpora / "downstream" / "train" / "index.json").read_text())
    blocks = sum((shard["tokens"] - 1) // 64 for shard in index["shards"])
    assert json.loads((base / "progress.json").read_text())["blocks"] == {"downstream": 64}
    start = (f"model={{base: {base}}}", "data.carry=true", "seed=17", "data.lanes=16")
    corpus = f"data.train={{downstream: {{shards: {corpora}/downstream/train}}}}"
    code, message = refused(*start, corpus, "tokens=1024", f"data.max_epochs={72 / blocks}")
    assert code == 3
    assert f"the run needs {80 * 64:,} tokens" in message


def test_optimizer_state_of_a_base_that_has_none(refused, copy):
    for name in ("MANIFEST.json", "progress.json"):
        (copy / name).unlink()
    (copy / "optimizer.safetensors").unlink()
    code, message = refused(f"model={{base: {copy}}}", "optimizer.carry=true")
    assert code == 3
    assert "has no optimizer state to carry" in message


def test_data_position_of_a_base_that_records_none(refused, copy):
    for name in ("MANIFEST.json", "progress.json"):
        (copy / name).unlink()
    code, message = refused(f"model={{base: {copy}}}", "data.carry=true")
    assert code == 3
    assert "this is a local model, which records no data position" in message


def test_vocabulary_larger_than_the_embedding(refused):
    code, message = refused("model.architecture.vocabulary=64")
    assert code == 3
    assert "embedding rows" in message


def test_width_that_fp8_cannot_have(refused):
    code, message = refused("precision=fp8", "model.architecture.hidden=36")
    assert code == 2
    assert "precision: fp8" in message


def test_every_problem_is_in_one_message(refused, tmp_path):
    code, message = refused(
        "data.train.upstream.shards=nowhere",
        "data.validation.downstream.shards=nor-here",
        f"model={{base: {tmp_path}/missing}}",
    )
    assert code == 3
    for text in ("nowhere: no such folder", "nor-here: no such folder", "missing: no such folder"):
        assert text in message


# A run directory that is not what it was: the run neither starts over nor falls back silently.


@pytest.fixture
def stopped(recipe_text, tmp_path):
    """A run of 20 steps with checkpoints at steps 4, 8 and 12, after which it was stopped."""
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "run", until=12, every__save=4)
    return tmp_path / "run"


def test_resume_past_an_incomplete_checkpoint(refused, stopped):
    (stopped / "checkpoints" / "step-00000012" / "MANIFEST.json").unlink()
    code, message = refused("every.save=4", options=("--resume",))
    assert code == 3
    assert "step-00000012: not a complete checkpoint" in message
    assert "--resume-from STEP" in message
    code, message = refused("every.save=4")
    assert code == 3
    assert "already has checkpoints, up to step-00000012" in message


def test_checkpoints_that_are_gone(refused, stopped, tmp_path):
    """As when they are on a disk that is not mounted."""
    (stopped / "checkpoints").rename(tmp_path / "unmounted")
    (stopped / "checkpoints").mkdir()
    code, message = refused("every.save=4", options=("--resume",))
    assert code == 3
    assert "the run had saved checkpoints, and there is none now; mount or restore" in message
    (stopped / "events.jsonl").unlink()  # the metrics alone show it too
    assert refused("every.save=4", options=("--resume",)) == (code, message)
    assert refused("every.save=4") == (code, message)
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text(lines[0])  # killed before its first checkpoint
    code, message = refused("every.save=4")
    assert code == 3
    assert "has the metrics.jsonl of a run, and no checkpoint" in message


def test_metrics_of_another_recipe_without_a_checkpoint(refused, stopped, tmp_path):
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "events.jsonl").unlink()
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text(lines[0])  # killed before its first checkpoint
    code, message = refused("every.save=4", "seed=6", options=("--resume",))
    assert code == 3
    assert "has the metrics.jsonl of another recipe, and no checkpoint:\n  seed: 5 → 6" in message


def test_resume_from_a_checkpoint_that_does_not_exist(refused, stopped):
    code, message = refused("every.save=4", options=("--resume-from", "6"))
    assert code == 3
    assert "no checkpoint at step 6; the run has checkpoints at steps 4, 8, 12" in message


@pytest.mark.parametrize("setting", ["tokens=64", "shards={corpora}/third/val"])
def test_resume_with_other_validation_data(refused, stopped, corpora, setting):
    override = f"data.validation.upstream.{setting.format(corpora=corpora)}"
    code, message = refused("every.save=4", override, options=("--resume",))
    assert code == 3
    assert "the data of the validation sets upstream is not that on which the losses" in message
    assert "--accept-changes" in message


def test_resume_with_a_replaced_validation_shard(refused, recipe_text, corpora, tmp_path):
    """The recipe is the same: only the folder has other shards."""
    shards = tmp_path / "val"
    shutil.copytree(corpora / "upstream" / "val", shards)
    setting = f"data.validation.upstream.shards={shards}"
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "run", until=5, data__validation__upstream__shards=shards)
    shutil.rmtree(shards)
    shutil.copytree(corpora / "third" / "val", shards)
    code, message = refused(setting, options=("--resume",))
    assert code == 3
    assert "validation sets upstream" in message


@pytest.fixture
def own_recipe(recipe_text, tmp_path, command):
    """Has `check` and `train` refuse a recipe inside its run directory; returns the message."""

    def refuse(text: str, *options: str) -> str:
        path = tmp_path / "mine" / "recipe.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(recipe_text.replace(f"run: {tmp_path}/run", "run: .") + text)
        before = {file: file.read_bytes() for file in path.parent.glob("*.*")}
        checked, _, message = command("check", path, *options)
        trained, _, same_message = command("train", path, *options)
        assert (checked, message) == (trained, same_message)
        assert checked == 3
        assert {file: file.read_bytes() for file in path.parent.glob("*.*")} == before
        assert not (path.parent / "checkpoints").exists()
        return message

    return refuse


def test_a_recipe_inside_its_run_directory_is_not_replaced(own_recipe, tmp_path):
    for options in ((), ("--resume",)):
        message = own_recipe("# Tuned by hand for weeks.\n", *options)
        assert f"{tmp_path}/mine/recipe.yaml: rewarm did not write this file" in message
        assert f"name another run directory, --set run={tmp_path}/mine/run, or rename" in message


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_files_of_another_program_are_not_replaced(refused, tmp_path, name):
    theirs = tmp_path / "run" / name
    theirs.parent.mkdir()
    theirs.write_text('{"theirs": 1}\n')
    for options in ((), ("--resume",)):
        code, message = refused(options=options)
        assert code == 3
        assert f"{theirs}: rewarm did not write this file" in message
        assert theirs.read_text() == '{"theirs": 1}\n'


def test_a_commented_recipe_in_a_run_directory_is_not_replaced(refused, base, tmp_path):
    shutil.copytree(base.parents[1], tmp_path / "run")
    own = tmp_path / "run" / "recipe.yaml"
    code, message = refused("optimizer.weight_decay=0.2", options=("--resume",))
    assert "rewarm did not write" not in message
    own.write_text(f"# A note.\n{own.read_text()}")
    code, message = refused("optimizer.weight_decay=0.2", options=("--resume",))
    assert code == 3
    assert f"{own}: rewarm did not write this file" in message


def test_a_recipe_beside_its_run_directory_may_be_trained_there(recipe_text, tmp_path, command):
    path = tmp_path / "mine" / "train.yaml"
    path.parent.mkdir()
    path.write_text(recipe_text.replace(f"run: {tmp_path}/run", "run: ."))
    code, _, _ = command("train", path, "--set", "tokens=1024", "--set", "every.evaluate=null")
    assert code == 0
    code, _, message = command("train", path.with_name("recipe.yaml"), "--resume")  # its own
    assert (code, "changed" in message) == (0, False)
