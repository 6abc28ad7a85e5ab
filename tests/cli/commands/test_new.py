import json

from repository import ROOT

from rewarm.cli.recipe_templates import SCHEMA_FILE, STUDY_SCHEMA_FILE

TEMPLATES = {path.stem: path.read_text() for path in (ROOT / "recipes").glob("*.yaml")}
DEFAULT = "pythia-410m-rewarm"


def test_lists_templates_without_a_name(command):
    code, out, _ = command("new")
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert rows.keys() == TEMPLATES.keys()
    assert rows[DEFAULT].startswith("recipe  Continue Pythia-410M from the Pile onto SlimPajama")
    assert rows["paper"].startswith("study   arXiv:2308.04014 at full size")


def test_writes_a_recipe_and_its_schema(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("new", DEFAULT)
    assert (code, out.split()) == (0, [f"{DEFAULT}.yaml", SCHEMA_FILE])
    assert (tmp_path / f"{DEFAULT}.yaml").read_text() == TEMPLATES[DEFAULT]
    _, out, _ = command("schema")
    assert json.loads((tmp_path / SCHEMA_FILE).read_text()) == json.loads(out)


def test_refuses_to_overwrite_a_recipe(command, tmp_path):
    path = tmp_path / f"{DEFAULT}.yaml"
    path.write_text("mine")
    code, _, err = command("new", DEFAULT, "--out", tmp_path)
    assert code == 2
    assert f"{path}: already exists; remove it, or choose another folder with --out" in err
    assert path.read_text() == "mine"


def test_suggests_a_name(command):
    code, _, err = command("new", "pythia-410m-rewram")
    assert code == 2
    assert "no template named 'pythia-410m-rewram'; did you mean" in err


def test_creates_the_folder(command, tmp_path):
    folder = tmp_path / "a" / "b"
    code, out, _ = command("new", DEFAULT, "--out", folder)
    assert (code, out.split()) == (0, [f"{folder}/{DEFAULT}.yaml", f"{folder}/{SCHEMA_FILE}"])
    file = folder / SCHEMA_FILE
    code, _, err = command("new", DEFAULT, "--out", file)
    assert (code, err) == (2, f"{file}: cannot be written: File exists\n")


def test_writes_the_recipes_of_a_study_that_do_not_exist_yet(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu-mini-base.yaml").write_text("mine")
    code, out, _ = command("new", "cpu-mini")
    names = ["cpu-mini.yaml", "cpu-mini-rewarm.yaml", "cpu-mini-base.yaml"]
    assert (code, out.split()) == (0, [*names, SCHEMA_FILE, STUDY_SCHEMA_FILE])
    assert (tmp_path / names[1]).read_text() == TEMPLATES["cpu-mini-rewarm"]
    assert (tmp_path / names[2]).read_text() == "mine"
    _, out, _ = command("schema", "--study")
    assert json.loads((tmp_path / STUDY_SCHEMA_FILE).read_text()) == json.loads(out)
