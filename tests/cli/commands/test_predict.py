"""`rewarm predict` on run directories whose losses follow the law exactly."""

import json

import pytest
from predicted_studies import (
    ARMS,
    BATCH,
    STARTS,
    document,
    refused,
    true_changes,
    write_arm,
    write_recipe,
)
from synthetic_probes import Arm


@pytest.fixture
def study(tmp_path):
    for name, arm in ARMS.items():
        write_arm(tmp_path / "study" / name, arm)
    return tmp_path / "study"


def test_a_recipe_is_predicted(tmp_path, study, command):
    target = Arm(0.7, replay=0.02)
    figure = tmp_path / "new" / "p.svg"
    recipe = write_recipe(tmp_path, target)
    code, out, err = command("predict", study, recipe, "--json", "--out", figure)
    assert (code, err) == (0, "")
    result = json.loads(out)
    [prediction] = result["predictions"]
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
    names = {"law", "published form", "power law in tokens", "nearest arm"}
    assert names == result["left out"].keys()
    assert [error["arm"] for error in result["left out"]["law"]["upstream"]] == sorted(ARMS)
    assert figure.read_text().startswith("<?xml")


def test_a_schedule_is_predicted_and_printed(study, command):
    code, out, err = command(
        *("predict", study, "--schedule", "rewarm", "--replay", "5%", "--tokens", "1M"),
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


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        (Arm(steps=1000), "its length is 2.5 times that of the longest arm"),
        (Arm(2.5), "its peak rate is 2.5 times the highest of the arms"),
        (Arm(0.04), "its peak rate is 0.16 times the lowest of the arms"),
        (Arm(replay=0.3), "its replay is 6 times the largest of the arms"),
    ],
)
def test_what_is_too_far_outside_is_refused(tmp_path, study, command, arm, reason):
    code, err = refused(command, study, write_recipe(tmp_path, arm))
    assert code == 2
    assert reason in err
    assert "--force" in err


def test_longer_runs_have_wider_intervals_also_beyond_the_limit(tmp_path, study, command):
    schedule = "{name: rewarm, peak_lr: 2e-3, min_lr: 2e-4, warmup: 5%}"
    widths = []
    for steps in (400, 1000):
        words = ("--schedule", schedule, "--tokens", str(steps * BATCH), "--force", "--json")
        code, out, _ = command("predict", study, *words)
        assert code == 0
        [prediction] = json.loads(out)["predictions"]
        low, high = prediction["losses"]["downstream"]["intervals"]["80%"]
        widths.append(high[-1] - low[-1])
    assert "its length is 2.5 times" in " ".join(prediction["outside"])
    assert widths[1] > 1.2 * widths[0]


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
    assert "2 arms train on new data (peak, half); at least 3 are needed" in err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": {"base": "/models/other"}}, "base of other: /models/other; of half: "),
        (
            {"batch": {"tokens": 4096}, "tokens": 400 * 4096},
            "batch.tokens of other: 4096; of half: ",
        ),
        ({"optimizer": {"weight_decay": 0.5}}, "optimizer of other: "),
        ({"model": {"base": "/models/base", "fresh": True}}, "starts from new weights"),
        ({"tokens": 900 * BATCH}, "has losses up to step 400 of 900"),
    ],
)
def test_runs_that_do_not_compare(tmp_path, study, command, settings, reason):
    write_arm(study / "other", Arm(), **settings)
    code, err = refused(command, study, write_recipe(tmp_path, Arm()))
    assert code == 3
    assert reason in err


def test_runs_on_other_data(tmp_path, study, command):
    data = document(Arm())["data"]
    other_context = {**data, "context": 64}
    other_text = {**data, "train": {"german": {"shards": "/data/german/train"}}}
    for name, changed, reason in (
        ("context", other_context, "data.context of context: 64; of peak: 128"),
        ("text", other_text, "new data of text: german (/data/german/train); of peak: downstream"),
    ):
        arms = [study / arm for arm in ARMS]
        run = write_arm(tmp_path / name, Arm(), data=changed)
        code, err = refused(command, *arms, run.parent, write_recipe(tmp_path, Arm()))
        assert code == 3
        assert reason in err


def test_recipes_of_another_law(tmp_path, study, command):
    data = document(Arm())["data"]
    for settings, reason in (
        ({"batch": {"tokens": 4096}}, "batch.tokens is 4096, and 2048 in the arms"),
        ({"model": {"base": "/models/x"}}, "model.base is /models/x, and /models/base in the arms"),
        (
            {"data": {**data, "train": {"german": {"shards": "/data/german/train"}}}},
            "new data german (/data/german/train), and downstream (/data/new/train) in the arms",
        ),
    ):
        code, err = refused(command, study, write_recipe(tmp_path, Arm(), **settings))
        assert code == 2
        assert reason in err


def test_options_that_do_not_fit(tmp_path, study, command):
    recipe = write_recipe(tmp_path, Arm())
    for words, reason in (
        ((study,), "give a RECIPE to predict, or --schedule NAME"),
        ((recipe,), "name the runs to learn from before it"),
        ((study, recipe, "--tokens", "1M"), "--tokens needs --schedule or --search"),
        ((study, recipe, "--replay", "5%"), "--replay needs --schedule"),
        ((study, "--schedule", "rewarm", "--replay", "2"), "should be from 0 to 100%"),
        ((study, recipe, "--out", "p.jpg"), "--out p.jpg: should end with .png, .svg, .pdf"),
    ):
        code, err = refused(command, *words)
        assert code == 2
        assert reason in err.replace("│ ", "")
