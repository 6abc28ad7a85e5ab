import os
import shutil
from pathlib import Path, PurePath

import pytest
from text_inputs import arrow_of, lines, parquet_of, tar_of

from rewarm.data.inputs.dataset_folders import split_of_name
from rewarm.data.inputs.document_readers import find_input_files, read_documents
from rewarm.data.inputs.input_formats import format_of
from rewarm.errors import DataError


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def found(folder: Path, **options) -> tuple[list[str], dict[str, str]]:
    """The names of the files to read, and the reason for each one that is skipped."""
    files, skipped = find_input_files([folder], **options)
    return (
        [file.relative_to(folder).as_posix() for file in files],
        {str(PurePath(location).relative_to(folder)): reason for location, reason in skipped},
    )


def test_hidden_files_and_leftovers_are_not_data(tmp_path):
    folder = write(
        tmp_path,
        {
            "a.jsonl": lines("one"),
            ".b.jsonl": lines("two"),
            ".ipynb_checkpoints/a-checkpoint.jsonl": lines("one"),
            "__MACOSX/a.jsonl": b"",
            "sub/._c.txt": b"",
            "sub/c.txt": b"three",
            "c.txt~": b"",
            "#c.txt#": b"",
            "d.jsonl.bak": b"",
            "e.jsonl.gz.part": b"",
        },
    )
    files, skipped = found(folder)
    assert files == ["a.jsonl", "sub/c.txt"]
    leftover = "a leftover of an editor or a download"
    assert skipped == {
        ".b.jsonl": "hidden",
        ".ipynb_checkpoints": "hidden",
        "sub/._c.txt": "hidden",
        "__MACOSX": "a leftover of another program",
        **dict.fromkeys(("c.txt~", "#c.txt#", "d.jsonl.bak", "e.jsonl.gz.part"), leftover),
    }


def test_licences_and_checksums_are_not_data_unless_they_are_named(tmp_path):
    names = ("LICENSE.txt", "licence.txt", "NOTICE.txt", "SHA256SUMS.txt", "md5.txt", "sha1.a.txt")
    folder = write(tmp_path, {"a.txt": b"one", **dict.fromkeys(names, b"x"), "a.jsonl.md5": b"x"})
    files, skipped = found(folder)
    assert files == ["a.txt"]
    assert set(skipped) == {*names, "a.jsonl.md5"}
    assert skipped["a.jsonl.md5"] == "its ending is not read: .md5"
    assert find_input_files([folder / "LICENSE.txt"]).files == [folder / "LICENSE.txt"]


def test_all_endings_are_read_in_any_case_and_the_others_are_listed(tmp_path):
    folder = write(
        tmp_path,
        dict.fromkeys(
            ["D.JSONL", "b.json.gz", "c.ndjson", "e.jsonl.xz", "f.TXT.bz2", "g.tgz", "h.tar.zst",
             "i.Feather", "j.npy", "k.zip", "l.md", "m.csv.gz", "n"], b"x"
        ),
    )  # fmt: skip
    files, skipped = found(folder)
    assert files == ["D.JSONL", "b.json.gz", "c.ndjson", "e.jsonl.xz", "f.TXT.bz2", "g.tgz",
                     "h.tar.zst", "i.Feather", "j.npy", "k.zip"]  # fmt: skip
    assert skipped == {
        "l.md": "its ending is not read: .md",
        "m.csv.gz": "its ending is not read: .csv.gz",
        "n": "its ending is not read: no ending",
    }
    assert format_of(PurePath("a.parquet.gz")) is None


def saved_dataset(*documents: str, more: dict[str, bytes] | None = None) -> dict[str, bytes]:
    state = b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'
    data = {"data-00000-of-00001.arrow": arrow_of(*documents), "state.json": state}
    return {**data, "dataset_info.json": b"{}", **(more or {})}


def test_caches_of_a_saved_dataset_are_not_data(tmp_path):
    more = {"cache-3ca2.arrow": arrow_of("x"), "tmp9a8b.arrow": arrow_of("x")}
    files, skipped = found(write(tmp_path, saved_dataset("one", more=more)))
    assert files == ["data-00000-of-00001.arrow"]
    assert skipped == {
        "cache-3ca2.arrow": "a cache of `datasets`",
        "tmp9a8b.arrow": "not one of the files that state.json lists",
        "state.json": "metadata",
        "dataset_info.json": "metadata",
    }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b'{"_data_files": [{"filename": "b.arrow"}]}', r"b\.arrow: missing, and state\.json"),
        (b'{"_data_files": [{"filename": "../b.arrow"}]}', "not file names"),
        (b'{"_data_files": [3]}', "not file names"),
        (b'{"_data_fi', r"state\.json: cannot be read"),
        (b"[]", r"state\.json: damaged"),
        (b'{"_data_files": [], "_indices_data_files": [1]}', "only some of its rows are selected"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, state, message):
    with pytest.raises(DataError, match=message):
        find_input_files([write(tmp_path, {"state.json": state, "a.arrow": arrow_of("x")})])


