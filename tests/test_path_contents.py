"""What an error says of a path at which something else was expected."""

from pathlib import Path

import pytest

from rewarm.path_contents import describe_path, nearest_name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (
        "data/en/train/index.json",
        "data/en/train/00000.tar",
        "data/en/val/index.json",
        "runs/base/checkpoints/step-00000010/MANIFEST.json",
        "runs/base/metrics.jsonl",
        "model/config.json",
        "other/file.jsonl",
        "r.yaml",
    ):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "what", "instead"),
    [
        ("data/en/train", "a folder of shards", ""),
        (
            "data/en",
            "a folder with shards in its subfolders",
            "; name data/en/train or data/en/val",
        ),
        ("data", "a folder with shards in its subfolders", "; name data/en/train or data/en/val"),
        ("data/en/train/00000.tar", "a shard", "; name its folder, data/en/train"),
        ("runs/base/checkpoints/step-00000010", "a checkpoint", ""),
        ("runs/base", "a run directory", ""),
        ("runs", "a folder of runs", "; name one, such as runs/base"),
        ("model", "a folder of a model", ""),
        ("other", "a folder of something else", ""),
        ("empty", "an empty folder", ""),
        ("other/file.jsonl", "a file", ""),
        ("r.yaml", "a YAML file, such as a recipe or a study", ""),
        ("runs/bse", "no such folder (HERE/runs/bse)", "; did you mean 'runs/base'?"),
        ("/no/where", "no such folder", ""),
        ("x" * 5000, f"no such folder (HERE/{'x' * 5000})", ""),
    ],
)
def test_what_is_at_a_path(folder, path, what, instead):
    assert describe_path(Path(path), "shards", "runs") == (
        what.replace("HERE", str(folder)),
        instead,
    )


def test_only_what_is_wanted_is_named_instead(folder):
    assert describe_path(Path("runs"), "shards") == ("a folder of runs", "")
    assert describe_path(Path("data"), "runs") == ("a folder with shards in its subfolders", "")


def test_the_end_of_a_path_is_suggested_in_one_of_its_folders(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "rewarm.yaml").touch()
    monkeypatch.chdir(tmp_path)
    hint = nearest_name(Path("rewarm-quickstart/recipes/rewarm.yaml"))
    assert hint == "; did you mean 'recipes/rewarm.yaml'?"


def test_a_hidden_file_is_not_suggested(tmp_path):
    (tmp_path / ".base").touch()
    assert not nearest_name(tmp_path / "base")


def test_a_name_is_not_similar_because_its_folder_is_the_same(tmp_path):
    (tmp_path / "apt.log").touch()
    assert nearest_name(tmp_path / "empty.jsonl") == ""
    (tmp_path / "emty.jsonl").touch()
    assert nearest_name(tmp_path / "empty.jsonl") == f"; did you mean '{tmp_path}/emty.jsonl'?"
