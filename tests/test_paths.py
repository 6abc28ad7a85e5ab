"""Paths as people write them, and as people read them."""

import re
from pathlib import Path

import pytest

from rewarm.paths import expand_home, expand_path, short_path


def test_a_path_is_relative_to_a_folder_or_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand_path("a/../b", tmp_path / "folder") == f"{tmp_path}/folder/b"
    assert expand_path("../b/{0..3}.tar", tmp_path / "folder") == f"{tmp_path}/b/{{0..3}}.tar"
    assert expand_path("b") == f"{tmp_path}/b"
    assert expand_path("/b", tmp_path) == "/b"


def test_homes_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_path("~/b", tmp_path / "folder") == f"{tmp_path}/b"
    assert expand_path("~root/b") == "/root/b"
    assert expand_path("./~/b", tmp_path) == f"{tmp_path}/~/b"
    with pytest.raises(ValueError, match=re.escape("~nobody-here at the start of a path")):
        expand_path("~nobody-here/b", tmp_path)


def test_two_dots_after_a_link_are_the_folder_above_its_target(tmp_path):
    (tmp_path / "far" / "target").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "target")
    (tmp_path / "far" / "x").write_text("reached")
    assert Path(expand_path("link/../x", tmp_path)).read_text() == "reached"


@pytest.mark.parametrize("path", ["\0", "x" * 5000, "\udcff", "a\n"])
def test_impossible_paths_are_left_to_whoever_opens_them(path, tmp_path):
    assert expand_path(path, tmp_path) == f"{tmp_path}/{path}"


def test_a_path_in_the_working_directory_is_shown_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(f"{tmp_path}/runs/x@40") == "runs/x@40"
    assert short_path(str(tmp_path)) == "."
    assert short_path(f"{tmp_path}-2/x") == f"{tmp_path}-2/x"
    assert short_path("EleutherAI/pythia-410m") == "EleutherAI/pythia-410m"
    assert short_path("https://host/x") == "https://host/x"


def test_homes_on_the_command_line_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/x.yaml") == "/home/me/x.yaml"
    assert expand_home("--out=~/x") == "--out=/home/me/x"
    assert expand_home("up=~/x") == "up=/home/me/x"
    assert expand_home("--data=up=~/x") == "--data=up=/home/me/x"
    for word in ("every.save=~", "~", "a~/b", "--set", "x=a~/b"):
        assert expand_home(word) == word
    with pytest.raises(ValueError, match=re.escape("~nobody-here at the start of a path")):
        expand_home("~nobody-here/x")
