"""docs/site: the documentation as a site, and the reference that is written from the code."""

import doctest
import json
import re
from html.parser import HTMLParser
from importlib.util import find_spec

import build_site
import docstrings
import pytest
import reference_pages
import typer
from repository import ROOT

from rewarm import exit_codes, schedules
from rewarm.cli.app import app
from rewarm.recipe.fields import Section
from rewarm.recipe.recipe import Recipe
from rewarm.schedules.registry import PLUGINS
from rewarm.study.study_plan import Study

PAGES = reference_pages.reference_pages()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built without a warning."""
    if find_spec("zensical") is None:
        pytest.skip("needs the extra docs")
    work = tmp_path_factory.mktemp("site")
    build_site.write_sources(work)
    build_site.build(work)
    return work


def test_every_page_of_docs_is_in_the_navigation(tmp_path):
    """A page that `NAVIGATION` does not name is added to Guides, one of plugins/ to Plug-ins."""
    build_site.write_sources(tmp_path)
    pages = tmp_path / "pages"
    (pages / "docs" / "newer.md").write_text("# A newer page\n")
    listed = [
        name
        for part in build_site.navigation(pages).values()
        for name in (part if isinstance(part, list) else [part])
    ]
    assert len(listed) == len(set(listed))
    assert all((pages / name).is_file() for name in listed)
    assert {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")} == set(listed)
    assert "docs/newer.md" in build_site.navigation(pages)["Guides"]


class _Fetched(HTMLParser):
    """Collects the addresses that a browser fetches to show a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "link":
            self.addresses.append(attributes.get("href"))
        elif tag != "a":
            self.addresses += [attributes.get("src"), attributes.get("srcset")]


def test_the_pages_fetch_nothing_from_elsewhere(site):
    pages = sorted((site / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        fetched = _Fetched()
        fetched.feed(page.read_text())
        addresses = [address for address in fetched.addresses if address]
        if not page.name.endswith("-report.html"):  # one file, which contains all it needs
            assert any("stylesheets" in address for address in addresses)
        assert not [address for address in addresses if re.match(r"(https?:)?//", address)], page
    for style in (site / "site").rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style


def test_wide_tables_are_tables_and_links_to_files_work(site):
    measured = (site / "site" / "docs" / "measured.html").read_text()
    assert measured.count("<table>") == len(
        re.findall(r"^\|[-:| ]+\|$", (ROOT / "docs" / "measured.md").read_text(), re.MULTILINE)
    )
    assert "| loader |" not in measured
    report = (site / "site" / "docs" / "cpu-mini-report.html").read_bytes()
    assert report == (ROOT / "docs" / "cpu-mini.html").read_bytes()
    assert 'href="cpu-mini-report.html"' in (site / "site" / "docs" / "cpu-mini.html").read_text()
    assert (site / "site" / "recipes" / "slurm" / "one-node.sbatch").is_file()


def test_a_broken_link_ends_the_build(site, tmp_path):
    build_site.write_sources(tmp_path)
    for page in (tmp_path / "pages" / "docs").rglob("*.md"):
        page.write_text(f"# {page.stem}\n")  # a small site, built in a second
    (tmp_path / "pages" / "README.md").write_text("# rewarm\n\n[nothing](docs/nothing.md)\n")
    with pytest.raises(SystemExit, match="page does not exist"):
        build_site.build(tmp_path)


def test_versions_are_listed_newest_first(tmp_path):
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        built = tmp_path / "built"
        built.mkdir()
        (built / "index.html").write_text(version)
        build_site.publish(built, tmp_path / "out", version)
    versions = json.loads((tmp_path / "out" / "versions.json").read_text())
    assert [entry["version"] for entry in versions] == ["0.10.0", "0.9.0", "0.2.0"]
    assert [entry["aliases"] for entry in versions] == [["latest"], [], []]
    assert "url=0.10.0/index.html" in (tmp_path / "out" / "index.html").read_text()
    assert (tmp_path / "out" / "0.9.0" / "index.html").read_text() == "0.9.0"


@pytest.mark.parametrize("module", [build_site, docstrings])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def sections(page):
    """Returns the text below each heading of a generated page."""
    parts = re.split(r"^#{2,3} (.*)$", PAGES[page], flags=re.MULTILINE)  # no heading is in a block
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_and_option_is_in_the_reference():
    commands = typer.main.get_command(app).commands
    expected = {f"rewarm {name}": command for name, command in commands.items()}
    for name in ("new", "test"):
        expected[f"rewarm schedules {name}"] = commands["schedules"].commands[name]
    documented = sections("commands.md")
    assert documented.keys() == expected.keys()
    for name, command in expected.items():
        assert len(command.params) >= (0 if name == "rewarm quickstart" else 1)
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert re.search(rf"^`[^`]*{option}\b", documented[name], re.MULTILINE), option
        assert f"rewarm {name.split()[1]}" in documented[name]


def settings(kind, prefix=""):
    """Yields the names of all settings of a model, and of the sections in them."""
    for name, field in kind.model_fields.items():
        written = f"{prefix}{field.alias or name}"
        yield written
        for joint, section in sections_in(field.annotation, "."):
            yield from settings(section, f"{written}{joint}")


def sections_in(annotation, joint):
    """Yields the sections in a type, and what joins their names and the name of the setting."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield joint, annotation
    origin = getattr(annotation, "__origin__", None)
    inner = {dict: ".NAME.", tuple: "[]."}.get(origin, joint)
    for part in getattr(annotation, "__args__", ()):
        yield from sections_in(part, inner)


@pytest.mark.parametrize("kind", [Recipe, Study])
def test_every_setting_is_in_the_reference_with_its_docstring(kind):
    names = list(settings(kind))
    assert {"data.train.NAME.weight[].from", "keep.last"} <= set(names) or kind is Study
    documented = re.findall(r"^(?:#+ |`)([\w.\[\]]+)`?$", PAGES["settings.md"], re.MULTILINE)
    assert set(names) <= {name.removesuffix(".NAME") for name in documented}
    page = " ".join(PAGES["settings.md"].split())
    for name, field in kind.model_fields.items():
        assert " ".join((field.description or "").split()) in page, name


def test_every_schedule_is_in_the_reference():
    documented = sections("schedules.md")
    assert documented.keys() == {"rewarm", "no-warmup", "constant"} | PLUGINS.keys()
    for _, kind in reference_pages.all_schedules():
        text = documented[kind.model_fields["name"].default]
        assert all(f"`{name}`" in text for name in kind.model_fields if name != "name")


def test_every_exit_code_is_in_the_reference():
    codes = {int(value) for name, value in vars(exit_codes).items() if name.isupper()}
    documented = sections("exit-codes.md")
    assert {int(code) for code in documented} == codes
    assert "PeerError" in documented["1"]
    assert "Preempted" in documented["75"]


def test_every_name_of_the_python_api_is_in_the_reference():
    documented = sections("python.md")
    assert documented.keys() == {
        *("rewarm.schedules", "rewarm.testing", "check_schedule", "conformance", "rates"),
        *schedules.__all__,
    }
    assert "**Raises**" in documented["check_schedule"]
    assert all(len(text.strip()) > 40 for text in documented.values())
