"""The README and docs/: their size, links, and the names that they mention."""

import re

import pytest
from repository import ROOT

from rewarm.recipe.recipe import Recipe

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
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