def test_splits_of_a_dataset_dict_are_not_mixed(tmp_path):
    files = {"dataset_dict.json": b'{"splits": ["de", "train"]}'}
    for split in ("de", "train"):
        data = saved_dataset(split).items()
        files.update({f"{split}/{name}": content for name, content in data})
    folder = write(tmp_path, files)
    with pytest.raises(DataError, match=r"several splits: de \(1 file\), train \(1 file\); choose"):
        find_input_files([folder])
    chosen, skipped = found(folder, split="de")
    assert chosen == ["de/data-00000-of-00001.arrow"]
    assert skipped["train/data-00000-of-00001.arrow"] == "not in split 'de'"
    with pytest.raises(DataError, match=r"no split 'test' \(found: de"):
        find_input_files([folder], split="test")
    assert found(folder / "train")[0] == ["data-00000-of-00001.arrow"]
    shutil.rmtree(folder / "de")
    with pytest.raises(DataError, match=r"de: missing, and dataset_dict\.json lists it"):
        find_input_files([folder])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002-1e2f3a4b5c6d7e8f.parquet", "train"),
        ("en/c4-validation.00000-of-00008.json.gz", "validation"),
        ("json-test.arrow", "test"),
        ("VAL/x.txt", "VAL"),
        ("valid.jsonl.bz2", "valid"),
        ("a_test_of_time.txt", None),
        ("training_wheels_and_more.txt", None),
        ("train-spotting.txt", None),
        ("final-test.txt", None),
        ("test_0001.json.gz", "test"),
        ("dev.txt", "dev"),
        ("my-set-train-00000-of-00002.jsonl", "train"),
        ("attest.txt", None),
        ("00000.jsonl", None),
    ],
)
def test_the_split_of_a_published_file(name, split):
    assert split_of_name(PurePath(name)) == split


def test_a_folder_with_the_name_of_a_split_beside_others_is_no_split(tmp_path):
    names = ("repo/src/a.txt", "repo/test/b.txt", "repo/test/dev/c.txt", "other/d.txt")
    folder = write(tmp_path, {name: name.encode() for name in names})
    assert len(found(folder)[0]) == 4
    folder = write(tmp_path / "data", {"en/train/a.txt": b"a", "en/test/b.txt": b"b"})
    with pytest.raises(DataError, match=r"several splits: test \(1 file\), train \(1 file\)"):
        find_input_files([folder])


def test_splits_of_published_files_are_not_mixed(tmp_path):
    names = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet")
    folder = write(tmp_path, {f"data/{name}": parquet_of("x") for name in names})
    with pytest.raises(DataError, match=r"several splits: test \(1 file\), train \(2 files\)"):
        find_input_files([folder])
    assert len(found(folder, split="train")[0]) == 2
    (folder / "data" / "test.parquet").unlink()
    assert len(found(folder)[0]) == 2
    with pytest.raises(DataError, match="only a folder has splits"):
        find_input_files([folder / "data" / names[0]], split="train")


def test_files_without_a_split_are_not_mixed_with_those_of_one(tmp_path):
    folder = write(tmp_path, dict.fromkeys(("data.jsonl", "test.jsonl"), lines("x")))
    message = r"test\.jsonl is of split 'test' by its name, and data\.jsonl of none; choose one"
    with pytest.raises(DataError, match=message):
        find_input_files([folder])
    assert found(folder, split="test") == (["test.jsonl"], {"data.jsonl": "not in split 'test'"})
    (folder / "data.jsonl").unlink()
    assert found(folder)[0] == ["test.jsonl"]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["train-00000-of-00002.parquet"], 1),
        (["c4-train.00000-of-00003.json.gz", "c4-train.00002-of-00003.json.gz"], 1),
        (["b-2-of-2.txt"], 1),
        (["b-1-of-2.txt", "b-2-of-2.txt", "b_0_of_1.txt"], None),
        (["a-00000-of-00001-1e2f3a4b5c6d7e8f.parquet", "a-999999999-of-999999999999.txt"], None),
    ],
)
def test_a_missing_part_is_refused(tmp_path, names, missing):
    folder = write(tmp_path, dict.fromkeys(names, b"x"))
    if missing is None:
        assert len(found(folder)[0]) == len(names)
        return
    with pytest.raises(DataError, match=rf"number {missing} is missing \(found: {len(names)}\)"):
        find_input_files([folder])
    assert find_input_files([folder / names[0]]).files


def test_an_address_is_no_input():
    with pytest.raises(DataError, match=r"https://a\.org/b\.jsonl: inputs are local files"):
        find_input_files([Path("https://a.org/b.jsonl")])


