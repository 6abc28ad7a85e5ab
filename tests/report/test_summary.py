"""The sentences of a report."""

import json

from written_runs import write_run

from rewarm.report.collect_runs import collect_runs
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
