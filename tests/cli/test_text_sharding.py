"""`shards: text.jsonl`: check says what is sharded, and train, compare and plan do it before."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from rewarm_process import RewarmProcess
from text_corpora import write_texts
from training_runs import metrics

from rewarm.cli import text_sharding
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.corpus_sources import unsharded_texts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def text_recipe(recipe_text, corpora, tokenizer_json, tmp_path) -> Path:
    """A recipe with a corpus and a validation set of text, beside corpora of shards."""
    write_texts(tmp_path / "new.jsonl", "downstream", documents=200)
    write_texts(tmp_path / "held-out.jsonl", "downstream", documents=20, seed=1)
    text = recipe_text.replace(f"{corpora}/downstream/train", "new.jsonl")
    text = text.replace(f"{corpora}/downstream/val", "held-out.jsonl")
    text = text.replace("  architecture:", f"  tokenizer: {tokenizer_json}\n  architecture:")
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_check_says_what_is_sharded_and_train_does_it(
    text_recipe, command, cache, tmp_path, tokenizer_json
):
    code, output, _ = command("check", text_recipe)
    assert code == 0
    assert (
        "downstream   70.0% of the tokens: 14.34k tokens of text that is sharded before training: "
        "new.jsonl, 113,249 B in 1 file" in output
    ), output
    assert "downstream  all tokens of text that is sharded before training: held-out.jsonl, " in (
        output
    )
    assert files_of(cache) == []
    code, plan, _ = command("plan", text_recipe)
    assert code == 0
    assert (
        "text      some corpora are text that is not sharded yet, so their tokens are not" in plan
    )

    code, output, errors = command("train", text_recipe)
    assert (code, output) == (0, "run/checkpoints/step-00000020\n"), errors
    assert "text     1 of 2: sharding new.jsonl (113,249 B) with the tokenizer of " in errors
    assert "sharded  1 shard, 200 documents, " in errors
    assert f"read     1 file: {tmp_path}/held-out.jsonl\n" in errors
    _, output, _ = command("check", text_recipe, "--resume")
    assert "14.34k tokens of 21.71k = 0.66 epochs" in output, output

    # The same run on what `rewarm shard` writes.
    tokenizer = load_tokenizer(str(tokenizer_json))
    text = text_recipe.read_text()
    for name in ("new", "held-out"):
        write_shards([tmp_path / f"{name}.jsonl"], tmp_path / name, tokenizer)
        text = text.replace(f"{name}.jsonl", name)
    other = tmp_path / "other.yaml"
    other.write_text(text.replace(f"{tmp_path}/run", f"{tmp_path}/plain"))
    assert command("train", other)[0] == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "plain")


def test_changed_text_is_sharded_again_and_a_resume_says_so(text_recipe, command, tmp_path):
    assert command("train", text_recipe, "--set", "every.save=10")[0] == 0
    last = tmp_path / "run" / "checkpoints" / "step-00000020"
    shutil.rmtree(last)
    words = ("train", text_recipe, "--resume", "--set", "every.save=10")
    write_texts(tmp_path / "new.jsonl", "downstream", documents=210)
    code, _, errors = command(*words)
    assert code == 3
    assert "sharded  1 shard, 210 documents, " in errors
    assert "older    1 folder beside it with shards of the text as it was before; delete" in errors
    assert "the shards of downstream are not those that the run was started with; restore" in errors
    code, _, errors = command(*words, "--accept-changes")
    assert code == 0, errors
    assert "sharding" not in errors
    assert last.exists()


def test_problems_that_are_known_before_prevent_the_sharding(text_recipe, command, cache):
    code, _, errors = command("train", text_recipe, "--set", "model.architecture.vocabulary=200")
    assert code == 3, errors
    assert "has 377 entries, and the model only 200 embedding rows; name the model's" in errors
    words = ("--set", "data.train.upstream.shards=nowhere", "--set", "data.train.upstream.split=x")
    for name in ("check", "train"):
        code, _, errors = command(name, text_recipe, *words)
        assert (code, errors.count("error: ")) == (3, 1)
        assert "nowhere: no such folder" in errors
    words = ("--set", "data.validation.upstream.split=x")
    code, _, errors = command("check", text_recipe, *words)
    assert code == 3
    assert "upstream/val: token shards, to which field and split do not apply; remove" in errors
    assert files_of(cache) == []


def test_a_model_without_a_tokenizer_is_one_message(
    text_recipe, command, tmp_path, tokenizer_json, monkeypatch
):
    text = text_recipe.read_text().replace(f"  tokenizer: {tokenizer_json}\n", "")
    text_recipe.write_text(text)
    for name in ("check", "train"):
        code, _, errors = command(name, text_recipe)
        assert code == 3
        assert errors.splitlines()[-1].startswith(
            "error: no tokenizer is known with which to shard text: model.architecture has no "
            "tokenizer; set model.tokenizer to a folder with one, or write shards with `rewarm "
            "shard TEXT --out DIR --tokenizer T`, and name DIR"
        ), errors
    # That of a preset, where the hub's cache has it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    architecture = next(line for line in text.splitlines() if "architecture:" in line)
    text_recipe.write_text(text.replace(architecture, "  preset: pythia-14m"))
    code, _, errors = command("check", text_recipe)
    assert code == 3
    assert "EleutherAI/pythia-14m, whose tokenizer pythia-14m has, is not in the hub's" in errors
    model = tmp_path / "hub" / "models--EleutherAI--pythia-14m"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0123abc")
    (model / "snapshots" / "0123abc").mkdir(parents=True)
    shutil.copy(tokenizer_json, model / "snapshots" / "0123abc" / "tokenizer.json")
    code, output, errors = command("check", text_recipe)
    assert code == 0, errors
    assert "text that is sharded before training: new.jsonl" in output


def test_a_tokenizer_of_new_weights_has_to_be_that_of_the_shards(recipe_file, command, tmp_path):
    words = ("check", recipe_file, "--set", f"model.tokenizer={tmp_path}/tokenizer.json")
    code, _, errors = command(*words)
    assert code == 3
    assert "model.tokenizer should be a folder with a tokenizer.json, or that file" in errors
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1}, "a")).save(str(tmp_path / "tokenizer.json"))
    code, _, errors = command(*words)
    assert code == 3
    assert "not written with the tokenizer of" in errors


def test_the_time_limit_and_a_signal_end_the_sharding(text_recipe, command, cache, monkeypatch):
    code, _, errors = command("train", text_recipe, "--time-limit", "1s")
    assert code == 75
    assert "the time limit was reached while text is sharded; run the same command again" in errors
    shard_one = text_sharding._shard

    def shard_after_signal(*arguments):
        signal.raise_signal(signal.SIGTERM)
        shard_one(*arguments)

    monkeypatch.setattr(text_sharding, "_shard", shard_after_signal)
    code, _, errors = command("train", text_recipe)
    assert code == 75
    assert "SIGTERM: stopped; run the same command again" in errors
    assert files_of(cache) == []


@pytest.mark.slow
def test_a_study_shards_before_its_workers_start(text_recipe, command, cache, tmp_path):
    text = text_recipe.read_text().replace("tokens: 20480", "tokens: 5120")
    text_recipe.write_text(text)
    model = text[text.index("model:") : text.index("data:")]
    (tmp_path / "arm.yaml").write_text(
        text.replace(model, f"model: {{base: {tmp_path}/study/bases/up}}\n")
    )
    study = tmp_path / "study.yaml"
    settings = f"study: {tmp_path}/study\nseeds: [1]\narms:\n  a:\n"
    study.write_text(settings + "recipe: arm.yaml\nbases: {up: recipe.yaml}\n")
    code, output, errors = command("check", study)  # the base is not trained yet
    assert code == 0, errors
    assert output.count("text      sharded before training: ") == 2
    assert "text      sharded before training: new.jsonl, 113,249 B in 1 file\n" in output
    assert files_of(cache) == []
    study.write_text(settings + "recipe: recipe.yaml\n")
    process = RewarmProcess(tmp_path, "compare", study, "--json", cwd=tmp_path)
    assert process.wait() == 0, process.errors
    json.loads(process.output)
    assert process.errors.count("sharding ") == 2
    assert unsharded_texts([load_recipe(text_recipe)], download=False) == []
