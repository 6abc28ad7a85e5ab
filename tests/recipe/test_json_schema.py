"""The JSON Schemas accept what rewarm accepts, as editors and schema checkers read it.

Both read YAML 1.2. Where yaml-language-server is not installed, its reading is that of yaml_1_2.py.
"""

import json
import re
import subprocess
import sys

import jsonschema
import pytest
from repository import ROOT
from yaml_1_2 import read_yaml_1_2
from yaml_language_server import PROGRAM, problems_in_editor

from recipes import recipe_of
from rewarm.cli.recipe_templates import SCHEMA_FILE, STUDY_SCHEMA_FILE, list_templates, schema_json
from rewarm.recipe.recipe import Recipe
from rewarm.study.study_plan import Study

SCHEMAS = {SCHEMA_FILE: Recipe, STUDY_SCHEMA_FILE: Study}


@pytest.fixture
def shipped(plugins, tmp_path):
    """A folder with all shipped recipes and studies, and both schemas."""
    for name in list_templates():
        text = (ROOT / "recipes" / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text)
    for file, model in SCHEMAS.items():
        (tmp_path / file).write_text(schema_json(model))
    return tmp_path


def schema_named_by(path):
    return re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())[1]


def test_read_as_yaml_1_2_all_shipped_files_are_valid(shipped):
    for path in shipped.glob("*.yaml"):
        schema = json.loads((shipped / schema_named_by(path)).read_text())
        jsonschema.validate(read_yaml_1_2(path.read_text()), schema)


@pytest.mark.skipif(not PROGRAM, reason="no yaml-language-server: npm install it")
def test_an_editor_marks_nothing_in_the_shipped_files(shipped):
    (shipped / "wrong.yaml").write_text(
        (shipped / "pythia-410m-rewarm.yaml").read_text().replace("20_000", "soon")
    )
    problems = problems_in_editor(shipped)
    assert len(problems.pop("wrong.yaml")) == 1
    assert problems == {f"{name}.yaml": [] for name in list_templates()}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_check_jsonschema_accepts_the_shipped_files(shipped, schema):
    pytest.importorskip("check_jsonschema")
    files = [path for path in sorted(shipped.glob("*.yaml")) if schema_named_by(path) == schema]
    assert len(files) == (21 if schema == SCHEMA_FILE else 4)
    completed = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--schemafile", shipped / schema, *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout


ACCEPTED = {
    "seed": ["17", "1_000"],
    "tokens": ["100M", "100_000_000", "1e8", "1.0e8", "100 M"],
    "data.lanes": ["16", "1_6"],
    "data.max_epochs": ["4", "4.5", "1_000", "1_000.5"],
    "data.train.downstream.weight": ["75%", "0.95", "1_0", "[{from: 0, weight: 1_0}]"],
    "data.validation": ["{a: {shards: x, tokens: 20_000}}", "{a: {shards: x, tokens: 20k}}"],
    "schedule.peak_lr": ["3e-4", "0.000_3"],
    "schedule.warmup": ["1%", "0.01", "1_00 steps", "1.5M tokens", "1e6 tokens", "1 M tokens"],
    "optimizer.eps": ["1e-8", "1_0e-9"],
    "guard.patience": ["3", "1_0"],
    "every.log": ["10", "1_0", "1e1", "1k"],
    "every.evaluate": ["500", "1_000", "1k", "[{until: 1%, every: 2_0}, {every: 1k}]"],
    "every.save": ["1_000", "1k", "null"],
    "keep.last": ["3", "1_0"],
    "keep.every": ["20_000", "20k", "2e4"],
}


@pytest.mark.parametrize(
    ("setting", "written"),
    [(setting, written) for setting, forms in ACCEPTED.items() for written in forms],
)
def test_accepts_each_form_that_rewarm_accepts(thousand_steps, setting, written):
    recipe_of(thousand_steps, f"{setting}={written}")
    document = section = read_yaml_1_2(thousand_steps)
    *parents, last = setting.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = read_yaml_1_2(written)
    jsonschema.validate(document, json.loads(schema_json()))


@pytest.mark.parametrize(("model", "expected"), [(Recipe, 50), (Study, 1)])
def test_every_number_may_have_underscores(plugins, model, expected):
    schema = json.loads(schema_json(model))
    definitions = schema.get("$defs", {})
    numbers = []
    for name, section in {"": schema, **definitions}.items():
        for setting, content in section.get("properties", {}).items():
            if "$ref" in content:
                continue
            accepts = jsonschema.Draft202012Validator({**content, "$defs": definitions}).is_valid
            for number, text in ((10, "1_0"), (0.5, "1_0"), ([10], ["1_0"])):
                if accepts(number):
                    assert accepts(text), f"{name}.{setting}"
                    numbers.append(f"{name}.{setting}")
    assert len(set(numbers)) >= expected


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [("seed", "1k"), ("seed", "a_1"), ("keep.every", "soon"), ("tokens", "10BB"),
     ("schedule.peak_lr", "1k"), ("schedule.warmup", "5 minutes")],
)  # fmt: skip
def test_rejects_other_text(thousand_steps, setting, wrong):
    document = section = read_yaml_1_2(thousand_steps)
    *parents, last = setting.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(schema_json()))
