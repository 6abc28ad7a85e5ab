"""`rewarm plan`: its table, its notes, and what it refuses."""

import json
import re

import pytest
import yaml
from planned_studies import write_study_with_base
from predicted_studies import ARMS, BATCH, STARTS, recipe_document, true_changes, write_arm
from repository import ROOT
from synthetic_probes import Arm

from rewarm.estimates import measure_step_time
from rewarm.estimates.cost import CostEstimate

PAPER = ROOT / "recipes" / "pythia-410m-rewarm.yaml"


def test_a_table_and_where_each_figure_comes_from(command):
    code, out, err = command("plan", PAPER, "--gpu", "h100", "--gpus", 8, "--price", 2.5)
    assert (code, err) == (0, "")
    head, row, *notes = out.splitlines()
    assert head.split("  ")[0] == "run"
    assert re.split(r"  +", row)[1:6] == ["296.86B", "131,296", "8.10e20", "62.7 h", "501.3"]
    headings = [line[:10].strip() for line in notes]
    expected = ["speed", "time", "GPUs", "links", "FLOPs", "memory", "disk", "cost", "problems"]
    assert headings == expected
    assert "GPUs      8 × 138 sequences, in 9 microbatches of 16; 95.8% useful" in out
    assert "parallel.shard: 1 sends 2.84 GB from each GPU in a step, 8.9 ms by a model" in out
    assert "compute; 62.3 h with full overlap\n" in out
    assert notes[-1].endswith("training here; `rewarm check` lists them")
    code, out, _ = command("plan", PAPER, "--gpu", "h100", "--price", "2.5", "--json")
    estimate = CostEstimate.model_validate_json(out)
    assert estimate.cost == pytest.approx(2.5 * 478.12, abs=0.05)


def test_without_a_speed_there_are_no_hours(command):
    code, out, _ = command("plan", PAPER)
    assert code == 0
    assert "GPU hours" not in out.splitlines()[0]
    assert "time      name a GPU that was measured (--gpu h100), or --measure here" in out


