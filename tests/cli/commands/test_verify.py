import pytest
from shard_folders import flip_bit
from text_corpora import write_texts

from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def test_verify_of_intact_shards(corpora, command):
    code, out, _ = command("verify", corpora / "upstream")
    assert code == 0
    train, val = out.splitlines()
    assert train.endswith("shards are intact")
    assert "/train: " in train
    assert "/val: " in val


def test_verify_names_every_damaged_shard(tmp_path, tokenizer, command):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=60)
    shards = write_shards([text], tmp_path / "out", tokenizer, shard_tokens=1000)["."].shards
    for name in ("00001.tar", "00002.tar"):
        flip_bit(tmp_path / "out" / name)
    code, out, err = command("verify", tmp_path / "out")
    assert code == 3
    assert f"out: {len(shards) - 2} of {len(shards)} shards are intact" in out
    assert "00001.tar: changed since it was written" in err
    assert "00002.tar: changed since it was written" in err
    assert "00000.tar" not in err


def test_verify_finds_documents_in_both_folders(tmp_path, tokenizer, command):
    lines = write_texts(tmp_path / "a.jsonl", "upstream", documents=20).read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[5:8], '{"text": "of its own"}']) + "\n")
    (tmp_path / "c.jsonl").write_text('{"text": "of its own, too"}\n')
    for name in "abc":
        write_shards([tmp_path / f"{name}.jsonl"], tmp_path / name, tokenizer, shard_tokens=300)
    code, out, err = command("verify", tmp_path / "a", "--overlap", tmp_path / "b")
    assert code == 3
    assert "3 documents are in both" in err
    assert len([line for line in out.splitlines() if " = " in line]) == 3
    code, _, err = command("verify", tmp_path / "b", "--overlap", tmp_path / "b")
    assert (code, "4 documents" in err) == (3, True)
    code, out, _ = command("verify", tmp_path / "a", "--overlap", tmp_path / "c")
    assert (code, "no document is in both" in out) == (0, True)


@pytest.mark.parametrize("reference", ["last", "10"])
def test_verify_reads_a_checkpoint_by_its_reference(trained_run, command, reference):
    code, out, _ = command("verify", f"{trained_run}@{reference}")
    assert code == 0
    assert "intact" in out
    code, _, err = command("verify", f"{trained_run}@7777")
    assert (code, "7,777" in err or "7777" in err) == (3, True)


def test_verify_says_what_it_found_instead_of_shards_a_run_or_a_checkpoint(tmp_path, command):
    recipe, other = tmp_path / "r.yaml", tmp_path / "other"
    recipe.touch()
    (other / "inner").mkdir(parents=True)
    expected = "expected a folder of shards, a run or a checkpoint"
    for path, message in (
        (
            recipe,
            f"a YAML file, such as a recipe or a study; {expected}; a recipe or a study: rewarm "
            f"check {recipe}",
        ),
        (other, f"a folder of something else; {expected}"),
        (other / "inner", f"an empty folder; {expected}"),
    ):
        code, _, err = command("verify", path)
        assert (code, err) == (3, f"error: {path}: {message}\n")
