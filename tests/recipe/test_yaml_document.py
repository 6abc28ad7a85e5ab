"""YAML to plain data: types, source locations, what is refused, overrides."""

import math

import pytest

from rewarm.errors import RecipeError
from rewarm.recipe.yaml_document import YamlDocument, flatten_settings, write_yaml

TEXT = """\
# A comment.
run: x
data:
  context: 8
  train: {a: {shards: one}, b: {shards: two}}
betas:
  - 0.9
  - 0.95
"""


def problem(text: str) -> str:
    with pytest.raises(RecipeError) as raised:
        YamlDocument(text, "r.yaml")
    assert len(raised.value.problems) == 1
    return raised.value.problems[0]


@pytest.mark.parametrize(
    ("key_path", "position"),
    [
        ((), "2:1"),
        (("run",), "2:1"),
        (("data", "context"), "4:3"),
        (("data", "train", "b"), "5:29"),
        (("data", "train", "b", "shards"), "5:33"),
        (("betas", 0), "7:5"),
        (("betas", 1), "8:5"),
        (("data", "lanes"), "3:1"),  # missing: the section that would contain it
        (("nowhere", "at", "all"), "2:1"),
    ],
)
def test_every_part_has_a_source_location(key_path, position):
    assert YamlDocument(TEXT, "r.yaml").source_location(key_path) == f"r.yaml:{position}"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 0.0003),
        ("1e9", 1e9),
        ("+1.5E+3", 1500.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("1_000.5", 1000.5),
        ("2_097_152", 2097152),
        ("-17", -17),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # Text, which YAML 1.1 reads as a boolean, a date, an octal or a sexagesimal number.
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("017", "017"),
        ("0x1f", "0x1f"),
        ("2024-01-31", "2024-01-31"),
        ("2024-13-45", "2024-13-45"),
        # Text that starts like something else.
        ("0.5%", "0.5%"),
        ("1.5B", "1.5B"),
        ("1.5B tokens", "1.5B tokens"),
        ("2.0-beta", "2.0-beta"),
        ("1e", "1e"),
        ("nullable", "nullable"),
        ("trueblue", "trueblue"),
    ],
)
def test_plain_values(written, value):
    read = YamlDocument(f"a: {written}", "r.yaml").data["a"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_float():
    assert math.isnan(YamlDocument("a: .nan", "r.yaml").data["a"])


def test_empty_document_has_no_settings():
    assert YamlDocument("# nothing yet\n", "r.yaml").data == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1: a is written twice; keep one"),
        ("s:\n  a: 1\n  a: 2\n", "r.yaml:3:3: s: a is written twice; keep one"),
        ("a: &x 1\nb: *x\n", "r.yaml:2:4: aliases (*name) are not supported"),
        ("a: 1\nb: !!python/name:os.system x\n", "r.yaml:2:4: tags (!name) are not supported"),
        ("a: !!bool x\n", "r.yaml:1:4: tags (!name) are not supported"),
        ("a: 1\n2: b\n", "r.yaml:2:1: a setting's name should be text, got 2"),
        ("? [a]\n: b\n", "r.yaml:1:3: a setting's name should be text, got []"),
        ("s:\n  true: b\n", "r.yaml:2:3: s: a setting's name should be text, got True"),
        ("- a\n", "r.yaml:1:1: should be settings (`key: value` lines), got ['a']"),
        ("# x\njust text\n", "r.yaml:2:1: should be settings (`key: value` lines), got 'just"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: not valid YAML: expected a single document"),
        ("a: 1\nb: \x1b\n", "r.yaml:2:1: not text: special characters are not allowed"),
        (f"a: 1\nb: {'1' * 5000}\n", "r.yaml:2:4: b: cannot be read: Exceeds the limit"),
        ("a: 1\nb: [1, 2\nc: 3\nd: 4\n", "r.yaml:2:4: not valid YAML: while parsing a flow"),
        ("a: 1\nb: {c: 1\nd: 2\n", "r.yaml:2:4: not valid YAML: while parsing a flow mapping"),
        ("a: 1\nb: 'c\nd: 2\n", "r.yaml:2:4: not valid YAML: while scanning a quoted scalar"),
        ("a: 1\nb\nc: 2\n", "r.yaml:2:1: not valid YAML: while scanning a simple key"),
        ("a: 1\n\tb: 2\n", "r.yaml:2:1: not valid YAML: while scanning for the next token; found"),
        ("a:\n  b: 1\n c: 2\n", "r.yaml:3:2: not valid YAML: this line is indented more, or less,"),
        ("a: b: c\n", "r.yaml:1:5: not valid YAML: mapping values are not allowed here"),
    ],
)
def test_refused_documents(text, message):
    assert problem(text).startswith(message)