def test_a_run_that_does_not_fit_is_reported(command):
    _, out, _ = command("plan", PAPER, "--gpu", "h100", "--set", "model={preset: pythia-12b}")
    assert "memory    more than the 80.00 GB of h100: at this microbatch it does not fit\n" in out
    small = ("--set", "model={preset: pythia-12b}", "--set", "batch.microbatch=2")
    _, out, _ = command("plan", PAPER, "--gpu", "h100", "--gpus", 8, *small)
    assert "it does not fit; it does with parallel.shard: all\n" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h1000"], "was not measured; did you mean 'h100'? (measured: h100)"),
        (["--gpu", "h100", "--measure"], "--gpu and --measure: choose one"),
        (["--price", "2"], "--price: needs hours; name a --gpu, or --measure"),
        (["--gpus", "0"], "greater than or equal to 1"),
        (["--gpu", "h100", "--set", "precision=fp16"], "h100 in fp16 was not measured"),
        (["--gpu", "h100", "--set", "compile=false"], "in bf16, not compiled was not measured"),
        (["--gpus", "8", "--set", "parallel.shard=3"], "3 does not divide 8 GPUs; try one of 1, 2"),
        (["--gpus", "2000"], "are 1,104 sequences of 2,048 tokens, fewer than 2,000 GPUs"),
        (["--set", "sede=1"], "sede: no such setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(command, options, message):
    code, out, err = command("plan", PAPER, *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", "").split())


def test_a_base_that_does_not_exist(command, tmp_path):
    code, _, err = command("plan", PAPER, "--set", f"model={{base: {tmp_path}/nowhere}}")
    assert code == 3
    assert "nowhere: no such folder; correct the path" in err


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(measure_step_time, "MIN_SECONDS", 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_measured_cost_of_a_recipe(few_steps, recipe_file, command, tmp_path):
    # Neither its base nor its data is needed.
    changed = ("--set", "batch.microbatch=auto", "--set", "data.validation.downstream.tokens=1280")
    code, out, err = command("plan", recipe_file, "--measure", "--json", *changed)
    assert code == 0
    assert "measuring 58,240 parameters, 1,024 tokens a step" in err
    (cost,) = CostEstimate.model_validate_json(out).costs
    hours = cost.time.model_dump()
    assert hours.pop("communicating") == 0  # one process
    assert all(part > 0 for part in hours.values())
    assert cost.microbatch == 16  # 2,048 tokens at once would be 32; the batch has 16
    assert cost.memory_measured
    assert 100e6 < cost.memory < 4e9
    assert re.match(r"[\d,]+ tokens/s: \d+ steps of a real run on this machine", cost.source)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_runs_of_the_same_speed_are_measured_once(few_steps, recipe_file, tmp_path, command):
    path = tmp_path / "study.yaml"
    path.write_text(
        f"study: {tmp_path}/runs\nrecipe: {recipe_file.name}\n"
        "arms: {a: , b: {schedule.peak_lr: 1e-3}}\n"
    )
    code, out, err = command("plan", path, "--measure", "--gpus", 2)
    assert code == 0
    assert err.count("measuring") == 1
    assert "memory    the peak of the process that took the steps" in out
    assert "(rewarm compare --workers 2)" in out


def test_a_study_has_a_row_for_each_arm_and_one_for_all(tmp_path, thousand_steps, command):
    study = write_study_with_base(tmp_path, thousand_steps)
    code, out, _ = command("plan", study, "--gpu", "h100", "--gpus", 2)
    assert code == 0
    rows = [line.split()[:3] for line in out.splitlines()[:5]]
    assert rows == [
        ["run", "runs", "tokens"],
        ["bases/up", "50M", "500"],
        ["a", "2", "100M"],
        ["b", "2", "200M"],
        ["all", "5", "650M"],
    ]


def test_the_cost_of_more_seeds_is_in_the_json_too(tmp_path, thousand_steps, command):
    study = write_study_with_base(tmp_path, thousand_steps)
    with study.open("a") as file:
        file.write("claims: {c: 'final(upstream, a) < final(upstream, b)'}\n")
    for recipe in ("recipe.yaml", "base.yaml"):
        text = thousand_steps.replace("data:\n", "data:\n  validation: {upstream: {shards: x}}\n")
        (tmp_path / recipe).write_text(text.replace("100M", "50M" if "base" in recipe else "100M"))
    code, out, err = command("plan", study, "--gpu", "h100", "--json")
    assert code == 0, err
    [note] = json.loads(out)["notes"]
    assert note.startswith("seeds: 2: a claim is decided if ")
    assert "GPU hours more)" in note


@pytest.mark.slow
def test_examples_in_the_documentation_are_what_it_prints(command, monkeypatch):
    text = (ROOT / "docs" / "plan.md").read_text()
    monkeypatch.chdir(ROOT / "recipes")
    examples = re.findall(r"\$ rewarm (plan [^\n]*)\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for line, printed in examples:
        code, out, _ = command(*line.split())
        assert code == 0
        assert out == printed


@pytest.fixture
def probes(tmp_path):
    """Finished arms from the base of `planned_study`."""
    base = tmp_path / "runs" / "bases" / "up"
    for name, arm in ARMS.items():
        run = write_arm(tmp_path / "probes" / name, arm)
        document = recipe_document(arm, run, base)
        (run / "recipe.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "probes"


@pytest.fixture
def planned_study(tmp_path):
    """A study of which nothing is trained: a base, and arms near and far from the probes."""
    base = recipe_document(Arm(), "base") | {"model": {"preset": "pythia-14m"}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    recipe = recipe_document(Arm(0.7, replay=0.02), "run", tmp_path / "runs" / "bases" / "up")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arms = {
        "near": {},
        "longer": {"tokens": 600 * BATCH},
        "far": {"tokens": 1000 * BATCH},
        "context": {"data.context": 64},
    }
    bases = {"up": "base.yaml"}
    study = {"study": str(tmp_path / "runs"), "recipe": "recipe.yaml", "bases": bases, "arms": arms}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "study.yaml"


def test_losses_are_predicted_beside_the_cost(command, probes, planned_study):
    code, out, err = command("plan", planned_study, "--predict", probes, "--json")
    assert (code, err) == (0, "")
    costs = {cost["name"]: cost for cost in json.loads(out)["costs"]}
    assert "predicted" not in costs["bases/up"]
    near, longer, far, context = (
        costs[name]["predicted"] for name in ("near", "longer", "far", "context")
    )
    for name, start in STARTS.items():
        true = start + true_changes(Arm(0.7, replay=0.02), [400])[name][-1]
        low, high = near["losses"][name]["intervals"]["80%"]
        assert low < true < high
        assert low < near["losses"][name]["loss"] < high
        wider = longer["losses"][name]["intervals"]["80%"]
        assert wider[1] - wider[0] > high - low
    assert (near["outside"], near["nearest arm"]) == ([], "replay")
    assert longer["outside"] == ["its length is 1.5 times that of the longest arm"]
    assert (far["losses"], context["losses"]) == ({}, {})
    assert "2.5 times that of the longest arm; predictions are known to hold" in far["outside"][0]
    assert "data.context is 64, and 128 in the arms" in context["outside"][0]


def test_predicted_losses_fit_a_terminal(command, probes, planned_study, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(probes.parent)  # a long path would not fit a line
    code, out, _ = command("plan", planned_study, "--predict", probes.name)
    assert code == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    table = lines[lines.index("Predicted last losses") + 1 :]
    assert table[0].split("  ")[0] == "run"
    rows = {line.split()[0]: line for line in table[1:5]}
    assert re.search(r"near +\d\.\d{3} \(\d\.\d{3}–\d\.\d{3}\) ", rows["near"])
    assert re.search(r"longer +\d\.\d{3}\* \(", rows["longer"])
    assert (rows["far"], rows["context"]) == ("far", "context")
    text = " ".join(" ".join(lines).split())
    assert "by a law fitted to 4 arms of" in text
    assert "* longer: its length is 1.5 times that of the longest arm" in text
    assert "no losses far: its length is 2.5 times" in text


def test_losses_that_cannot_be_predicted(command, probes, planned_study, tmp_path):
    code, out, err = command("plan", planned_study, "--predict", probes / "peak")
    assert (code, out) == (3, "")
    assert "arms that train on new data: 1 (peak); at least 3 are needed" in err
    other = recipe_document(Arm(), "run") | {"model": {"preset": "pythia-14m"}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    code, out, err = command("plan", tmp_path / "other.yaml", "--predict", probes)
    assert (code, out) == (2, "")
    assert "model.base is not set, and " in err
