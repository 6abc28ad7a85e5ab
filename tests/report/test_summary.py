"""The sentences of a report."""

import json

from written_runs import write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_page import html_page
from rewarm.report.run_tables import runs_table
from rewarm.report.summary import applied_rates_sentence, summary_sentences


def test_summary_of_two_arms(tmp_path):
    paths = [write_run(tmp_path / arm, peak=peak) for arm, peak in (("a", 3e-4), ("b", 6e-4))]
    assert summary_sentences(collect_runs(paths)) == [
        "2 arms, 2 runs; all complete; 61.44k tokens each.",
        "Lowest upstream loss: a, 3.5000 nats.",
        "Lowest downstream loss: a, 2.7707 nats.",
        "Pareto front of upstream and downstream loss: a, b.",
        "Trained on the same batches: a, b.",
    ]


def test_largest_deviation_of_an_applied_rate(tmp_path):
    run = write_run(tmp_path / "a")
    assert applied_rates_sentence(collect_runs([run])) == ""
    rates = [{"scheduled": 1e-3, "measured": 1e-3}, {"scheduled": 2e-3, "measured": 2.002e-3}]
    events = [{"kind": "rate", **rate} for rate in rates]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert applied_rates_sentence(collect_runs([run])) == (
        "The learning rate was measured on the weights at 2 steps. It differed from the "
        "scheduled one by a relative error of at most 0.001."
    )


def test_arms_and_seeds_that_have_not_begun_are_named(tmp_path, thousand_steps):
    (tmp_path / "recipe.yaml").write_text(thousand_steps)
    study = tmp_path / "study.yaml"
    study.write_text(
        f"study: {tmp_path}/s\nrecipe: recipe.yaml\narms: {{a: , b: , c: }}\nseeds: [1, 2]\n"
    )
    write_run(tmp_path / "s" / "a" / "1", seed=1)
    write_run(tmp_path / "s" / "b" / "1", seed=1)
    write_run(tmp_path / "s" / "b" / "2", seed=2)
    collected = collect_runs([study])
    assert summary_sentences(collected)[1] == "Not begun: a (seed 2), c (seeds 1, 2)."
    states = [[cell.text for cell in row[:3]] for row in runs_table(collected).rows]
    assert states[3:] == [["a", "2", "not begun"], ["c", "1", "not begun"], ["c", "2", "not begun"]]
    assert "Not begun: a (seed 2), c (seeds 1, 2)." in html_page(collected)
    # The same from results.json, which a study writes when it ends, or is stopped.
    results = {"arms": {"a": {}, "b": {}, "c": {}}, "seeds": [1, 2]}
    (tmp_path / "s" / "results.json").write_text(json.dumps(results))
    assert collect_runs([tmp_path / "s"]).not_begun == {"a": [2], "c": [1, 2]}