def test_the_same_file_is_never_read_twice(tmp_path):
    folder = write(tmp_path / "in", {"a.jsonl": lines("one")})
    path = folder / "a.jsonl"
    for inputs in ([path, path], [folder, path], [path, tmp_path / "in" / ".." / "in"]):
        with pytest.raises(DataError, match=r"a\.jsonl: given twice, as "):
            find_input_files(inputs)
    (folder / "b.jsonl").symlink_to("a.jsonl")
    assert found(folder) == (["a.jsonl"], {"b.jsonl": f"the same file as {path}"})
    with pytest.raises(DataError, match=r"b\.jsonl: given twice"):
        find_input_files([path, folder / "b.jsonl"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.jsonl", "a.jsonl.gz"),
        ("a.jsonl.gz", "a.jsonl.zst"),
        ("a.json.gz", "a.jsonl"),
        ("a.tar", "a.tgz"),
        ("a.JSONL", "a.parquet"),
    ],
)
def test_a_text_in_two_forms_is_refused(tmp_path, first, second):
    folder = write(tmp_path, {first: b"x", second: b"x", "b/a.jsonl": b"x", "a.b.jsonl": b"x"})
    message = rf"{second}: beside {first}, which looks like the same text in another form"
    with pytest.raises(DataError, match=message):
        find_input_files([folder])
    (folder / second).unlink()
    assert len(found(folder)[0]) == 3


def test_pointers_pipes_and_broken_links_are_refused(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    write(tmp_path, {"lfs/a.parquet": pointer})
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "a.jsonl")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "a.jsonl").symlink_to("nowhere")
    for path, message in (
        ("lfs", "a pointer of git-lfs, not the file itself; fetch it with: git lfs pull"),
        ("lfs/a.parquet", "a pointer of git-lfs"),
        ("fifo", "a pipe or a device"),
        ("fifo/a.jsonl", "a pipe or a device"),
        ("link", "a broken link"),
    ):
        with pytest.raises(DataError, match=message):
            find_input_files([tmp_path / path])


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    folder = write(tmp_path, {"a.docx": b"x"})
    with pytest.raises(DataError, match=r"no text in this folder .*; a\.docx: its ending is not"):
        find_input_files([folder])


def test_the_index_of_a_bin_is_no_file_of_its_own(tmp_path):
    names = ("a.bin", "a.idx", "b.idx", "c-00000-of-00001.bin", "c.idx")
    files, skipped = found(write(tmp_path, dict.fromkeys(names, b"x")))
    assert files == ["a.bin", "c-00000-of-00001.bin"]
    assert skipped == {"b.idx": "an index without its .bin"}


def test_links_to_folders_and_to_themselves_are_listed(tmp_path):
    write(tmp_path, {"in/a.txt": b"x", "other/b.txt": b"y"})
    (tmp_path / "in" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "loop.txt").symlink_to("loop.txt")
    files, skipped = found(tmp_path / "in")
    assert files == ["a.txt"]
    assert "a link to a folder" in skipped["more"]
    assert skipped["loop.txt"] == "a link that leads to itself"


def test_shards_beside_their_text_are_not_text(tmp_path):
    shards = {f"out/{name}/{file}": b"{}" for name in ("train", "val")
              for file in ("index.json", "tokenizer.json", "00000.tar")}  # fmt: skip
    partial = {f"b.partial/{name}/00000.tar": b"" for name in ("train", "val")}
    left_out = {"out/skipped-records.jsonl": b'{"location": "a.jsonl:1", "reason": "no text"}'}
    files, skipped = found(write(tmp_path, {"a.txt": b"x", **shards, **left_out, **partial}))
    assert files == ["a.txt"]
    assert skipped == {
        "b.partial": "unfinished output of `rewarm shard`",
        "out/skipped-records.jsonl": "records that `rewarm shard` left out",
        "out/train": "token shards that `rewarm shard` wrote",
        "out/val": "token shards that `rewarm shard` wrote",
    }
    with pytest.raises(DataError, match=r"out/val: token shards .* name the texts"):
        found(tmp_path / "out" / "val")


def test_the_table_that_img2dataset_writes_beside_a_tar_is_skipped(tmp_path):
    folder = write(
        tmp_path,
        {
            "00000.tar": tar_of({"0.txt": b"one"}),
            "00000.parquet": parquet_of("one"),
            "00000_stats.json": b'{\n "count": 1\n}',
        },
    )
    files, skipped = found(folder)
    assert files == ["00000.tar"]
    assert set(skipped) == {"00000.parquet", "00000_stats.json"}


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a{1,2}"])
def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path, name):
    folder = write(tmp_path / name, {"x[0].jsonl": lines("one")})
    files = find_input_files([folder]).files
    assert [document.content for document in read_documents(files, "text")] == ["one"]
