"""`rewarm probe`: from a recipe to a recommended one, with real arms."""

import signal

import pytest
import yaml
from predicted_studies import ARMS, recipe_document, write_arm
from rewarm_process import RewarmProcess

from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.cli.commands.probe import read_study_arms
from rewarm.estimates import measure_step_time
from rewarm.predict import probe_plan
from rewarm.recipe.recipe import load_recipe
from rewarm.study.study_file import load_study

RECIPE = """\
run: run
seed: 5
tokens: 12288
model: {{base: {base}}}
data:
  context: 64
  lanes: 2
  train: {{third: {{shards: {corpora}/third/train}}}}
  validation:
    third: {{shards: {corpora}/third/val, tokens: 640}}
    upstream: {{shards: {corpora}/upstream/val, tokens: 640}}
batch: {{tokens: 1024, microbatch: 16}}
schedule: {{name: rewarm, start_lr: base, peak_lr: 1e-2, min_lr: base, warmup: 1 steps}}
precision: fp32
"""


@pytest.fixture
def recipe(trained_run, corpora, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=trained_run, corpora=corpora))
    return path


def run_briefly():
    measure_step_time.MIN_SECONDS = 0.0
    probe_plan._SHORTEST = 12


@pytest.mark.slow
def test_a_killed_probe_continues_and_recommends(recipe, tmp_path, command, monkeypatch):
    monkeypatch.setattr(probe_plan, "_SHORTEST", 12)
    words = ["probe", recipe, "--hours", "0.5"]
    process = RewarmProcess(tmp_path, *words, before=run_briefly)
    assert process.wait_for("quarter/5  running")
    process.signal(signal.SIGKILL)
    process.wait()
    planned = process.output
    assert [line.split()[:4] for line in planned.splitlines()[:4]] == [
        ["arm", "peak", "replay", "steps"],
        ["peak", "1e-2", "0", "12"],
        ["quarter", "2.5e-3", "0", "12"],
        ["replay-5", "1e-2", "0.05", "12"],
    ]
    assert "of 30 minutes" in planned
    folder = tmp_path / "run-probe"
    study = (folder / "study.yaml").read_text()

    code, out, err = command(*words)
    assert code == 0, err
    assert "measuring" not in err
    assert (folder / "study.yaml").read_text() == study
    assert (folder / "peak" / "5.log").read_text().count("step 12/12") == 1
    assert "Predicted losses in nats" in out
    assert "recommended (*)" in out
    assert "Leave one arm out" in out
    recommended = load_recipe(folder / "recommended.yaml", base_lr=last_lr_of_base)
    assert recommended.steps == 12
    assert recommended.run == f"{tmp_path}/run-recommended"
    code, _, err = command("check", folder / "recommended.yaml")
    assert code == 0, err

    # The finished arms are fitted again, and no other is trained; no run keeps this constraint.
    # A run that is not of the study, and is not finished, is not fitted.
    unfinished = folder / "removed" / "5"
    unfinished.mkdir(parents=True)
    for name in ("recipe.yaml", "metrics.jsonl"):
        lines = (folder / "quarter" / "5" / name).read_text().splitlines(keepends=True)
        (unfinished / name).write_text("".join(lines if name == "recipe.yaml" else lines[:4]))
    code, again, err = command(*words, "--hours", 3, "--keep", "upstream rise <= -9")
    assert code == 2
    assert "running" not in err
    assert "keeps the constraints" in err
    predicted = out[out.index("Predicted losses in nats") : out.index("fitted to 3 arms")]
    assert predicted in again
    assert not (folder / "recommended.yaml").exists()
    code, out, err = command(*words, "--set", "schedule.peak_lr=2e-2")
    assert (code, out) == (3, "")
    assert "schedule.peak_lr: 0.01 → 0.02; undo the changes, or name another folder" in err


def test_an_arm_that_was_removed_from_the_study_is_not_fitted(tmp_path):
    for name, arm in ARMS.items():
        write_arm(tmp_path / name, arm)
    study = tmp_path / "study.yaml"
    content = {
        "study": ".",
        "recipe": "probe.yaml",
        "arms": {"peak": {}, "quarter": {}, "replay": {}},
        "seeds": [1],
    }
    study.write_text(yaml.safe_dump(content))
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump(recipe_document(ARMS["peak"])))
    probes = read_study_arms(load_study(study)).probes
    assert [probe.arm for probe in probes] == ["peak", "quarter", "replay"]


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "an", "8761", "1e300"])
def test_hours_that_are_none_are_refused(recipe, command, hours):
    code, out, err = command("probe", recipe, "--hours", hours)
    assert (code, out) == (2, "")
    assert "--hours" in err


def test_a_study_is_refused(recipe, tmp_path, command):
    study = tmp_path / "study.yaml"
    study.write_text("study: runs\nrecipe: recipe.yaml\narms: {a: {}}\n")
    code, out, err = command("probe", study)
    assert (code, out) == (2, "")
    assert "this is a study, and a recipe is expected here" in err


@pytest.mark.parametrize(
    ("words", "expected", "problem"),
    [
        (["--set", "model={preset: pythia-14m}"], 2, "model.base: none"),
        (["--keep", "upstream rises <= 1"], 2, "--keep 'upstream rises <= 1'"),
        (["--set", "data.validation.upstream.shards=nowhere"], 3, "nowhere"),
        (["--set", "tokens=1M"], 3, "corpus 'third': the run needs"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    recipe, tmp_path, command, monkeypatch, words, expected, problem
):
    monkeypatch.setattr(probe_plan, "_SHORTEST", 12)
    rates = ["--set", "schedule.start_lr=1e-3", "--set", "schedule.min_lr=1e-3"]
    code, out, err = command("probe", recipe, *rates, *words)
    assert (code, out) == (expected, "")
    assert problem in err
    assert "measuring" not in err
    assert not (tmp_path / "run-probe").exists()


def test_a_target_shorter_than_any_tested_run_is_refused(recipe, tmp_path, command):
    code, out, err = command("probe", recipe, "--set", "tokens=60k")
    assert (code, out) == (2, "")
    assert "tokens: 60,000 are 58 steps of batch.tokens 1,024" in err
    assert "needs tokens of at least 61,440" in err
    assert "measuring" not in err
    assert not (tmp_path / "run-probe").exists()


@pytest.mark.parametrize("words", [[], ["--plan"]])
def test_a_folder_with_other_files_is_refused_before_anything_is_measured(
    recipe, tmp_path, command, monkeypatch, words
):
    monkeypatch.setattr(probe_plan, "_SHORTEST", 12)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    code, out, err = command("probe", recipe, "--out", folder, *words)
    assert (code, out) == (3, "")
    assert "has other files, such as notes.txt" in err
    assert "measuring" not in err
