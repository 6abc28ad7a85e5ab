"""`rewarm predict` on run directories whose losses follow the law exactly."""

import json

import pytest
from predicted_studies import ARMS, BATCH, STARTS, refused, true_changes, write_arm, write_recipe
from synthetic_probes import Arm


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "study"
    for name, arm in ARMS.items():
        write_arm(folder / name, arm)
    return folder


def test_recipes_and_schedules_are_predicted(tmp_path, study, command):
    target = Arm(0.7, replay=0.02)
    figure = tmp_path / "new" / "p.svg"
    recipe = write_recipe(tmp_path, target)
    schedule = "{name: rewarm, peak_lr: 2e-3, min_lr: 2e-4, warmup: 5%}"
    longer = ("--schedule", schedule, "--tokens", str(1000 * BATCH), "--force")
    names = ("half", "peak", "replay")
    arms = [study / name for name in names]
    code, out, err = command("predict", *arms, recipe, *longer, "--json", "--out", figure)
    assert (code, err) == (0, "")
    result = json.loads(out)
    prediction, long_run = result["predictions"]
    assert prediction["replay"] == pytest.approx(0.02)
    assert prediction["outside"] == []
    assert prediction["steps"][0] == 0
    assert prediction["tokens"][-1] == 400 * BATCH
    changes = true_changes(target, prediction["steps"])
    for name, start in STARTS.items():
        loss = prediction["losses"][name]
        assert loss["role"] == name
        assert loss["loss"][0] == pytest.approx(start)
        assert loss["loss"] == pytest.approx(list(start + changes[name]), abs=0.05)
        low, high = loss["intervals"]["95%"]
        assert low[-1] < start + changes[name][-1] < high[-1]
    models = {"law", "published form", "power law in tokens", "nearest arm"}
    assert models == result["left out"].keys()
    assert [error["arm"] for error in result["left out"]["law"]["upstream"]] == [*names]
    assert figure.read_text().startswith("<?xml")
    assert "its length is 2.5 times" in " ".join(long_run["outside"])
    assert last_width(long_run) > 1.2 * last_width(prediction)


def last_width(prediction):
    low, high = prediction["losses"]["downstream"]["intervals"]["80%"]
    return high[-1] - low[-1]


def test_a_schedule_is_predicted_printed_and_written_as_a_page(tmp_path, study, command):
    arms = [study / name for name in ("peak", "half", "replay")]
    page = tmp_path / "<p>.html"
    code, out, err = command(
        *(
            "predict",
            *arms,
            "--out",
            page,
            "--schedule",
            "rewarm",
            "--replay",
            "5%",
            "--tokens",
            "1M",
        ),
        *("--set", "schedule.peak_lr=1e-3", "--set", "schedule.min_lr=1e-4"),
        *("--set", "schedule.warmup=5%"),
    )
    assert (code, err) == (0, "")
    assert "its length is 1.2 times that of the longest arm" in out
    assert "Leave one arm out" in out
    lines = out.splitlines()
    final = next(line for line in lines if line.startswith("rewarm  "))
    true = STARTS["upstream"] + true_changes(Arm(0.5, 0.05, 488), [488])["upstream"][-1]
    low, high = (float(word) for word in final.split()[4:7:2])
    assert low < true < high
    assert len(final.split()) == 8
    text = page.read_text()
    assert "data:image/svg+xml;base64," in text
    assert f"{low:.3f} to {high:.3f}</td>" in text
    assert "its length is 1.2 times that of the longest arm" in text
    assert "<script" not in text


def test_what_is_too_far_outside_is_refused(tmp_path, study, command):
    arms = {
        "its length is 2.5 times that of the longest arm": Arm(steps=1000),
        "its peak rate is 2.5 times the highest of the arms": Arm(2.5),
        "its peak rate is 0.16 times the lowest of the arms": Arm(0.04),
        "its replay is 6 times the largest of the arms": Arm(replay=0.3),
    }
    recipes = [
        write_recipe(tmp_path, arm, name=f"{index}.yaml") for index, arm in enumerate(arms.values())
    ]
    code, err = refused(command, study, *recipes)
    assert code == 2
    for recipe, reason in zip(recipes, arms, strict=True):
        assert f"{recipe}: {reason}" in err
    assert "--force" in err


def test_replay_without_an_arm_that_has_any(tmp_path, study, command):
    recipe = write_recipe(tmp_path, Arm(replay=0.05))
    arms = [study / name for name in ("peak", "half", "quarter")]
    code, err = refused(command, *arms, recipe)
    assert code == 2
    assert "0.05 of its tokens are replay, and no arm has any" in err


def test_too_few_arms(tmp_path, study, command):
    recipe = write_recipe(tmp_path, Arm())
    code, err = refused(command, study / "peak", study / "half", recipe)
    assert code == 3
    assert "arms that train on new data: 2 (peak, half); at least 3 are needed" in err


def test_runs_that_do_not_compare(tmp_path, study, command):
    run = write_arm(tmp_path / "other", Arm(), model={"base": "/models/other"})
    code, err = refused(command, study, run.parent, write_recipe(tmp_path, Arm()))
    assert code == 3
    assert (
        f"{run}: model.base of other: /models/other; of half: /models/base; one law is for" in err
    )
    assert "name the directories of the arms to fit, without it" in err


def test_recipes_of_another_law(tmp_path, study, command):
    recipe = write_recipe(tmp_path, Arm(), batch={"tokens": 4096})
    code, err = refused(command, study, recipe)
    assert code == 2
    assert f"{recipe}: batch.tokens is 4096, and 2048 in the arms; predictions are for runs" in err


def test_options_that_do_not_fit(tmp_path, study, command):
    recipe = write_recipe(tmp_path, Arm())
    for words, reason in (
        ((study,), "give a RECIPE to predict, or --schedule NAME"),
        ((recipe,), "name the runs to learn from before it"),
        ((study, recipe, "--tokens", "1M"), "--tokens needs --schedule or --search"),
        ((study, recipe, "--replay", "5%"), "--replay needs --schedule"),
        ((study, "--schedule", "rewarm", "--replay", "2"), "should be from 0 to 100%"),
        ((study, tmp_path / "nest.yaml"), "nest.yaml: no such file; a recipe is a YAML file; did "),
        ((study, recipe, "--out", "p.jpg"), "--out p.jpg: should end with .png, .svg, .pdf"),
    ):
        code, err = refused(command, *words)
        assert code == 2
        assert reason in err.replace("│ ", "")


def test_tables_are_printed_before_a_file_that_cannot_be_written(tmp_path, study, command):
    (tmp_path / "file").touch()
    recipe = write_recipe(tmp_path, Arm(0.7))
    code, out, err = command("predict", study, recipe, "--out", tmp_path / "file" / "p.svg")
    assert code == 1
    assert "Predicted losses in nats" in out
    assert "cannot be written" in err
