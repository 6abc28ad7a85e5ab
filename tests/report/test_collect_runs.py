"""Which runs a report collects, and what it reads from them."""

import json
from pathlib import Path

import pytest
from written_runs import write_run

from rewarm.errors import CheckpointError
from rewarm.report.collect_runs import collect_runs


def test_runs_of_a_study_before_and_after_its_results(tmp_path, command):
    for arm in ("b", "a"):
        for seed in (17, 18):
            write_run(tmp_path / "s" / arm / str(seed), seed=seed)
    write_run(tmp_path / "s" / "bases" / "up")
    (tmp_path / "s" / "b" / "19").mkdir()
    (tmp_path / "s" / "b" / "19" / "metrics.jsonl").touch()
    collected = collect_runs([tmp_path / "s"])
    assert [(record.arm, record.seed) for record in collected.records] == [
        *(("a", 17), ("a", 18), ("b", 17), ("b", 18))
    ]
    assert collected.reference == "a"
    results = {
        "arms": {"b": {}, "a": {}},
        "reference": "b",
        "claims": {
            "b is better": {
                "claim": "final(upstream, b) < final(upstream, a)",
                "verdict": "held",
                "effect": {"mean": -0.1, "error": 0.01, "seeds": 2, "interval": [-0.2, -0.05]},
                "why": "",
            }
        },
    }
    study = tmp_path / "study.yaml"
    claim = "b is better: final(upstream, b) < final(upstream, a)"
    study.write_text(
        f"study: {tmp_path}/s\nrecipe: r.yaml\narms: {{b: , a: }}\nclaims:\n  {claim}\n"
    )
    collected = collect_runs([study])
    assert (collected.arms, collected.reference) == (["b", "a"], "b")
    assert collected.claims["b is better"].verdict == "open"
    (tmp_path / "s" / "results.json").write_text(json.dumps(results))
    out = tmp_path / "r.md"
    assert command("report", study, "--out", out) == (0, f"{out}: 2 arms, 4 runs\n", "")
    text = out.read_text()
    assert text.startswith("# s\n\n- 2 arms, 4 runs; all complete; 61.44k tokens each.\n")
    assert "- 1 claim: 1 held.\n" in text
    assert "| held | b is better |" in text
    assert "-0.1000 \\[-0.2000, -0.0500\\]" in text
    assert text.index("| b | 2 |") < text.index("| a | 2 |")
    assert "- Trained on the same batches: b, a." in text


def test_an_arm_named_bases_is_shown(tmp_path):
    folder = tmp_path / "s"
    for arm in ("a", "bases"):
        write_run(folder / arm / "17")
    assert collect_runs([folder]).arms == ["a", "bases"]
    (folder / "results.json").write_text(json.dumps({"arms": {"bases": {}, "a": {}}}))
    assert collect_runs([folder]).arms == ["bases", "a"]
    (folder / "results.json").write_text(json.dumps({"arms": {"a": {}}}))
    assert collect_runs([folder]).arms == ["a"]  # 17 is the name of a base


def test_runs_with_the_same_name_are_told_apart_by_path(tmp_path):
    first, second = write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run")
    assert collect_runs([first, second, first]).arms == ["run", str(second)]


def test_a_run_named_by_its_seed_belongs_to_the_arm_of_its_folder(tmp_path, monkeypatch):
    for arm, seed in (("high", 17), ("high", 18), ("low", 17)):
        write_run(tmp_path / arm / str(seed), seed=seed)
    monkeypatch.chdir(tmp_path / "low")
    collected = collect_runs([Path("../high/18"), Path("17"), tmp_path / "high" / "17"])
    assert [(record.arm, record.seed) for record in collected.records] == [
        ("high", 18),
        ("low", 17),
        ("high", 17),
    ]
    assert collected.arms == ["high", "low"]


def test_runs_in_one_folder_with_other_names_are_arms_of_their_own(tmp_path):
    for name in ("base", "constant"):
        write_run(tmp_path / "quickstart" / "runs" / name, seed=2)
    assert collect_runs([tmp_path / "quickstart"]).arms == ["base", "constant"]


def test_two_runs_of_an_arm_with_the_same_seed_are_refused(tmp_path):
    for name in ("17", "18"):
        write_run(tmp_path / "a" / name, seed=17)
    with pytest.raises(CheckpointError, match=r"a/17 and .*a/18: both have seed 17"):
        collect_runs([tmp_path])


def test_a_run_that_is_behind_is_collected_but_not_averaged(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / "s" / "a" / str(seed), seed=seed)
    path = tmp_path / "s" / "a" / "3" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:15]))
    collected = collect_runs([tmp_path / "s"])
    assert len(collected.records) == 3
    assert collected.results.seeds("a") == [1, 2]
