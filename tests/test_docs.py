"""The README and docs/: size, links, names, YAML blocks, tables and the quickstart's picture.

Console blocks are run by tests/cli/commands/test_{quickstart,plan,check}.py.
"""

import html
import json
import re
import shlex
import tomllib

import jsonschema
import numpy as np
import pytest
import typer
from PIL import Image
from quickstart_in_readme import PICTURE, printed_results, runs_of_stored_metrics
from repository import ROOT
from yaml_1_2 import read_yaml_1_2

from rewarm.cli.app import app
from rewarm.cli.quickstart_steps import _write_recipes
from rewarm.cli.recipe_templates import schema_json
from rewarm.plots.loss_figure import save_losses
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.study.study_file import load_study
from rewarm.study.study_plan import Study

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
HEADINGS = [
    *("Install", "Quick start", "Recipes", "Schedules", "Data", "Studies", "Reports"),
    *("Cost estimates", "Run directory", "Exit codes", "Guarantees", "Development"),
]


def anchors(text):
    """The anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_one_page_with_known_headings():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_point_to_files_and_headings(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mentioned_source_files_exist(page):
    pattern = r"(?<![\w/-])(?:rewarm|tests|benchmarks)/[\w/]+\.(?:py|sh|js)\b"
    missing = [name for name in re.findall(pattern, page.read_text()) if not (ROOT / name).exists()]
    assert not missing


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


YAML_BLOCKS = {
    f"{page.name} {number}": block
    for page in PAGES
    for number, block in enumerate(blocks(page, "yaml"))
}
# A recipe that the parts of recipes in the documentation fit into.
RECIPE = """\
run: runs/x
tokens: 100M
model: {preset: pythia-14m}
data:
  train: {downstream: {shards: data/new}}
  validation: {upstream: {shards: data/old-val}, downstream: {shards: data/new-val}}
batch: {tokens: 20_480, microbatch: 1}
schedule: {name: rewarm, peak_lr: 3e-4, min_lr: 3e-5}
"""


@pytest.mark.parametrize("name", YAML_BLOCKS)
def test_yaml_blocks_are_valid_and_so_are_they_in_editors(name, tmp_path):
    block = YAML_BLOCKS[name]
    settings = YamlDocument(block, name).data
    if "study" in settings:
        (tmp_path / "study.yaml").write_text(block)
        for file in settings["bases"].values():
            (tmp_path / file).write_text(RECIPE)
        base = f"{settings['study']}/bases/{next(iter(settings['bases']))}"
        continued = RECIPE.replace("{preset: pythia-14m}", f"{{base: {base}}}")
        (tmp_path / settings["recipe"]).write_text(continued)
        plan = load_study(tmp_path / "study.yaml")
        assert plan.claims.keys() == settings["claims"].keys()
        jsonschema.validate(read_yaml_1_2(block), json.loads(schema_json(Study)))
        return
    document = YamlDocument(RECIPE, name)
    for section, values in settings.items():
        document.set_value((section,), values, name)
    validate_recipe(document, base_lr=lambda model: 3e-5)
    editor = read_yaml_1_2(RECIPE) | read_yaml_1_2(block)
    jsonschema.validate(editor, json.loads(schema_json()))


def test_the_readmes_recipe_is_that_of_the_quickstart(tmp_path):
    (block, _) = blocks(ROOT / "README.md", "yaml")
    written = YamlDocument.load(_write_recipes(tmp_path)["rewarm"])
    assert YamlDocument(block, "README.md").data == written.data


def test_the_readmes_table_and_picture_are_of_the_stored_run(tmp_path):
    """To store a new one: benchmarks/quickstart_in_readme.py."""
    runs = runs_of_stored_metrics(tmp_path)
    assert printed_results(runs) in (ROOT / "README.md").read_text()
    save_losses({arm: [run] for arm, run in runs.items()}, tmp_path / "curves.png", "png")
    drawn, shown = (
        np.asarray(Image.open(path).convert("L"), int)
        for path in (tmp_path / "curves.png", PICTURE)
    )
    assert drawn.shape == shown.shape
    assert abs(drawn - shown).mean() < 2  # of 255: fonts may differ between versions


def table(page, heading):
    """Returns the rows of the first table after some text of a page, without its header."""
    text = page.read_text().partition(heading)[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_run_directory_is_documented_completely(trained_run):
    page = ROOT / "docs" / "run-directory.md"
    text = page.read_text()
    (checkpoint, *_) = sorted((trained_run / "checkpoints").iterdir())
    for path in (*trained_run.iterdir(), *checkpoint.iterdir()):
        assert path.name in text or path.name in (
            "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
        )  # fmt: skip
    for name in ("metrics.jsonl", "events.jsonl"):
        rows = {kinds: " ".join(cells) for kinds, *cells in table(page, f"## {name}")}
        for line in map(json.loads, (trained_run / name).read_text().splitlines()):
            (row,) = (row for kinds, row in rows.items() if f"`{line['kind']}`" in kinds)
            for field in line.keys() - {"kind", "time", "step"}:
                documented = re.sub(r"^\w+/", "NAME/", field)
                assert f"`{documented}`" in row, (line["kind"], field)


def test_the_tables_of_results_are_those_of_the_page():
    page = (ROOT / "docs" / "cpu-mini.html").read_text()
    for heading in ("## Final losses", "## Claims"):
        for cells in table(ROOT / "docs" / "cpu-mini.md", heading):
            for cell in cells:
                plain = re.sub(r"\\(.)", r"\1", cell).strip(" |")
                assert html.escape(plain, quote=False) in page, cell


def test_the_table_of_plugins_is_complete():
    rows = table(ROOT / "plugins" / "README.md", "# Schedule plug-ins")
    offered = set()
    for path in (ROOT / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        offered |= project["entry-points"]["rewarm.schedules"].keys()
    assert {cells[1].strip("`") for cells in rows} == offered


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "recipes.md").read_text() + (ROOT / "docs" / "data.md").read_text()
    for name, field in Recipe.model_fields.items():
        assert f"`{name}" in text, name
        settings = getattr(field.annotation, "model_fields", {})
        for setting in settings if name != "schedule" else ():
            assert re.search(rf"`{name}\.{setting}`|`\.{setting}`", text), f"{name}.{setting}"


def test_architecture_names_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in (ROOT / "rewarm").iterdir():
        if (package / "__init__.py").exists():
            assert f"`{package.name}/`" in text, package.name


SHELL_LINES = {
    line: page.name
    for page in PAGES
    for block in blocks(page, "sh")
    for line in re.sub(r"\\\n\s*", "", block).splitlines()
    if line.startswith("rewarm ")
}


@pytest.mark.parametrize("line", SHELL_LINES, ids=lambda line: f"{SHELL_LINES[line]}: {line}")
def test_commands_of_shell_blocks_have_only_known_options(line):
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("&&", ";")]
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert command.name != "rewarm", line
    command.make_context(command.name, words)