def test_depth_is_limited():
    deep = "{a: " * 32 + "1" + "}" * 32
    assert YamlDocument(deep, "r.yaml").data["a"]
    assert "nested deeper than 32 levels" in problem("{a: " * 33 + "1" + "}" * 33)
    assert problem("[" * 5000) == "r.yaml: nested deeper than 32 levels"


def test_size_is_limited():
    assert "longer than 1,000,000 characters" in problem("#" * 1_000_001)


def test_exponential_aliases_are_refused():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert problem("\n".join(lines)).startswith("r.yaml:2:10: aliases")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"run: caf\xe9\n")
    (tmp_path / "closed" / "r.yaml").mkdir(parents=True)
    for name, message in (
        ("none.yaml", "no such file; a recipe is a YAML file"),
        ("closed", "is a folder; a recipe is a YAML file"),
        (
            "latin.yaml",
            r"not UTF-8 text \(invalid continuation byte\); a recipe or a study is a YAML file",
        ),
        ("latin.yaml/r.yaml", "cannot be read: Not a directory"),
    ):
        with pytest.raises(RecipeError, match=f"{name}: {message}"):
            YamlDocument.load(tmp_path / name)


@pytest.mark.parametrize("name", ["text.jsonl", "notes.txt", "README.md"])
def test_other_texts_are_no_recipes(tmp_path, name):
    (tmp_path / name).write_text("a: 1\n")
    with pytest.raises(RecipeError, match="is not a recipe or a study, which are YAML files"):
        YamlDocument.load(tmp_path / name)


def test_override_replaces_a_section_and_is_its_source_location():
    document = YamlDocument(TEXT, "r.yaml")
    document.apply_override("data.train={c: {shards: three}}")
    assert document.data["data"]["train"] == {"c": {"shards": "three"}}
    assert document.source_location(("data", "train", "c", "shards")).startswith(
        "--set data.train="
    )
    assert document.source_location(("data", "context")) == "r.yaml:4:3"


def test_override_parses_values_as_in_a_file():
    document = YamlDocument(TEXT, "r.yaml")
    for written, value in (("3e-4", 3e-4), ("no", "no"), ("", None), ("[1, b]", [1, "b"])):
        document.apply_override(f"run={written}")
        assert document.data["run"] == value


def test_override_creates_missing_sections():
    document = YamlDocument("", "r.yaml")
    document.apply_override("a.b.c=1")
    document.apply_override("a.b.d=x=y")
    assert document.data == {"a": {"b": {"c": 1, "d": "x=y"}}}
    assert document.source_location(("a", "b")) == "--set a.b.c=1"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run", "should be written --set section.setting=value"),
        ("=5", "should be written --set section.setting=value"),
        ("data..x=5", "should be written --set section.setting=value"),
        ("run.x=5", "run is a value and has no settings"),
        ("data.context.x.y=5", "data.context is a value and has no settings"),
        ("run=[a", "not valid YAML: while parsing a flow sequence"),
        ("run=a\nseed: 2", "not valid YAML"),
        ("run=*x", "aliases"),
    ],
)
def test_refused_overrides(assignment, message):
    with pytest.raises(RecipeError) as raised:
        YamlDocument(TEXT, "r.yaml").apply_override(assignment)
    assert str(raised.value).startswith(f"--set {assignment}")
    assert message in str(raised.value)


def test_set_value_shows_the_given_source_in_errors():
    document = YamlDocument(TEXT, "r.yaml")
    document.set_value(("data", "context"), 16, "study.yaml:3:1")
    assert document.data["data"]["context"] == 16
    assert document.source_location(("data", "context")) == "study.yaml:3:1"
    assert document.source_location(("data", "train")) == "r.yaml:5:3"


@pytest.mark.parametrize("text", ["1e5", "no", "0.5%", "1:30", "2024-01-01", "017", "é: #x", "~"])
def test_text_is_quoted_so_that_it_is_read_back_as_text(text):
    assert YamlDocument(write_yaml({"run": text}), "r.yaml").data == {"run": text}


def test_flatten_settings():
    nested = {"a": 1, "b": {"c": [2, {"d": 3}], "e": {"f": None}}, "g": {}}
    assert flatten_settings(nested) == {"a": 1, "b.c": [2, {"d": 3}], "b.e.f": None}
