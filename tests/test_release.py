"""What a release consists of: citation, images, constraints. docs/releasing.md is the checklist."""

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
dockerfiles = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def program(name):
    """Returns the path of a program of this environment; skips the test if it is not installed."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed")
    return path


def test_the_citation_is_valid_and_names_this_version_and_the_paper():
    path = ROOT / "CITATION.cff"
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.citation-file-format", path]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    citation = yaml.safe_load(path.read_text())
    assert citation["version"] == PROJECT["version"]
    assert (
        re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
        == (PROJECT["version"])
    )
    assert " AND ".join(citation["license"]) == PROJECT["license"]
    (paper,) = citation["references"]
    assert "2308.04014" in paper["identifiers"][0]["value"]
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Gupta", "Thérien", "Ibrahim", "Richter", "Anthony", "Belilovsky", "Rish", "Lesort"),
    ]


def instructions(path):
    """Returns the (instruction, arguments) pairs of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\s*\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line.strip()]


def is_sent(path):
    """Whether .dockerignore leaves a path to `docker build`: the last pattern that matches wins."""
    sent = True
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#") and fnmatch(path, pattern.lstrip("!")):
            sent = pattern.startswith("!")
    return sent


def test_there_is_an_image_for_gpus_and_one_for_cpus():
    assert [path.stem for path in DOCKERFILES] == ["cpu", "cuda"]


@dockerfiles
def test_images_have_pinned_bases_existing_files_and_no_root(dockerfile):
    steps = instructions(dockerfile)
    (base,) = [arguments for name, arguments in steps if name == "FROM"]
    assert re.fullmatch(r"[\w/-]+:\d+\.\d+\.\d+-[\w-]+", base)
    copied = [word for name, words in steps if name == "COPY" for word in words.split()[:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "recipes", "rewarm"}
    for source in copied:
        assert (ROOT / source).exists()
        assert is_sent(source), f"{source} is in .dockerignore"
    assert not is_sent(".git")
    *_, user = [arguments for name, arguments in steps if name == "USER"]
    assert int(user.split(":")[0]) > 0
    after = steps[steps.index(("USER", user)) :]
    assert not {"RUN", "COPY"} & {name for name, _ in after}
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["rewarm"]


@dockerfiles
def test_images_install_the_pytorch_that_ci_tests(dockerfile):
    (version,) = re.findall(r"^ARG TORCH=([\d.]+)$", dockerfile.read_text(), re.MULTILINE)
    (limit,) = re.findall(r"^torch<([\d.]+)$", (ROOT / ".ci/constraints.txt").read_text(), re.M)
    assert as_numbers(version) < as_numbers(limit)
    (required,) = [line for line in PROJECT["dependencies"] if line.startswith("torch>")]
    lowest, above = re.fullmatch(r"torch>=([\d.]+),<([\d.]+)", required).groups()
    assert as_numbers(lowest) <= as_numbers(version) < as_numbers(limit) <= as_numbers(above)


def as_numbers(version):
    return [int(part) for part in version.split(".")]


@dockerfiles
def test_hadolint_finds_nothing(dockerfile):
    command = [program("hadolint"), dockerfile]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_ci_installs_with_the_constraints_and_checks_the_archives():
    script = (ROOT / ".ci" / "run").read_text()
    for line in script.splitlines():
        if "install" in line and ("dev" in line or "rewarm-*.whl" in line):
            assert "-c .ci/constraints.txt" in line, line
    assert "twine check --strict .ci-venv/dist/*" in script
