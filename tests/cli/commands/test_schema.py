import json


def test_prints_the_schema_of_a_recipe(command):
    code, out, err = command("schema")
    assert (code, err) == (0, "")
    assert {"run", "tokens", "schedule"} <= json.loads(out)["properties"].keys()


def test_prints_the_schema_of_a_study(command):
    code, out, err = command("schema", "--study")
    assert (code, err) == (0, "")
    assert {"recipe", "arms", "claims"} <= json.loads(out)["properties"].keys()
