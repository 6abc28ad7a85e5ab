import pytest
from shard_folders import file_contents
from stopped_sharding import stop_at_a_bad_line
from text_corpora import write_texts
from tokenizers import Tokenizer, normalizers

from rewarm.data.inputs.input_records import ReadOptions
from rewarm.data.shard_format import read_shard_index
from rewarm.data.sharding import tokenize_documents
from rewarm.data.sharding.shard_job import JobSettings, ShardJob
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer, tokenizer_digest
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def test_shards_of_another_command_are_kept_and_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)
    text, partial, _ = stop_at_a_bad_line(tmp_path, tokenizer)
    before = file_contents(partial)
    with pytest.raises(DataError, match=r"another command .shard_tokens 800 there and 500 here"):
        write_shards([text], tmp_path / "out", tokenizer, shard_tokens=500)
    where = ReadOptions(where=(("meta", "x"),))
    with pytest.raises(DataError, match=r"another command .where none there and meta=x here\)"):
        write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800, options=where)
    assert {**file_contents(partial), "lock": b""} == before


def test_shards_of_a_tokenizer_with_another_normalizer_are_kept_and_refused(
    tmp_path, tokenizer, monkeypatch
):
    """It has the same vocabulary and merges, so that the digest in the index is the same."""
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)
    text, partial, _ = stop_at_a_bad_line(tmp_path, tokenizer)
    before = file_contents(partial)
    other = Tokenizer.from_str(tokenizer.encoder.to_str())
    other.normalizer = normalizers.Lowercase()
    assert tokenizer_digest(other) == tokenizer.digest
    with pytest.raises(DataError, match=r"another command .tokenizer "):
        write_shards([text], tmp_path / "out", tokenizer._replace(encoder=other), shard_tokens=800)
    assert {**file_contents(partial), "lock": b""} == before


def test_another_command_without_a_finished_shard_is_replaced(tmp_path, tokenizer):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=30)
    write_shards([text], tmp_path / "expected", tokenizer, shard_tokens=500)
    settings = JobSettings(tokenizer="0", eos=0, shard_tokens=1, validation=0.0)
    with ShardJob(tmp_path / "out", settings) as job:
        (job.folder / "00000.tar").write_bytes(b"unfinished")
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=500)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")


@pytest.mark.parametrize("marker", [None, "{}", '{"name": "a job of another program"}'])
def test_a_foreign_folder_is_not_touched(tmp_path, tokenizer, marker):
    """Even with the input in it."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    text = write_texts(partial / "a.jsonl", "upstream", documents=3)
    if marker:
        (partial / "job.json").write_text(marker)
    before = file_contents(tmp_path)
    with pytest.raises(DataError, match=r"out\.partial.*not (a folder of|written by)"):
        write_shards([text], tmp_path / "out", tokenizer)
    assert file_contents(tmp_path) == before


def test_files_of_others_in_the_folder_stay(tmp_path, tokenizer):
    with ShardJob(
        tmp_path / "out", JobSettings(tokenizer="0", eos=0, shard_tokens=1, validation=0.0)
    ) as job:
        (job.folder / "notes.txt").write_text("mine")
        (job.folder / "00000.tar").write_bytes(b"unfinished")
        job.remove()
    assert file_contents(tmp_path) == {"out.partial/notes.txt": b"mine"}


def test_unfinished_files_of_a_killed_process_are_removed_and_counted(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenize_documents, "_BATCH_DOCUMENTS", 10)
    text, partial, _ = stop_at_a_bad_line(tmp_path, tokenizer)
    finished = len(list(partial.glob("*.tar"))) - 1
    for name in ("00077.tar", "00078.tar", "index.json.123.partial"):
        (partial / name).write_bytes(b"unfinished")
    with (partial / "finished.jsonl").open("a") as file:
        file.write('{"shard": {"name": "00')  # an incomplete line
    reports = []
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800, progress=reports.append)
    left_open = len(list((tmp_path / "out").glob("*.tar"))) - finished  # at the bad line
    assert reports[-1].removed_files - 3 in (0, 1)
    assert left_open >= 0
    assert not list((tmp_path / "out").glob("*.partial"))
    assert not (tmp_path / "out" / "00077.tar").exists()
    read_shard_index(tmp_path / "out")


def test_of_two_commands_on_one_folder_one_is_refused(tmp_path, tokenizer):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=30)
    errors = []

    def start_another(_):
        with pytest.raises(DataError, match="out: another `rewarm shard` is writing it") as error:
            write_shards([text], tmp_path / "out", tokenizer)
        errors.append(error)

    write_shards([text], tmp_path / "out", tokenizer, progress=start_another)
    assert len(errors) == 1
    write_shards([text], tmp_path / "expected", tokenizer)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")


@pytest.mark.parametrize("exists", [True, False])
def test_shards_are_written_to_where_a_link_leads(tmp_path, tokenizer, exists):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=3)
    (tmp_path / "disk").mkdir()
    if exists:
        (tmp_path / "disk" / "target").mkdir()
    (tmp_path / "out").symlink_to("disk/target")
    write_shards([text], tmp_path / "out", tokenizer)
    assert (tmp_path / "out").is_symlink()
    assert read_shard_index(tmp_path / "disk" / "target").documents == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "disk", "out"]


def test_what_no_folder_can_be_renamed_to_is_refused_at_once(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop: a link that leads to itself"):
        write_shards([], tmp_path / "loop", tokenizer)
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "disk")
    for name in ("disk", "out"):
        with pytest.raises(DataError, match=f"{name}: a mount point, .* name a folder in it"):
            write_shards([], tmp_path / name, tokenizer)


def test_what_a_kill_at_the_very_end_left_is_removed_by_the_next_command(
    tmp_path, tokenizer, monkeypatch
):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=10)
    write_shards([text], tmp_path / "expected", tokenizer, validation=0.3)
    with monkeypatch.context() as patch:
        patch.setattr("rewarm.data.sharding.shard_job.sync_to_disk", lambda _: None)
        patch.setattr("rewarm.data.sharding.shard_job._remove_records", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_shards([text], tmp_path / "out", tokenizer, validation=0.3)
    assert (tmp_path / "out" / "job.json").exists()
    with pytest.raises(DataError, match="out: complete, by an earlier command that was killed"):
        write_shards([text], tmp_path / "out", tokenizer, validation=0.3)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "expected")


def raise_interrupt(_):
    raise KeyboardInterrupt


def test_a_job_json_of_another_program_is_not_removed(tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.json").write_text("{}")
    with pytest.raises(DataError, match="out: not empty"):
        write_shards([], tmp_path / "out", tokenizer)
    assert file_contents(tmp_path) == {"out/job.json": b"{}"}
