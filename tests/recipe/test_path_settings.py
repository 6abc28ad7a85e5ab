"""A path is relative to the folder of the file that it is written in; doubt is refused."""

import os
import shutil
from pathlib import Path

import pytest

from rewarm.errors import RecipeError
from rewarm.recipe.recipe import load_recipe

TEXT = """\
run: runs/x
tokens: 100M
model: {base: EleutherAI/pythia-14m}
data:
  context: 1000
  train: {new: {shards: ../data/new}, old: {shards: "../data/old/{0..3}.tar"}}
  validation: {new: {shards: "https://host/x"}}
batch: {tokens: 100_000, microbatch: 10}
schedule: {name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 100 steps}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a folder of recipes, which is the working directory; `write` writes one."""
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, text: str = TEXT, name: str = "r.yaml") -> Path:
    (project / "recipes" / name).write_text(text)
    return Path("recipes", name)


def make_run(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True)


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, list(overrides))
    return raised.value.problems


def test_paths_are_relative_to_the_recipe(project, monkeypatch):
    path = write(project)
    recipe = load_recipe(path)
    assert recipe.run == f"{project}/recipes/runs/x"
    assert recipe.data.train["new"].shards == f"{project}/data/new"
    assert recipe.data.train["old"].shards == f"{project}/data/old/{{0..3}}.tar"
    assert recipe.data.validation["new"].shards == "https://host/x"
    assert recipe.model.base == "EleutherAI/pythia-14m"
    monkeypatch.chdir("/")
    assert load_recipe(project / path) == recipe
    assert str(recipe.run_directory) == f"{project}/recipes/runs/x".removeprefix("/")


def test_overrides_are_relative_to_the_working_directory(project, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(
        write(project),
        [
            "run=runs/y",
            "model.base=~/base",
            "data.train={new: {shards: data/new}}",
            "data.validation.other.shards=~/x/{0..3}.tar",
        ],
    )
    assert recipe.run == f"{project}/runs/y"
    assert str(recipe.run_directory) == "runs/y"
    assert recipe.model.base == "/home/me/base"
    assert recipe.data.train["new"].shards == f"{project}/data/new"
    assert recipe.data.validation["other"].shards == "/home/me/x/{0..3}.tar"
    assert recipe.data.validation["new"].shards == "https://host/x"


def test_a_saved_recipe_means_the_same_in_every_folder(project, monkeypatch):
    recipe = load_recipe(write(project))
    saved = project / "elsewhere" / "recipe.yaml"
    saved.parent.mkdir()
    saved.write_text(recipe.to_yaml())
    monkeypatch.chdir("/")
    assert load_recipe(saved) == recipe


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("EleutherAI/pythia-14m", "EleutherAI/pythia-14m"),
        ("./EleutherAI/pythia-14m", "recipes/EleutherAI/pythia-14m"),
        ("../runs/base", "runs/base"),
        ("runs/base@400", "recipes/runs/base@400"),
        ("a/b/c", "recipes/a/b/c"),
        ("base", "recipes/base"),
        ("there/base", "recipes/there/base"),
        ("/base", "/base"),
        ("https://host/base", "https://host/base"),
    ],
)
def test_a_base_is_a_hub_name_or_a_path(project, written, expected):
    (project / "recipes" / "there" / "base").mkdir(parents=True)
    base = load_recipe(write(project, TEXT.replace("EleutherAI/pythia-14m", written))).model.base
    assert base == (expected if expected == written else f"{project}/{expected}")


def test_shards_that_exist_only_in_the_working_directory_are_refused(project):
    path = write(project, TEXT.replace("../data/", "data/"))
    (project / "data" / "new").mkdir(parents=True)
    (project / "data" / "old").mkdir()
    new, old = problems(path)
    assert new == (
        "recipes/r.yaml:6:17: data.train.new.shards: a path in a file is relative to the file's "
        "folder, where recipes/data/new does not exist; in the working directory data/new does "
        "exist: write ../data/new, or use --set data.train.new.shards=data/new"
    )
    assert "write ../data/old/{0..3}.tar, or use" in old
    (project / "recipes" / "data" / "new").mkdir(parents=True)
    assert [problem.split(": ")[1] for problem in problems(path)] == ["data.train.old.shards"]
    shutil.move(project / "data" / "old", project / "recipes" / "data" / "old")
    assert load_recipe(path).data.train["old"].shards.startswith(f"{project}/recipes/data/old")


def test_a_run_that_exists_only_in_the_working_directory_is_refused(project):
    path = write(project)
    make_run(project / "runs" / "x")
    assert problems(path) == [
        "recipes/r.yaml:1:1: run: a path in a file is relative to the file's folder, where "
        "recipes/runs/x has no run; in the working directory runs/x does exist: write "
        "../runs/x, or use --set run=runs/x"
    ]
    assert load_recipe(path, ["run=runs/x"]).run == f"{project}/runs/x"
    make_run(project / "recipes" / "runs" / "x")
    assert load_recipe(path).run == f"{project}/recipes/runs/x"


@pytest.mark.parametrize("base", ["runs/base", "runs/base@10", "a/runs/base"])
def test_a_base_that_exists_only_in_the_working_directory_is_refused(project, base):
    make_run(project / base.partition("@")[0])
    path = write(project, TEXT.replace("EleutherAI/pythia-14m", base))
    [problem] = problems(path)
    assert f"write ../{base}, or use --set model.base={base}" in problem
    assert load_recipe(path, [f"model.base={base}"]).model.base == f"{project}/{base}"


def test_path_problems_are_reported_with_all_others(project):
    path = write(
        project, TEXT.replace("../data/new", "~nobody-here/x").replace("run:", "seed: a\nrun:")
    )
    lines = problems(path, "batch.tokens=5", "run=s3://bucket/x")
    assert [line.split(": ")[1] for line in lines if line.startswith("recipes")] == [
        "seed",
        "data.train.new.shards",
    ]
    assert "there is no such user; write the whole path" in "\n".join(lines)
    assert any("run: should be a folder on this machine" in line for line in lines)


def test_the_recipe_of_a_run_that_was_moved_is_refused(project):
    """It would begin a second run where the first one was."""
    recipe = load_recipe(write(project))
    moved = project / "moved"
    make_run(moved)
    (moved / "recipe.yaml").write_text(recipe.to_yaml())
    [problem] = problems(Path("moved/recipe.yaml"))
    assert "recipes/runs/x is another directory" in problem
    assert "continue it with --set run=moved" in problem
    assert load_recipe(moved / "recipe.yaml", ["run=moved"]).run == str(moved)
    assert load_recipe(moved / "recipe.yaml", ["run=new"]).run == f"{project}/new"


def test_a_recipe_behind_a_link_is_relative_to_the_links_folder(project):
    path = project / "link.yaml"
    path.symlink_to(project / write(project))
    assert load_recipe(path).run == f"{project}/runs/x"
    assert os.path.relpath(load_recipe(path).data.train["new"].shards, project) == "../data/new"
