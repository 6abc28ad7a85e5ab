"""Reports of real runs, and of metrics written by hand: what stands in them, and what cannot."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from by_hand import EVIL, write_run

from rewarm.report.chart_data import chart_data_json
from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_page import html_page
from rewarm.report.report_tables import final_losses, final_losses_table, validation_set_table
from rewarm.training.loop import train


class Page(HTMLParser):
    """The page as a browser's parser sees it: elements with attributes, scripts, text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.said, self.scripts, self._inside = [], [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.elements.append((tag, known))
        self._inside = known.get("id", "code") if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.said.append(data)
        else:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    @property
    def data(self):
        return json.loads(self.scripts["data"])


def test_of_a_run_that_was_trained(recipe_text, tmp_path, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text.replace("tokens: 20480", "tokens: 4096"))
    from rewarm.recipe.recipe import load_recipe

    train(load_recipe(path))
    out = tmp_path / "r.html"
    code, said, _ = command("report", tmp_path / "run", "--out", out)
    assert (code, said.splitlines()[-1]) == (0, f"{out}: 1 arm, 1 run")
    shown = Page(out.read_text())
    text = " ".join(" ".join(shown.said).split())
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['upstream/loss']:.4f}" in text
    assert "1 arm, 1 run; complete; 4,096 tokens each." in text
    assert "The rate was measured on the weights themselves at" in text
    assert "torch" in text
    assert "threads" in text
    assert "new weights" not in text
    assert "step 4 4,096 tokens lr 0.0094 → 0.0094 → 0.001 rewarm 0.1.0" in text
    [arm] = shown.data["arms"]
    assert arm["name"] == "run"


def test_the_columns_come_back(tmp_path):
    run = write_run(tmp_path / "a", points=200)
    data = json.loads(chart_data_json(collect_runs([run])))
    [[one]] = [arm["runs"] for arm in data["arms"]]

    def column(index):
        factor, divisor, differences = data["columns"][index]
        value, values = 0, []
        for difference in differences:
            value += difference or 0
            values.append(None if difference is None else value * factor / divisor)
        return values

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert column(one["train"]["tokens"]) == [line["tokens"] for line in trained]
    assert column(one["train"]["loss"]) == pytest.approx([x["loss"] for x in trained], abs=5.1e-5)
    assert column(one["train"]["lr"]) == pytest.approx([x["lr"] for x in trained], abs=3e-4 * 1e-4)


def test_a_loss_that_is_none_is_a_gap(tmp_path):
    run = write_run(tmp_path / "a", points=3)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"loss": [0-9.]+', '"loss": null', text, count=1))
    stored = json.loads(chart_data_json(collect_runs([run])))["columns"]
    assert [one for one in stored if None in one[2]]


def test_nine_arms_of_ten_thousand_points_are_below_two_megabytes(tmp_path, command):
    for arm in range(9):
        write_run(tmp_path / "runs" / f"arm-{arm}", 10_000, peak=(arm + 1) * 1e-4, every=100)
    out = tmp_path / "r.html"
    assert command("report", tmp_path / "runs", "--out", out)[0] == 0
    assert out.stat().st_size < 2_000_000
    assert len(Page(out.read_text()).data["arms"]) == 9


def test_what_files_say_is_text_and_never_markup(tmp_path, command):
    run = write_run(tmp_path / EVIL.replace("/", "∕"), settings={"note": EVIL, EVIL: "<b>&amp;"})
    text = (run / "metrics.jsonl").read_text()
    evil = json.dumps(f"{EVIL}/loss")[1:-1]
    (run / "metrics.jsonl").write_text(text.replace("upstream/loss", evil))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": EVIL, "step": 30, "what": EVIL}) + "\n")
    start = {"kind": "start", "time": EVIL, "environment": {EVIL: EVIL}}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    results = {
        "arms": {EVIL: {}},
        "claims": {EVIL: {"claim": EVIL, "verdict": EVIL, "why": EVIL}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    out = tmp_path / "r.html"
    assert command("report", tmp_path, "--out", out)[0] == 0
    shown = Page(out.read_text())
    assert not {tag for tag, _ in shown.elements} & {"img", "b"}
    assert not [key for _, known in shown.elements for key in known if key.startswith("on")]
    assert "".join(shown.said).count("onerror=alert(1)>") > 10
    assert shown.data["arms"][0]["name"] == run.name
    assert [tag for tag, _ in shown.elements].count("script") == 3
    [policy] = [known["content"] for _, known in shown.elements if known.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_a_page_needs_no_network(tmp_path):
    text = html_page(collect_runs([write_run(tmp_path / "a")]))
    shown = Page(text)
    for _, known in shown.elements:
        assert not known.keys() & {"src", "srcset", "action", "style"}
        assert known.get("href", "#").startswith("#")
    assert "@import" not in text
    assert "url(" not in text
    assert "MIT License" in text


def test_a_study_that_still_runs_and_one_with_results(tmp_path, command):
    for arm in ("b", "a"):
        for seed in (17, 18):
            write_run(tmp_path / "s" / arm / str(seed), seed=seed)
    write_run(tmp_path / "s" / "bases" / "up")
    (tmp_path / "s" / "b" / "19").mkdir()
    (tmp_path / "s" / "b" / "19" / "metrics.jsonl").touch()
    found = collect_runs([tmp_path / "s"])
    assert [(one.arm, one.seed) for one in found.records] == [
        *(("a", 17), ("a", 18), ("b", 17), ("b", 18))
    ]
    assert found.reference == "a"
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
    said = f"study: {tmp_path}/s\nrecipe: r.yaml\narms: {{b: , a: }}\nclaims:\n  {claim}\n"
    study.write_text(said)
    found = collect_runs([study])
    assert (found.arms, found.reference) == (["b", "a"], "b")
    assert found.claims["b is better"].verdict == "open"
    (tmp_path / "s" / "results.json").write_text(json.dumps(results))
    out = tmp_path / "r.md"
    said = command("report", study, "--out", out)
    assert said == (0, f"{out}: 2 arms, 4 runs\n", "")
    text = out.read_text()
    assert text.startswith("# s\n\n- 2 arms, 4 runs; all complete; 61.44k tokens each.\n")
    assert "- 1 claim: 1 held.\n" in text
    assert "| held | b is better |" in text
    assert "-0.1000 \\[-0.2000, -0.0500\\]" in text
    assert text.index("| b | 2 |") < text.index("| a | 2 |")
    assert "- Trained on the very same batches: b, a." in text


def test_runs_with_one_name_are_told_apart(tmp_path):
    one, other = write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run")
    found = collect_runs([one, other, one])
    assert found.arms == ["run", str(other)]


def test_a_run_of_a_study_is_of_its_arm(tmp_path, monkeypatch):
    for arm, seed in (("high", 17), ("high", 18), ("low", 17)):
        write_run(tmp_path / arm / str(seed), seed=seed)
    monkeypatch.chdir(tmp_path / "low")
    found = collect_runs([Path("../high/18"), Path("17"), tmp_path / "high" / "17"])
    assert [(one.arm, one.seed) for one in found.records] == [
        ("high", 18),
        ("low", 17),
        ("high", 17),
    ]
    assert found.arms == ["high", "low"]


def test_what_differs_is_told(tmp_path, command):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", peak=6e-4)
    out = tmp_path / "r.md"
    assert command("report", tmp_path / "runs", "--out", out)[0] == 0
    [asked] = re.findall(r"## Differences.*?\n\n.*?\n\n(.*?)\n\n", out.read_text(), re.DOTALL)
    assert [line.split(" | ")[0] for line in asked.splitlines()] == [
        *("| setting", "| ---", "| schedule.peak\\_lr", "| schedule.min\\_lr")
    ]
    assert "| 0.0003 | 0.0006 |" in asked


def test_csv_has_every_number(tmp_path, command):
    run = write_run(tmp_path / "a", points=5)
    out = tmp_path / "r.csv"
    assert command("report", run, "--out", out)[0] == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [loss] = [x for x in rows if (x["kind"], x["step"], x["name"]) == ("train", "3", "loss")]
    assert float(loss["value"]) == next(x["loss"] for x in lines if x["step"] == 3)
    assert {x["name"] for x in rows} >= {"lr", "grad_norm", "upstream/loss", "stream"}


@pytest.mark.parametrize("form", ["png", "svg"])
def test_pictures(tmp_path, command, form):
    for seed in (1, 2):
        write_run(tmp_path / "s" / "a" / str(seed), seed=seed)
    write_run(tmp_path / "s" / "$x$" / "1", seed=1)
    out = tmp_path / f"r.{form}"
    assert command("report", tmp_path / "s", "--out", out)[0] == 0
    head = out.read_bytes()
    assert head.startswith(b"\x89PNG" if form == "png" else b"<?xml")
    if form == "svg":
        again = tmp_path / "again.svg"
        assert command("report", tmp_path / "s", "--out", again)[0] == 0
        assert again.read_bytes() == head


def test_the_same_runs_are_the_same_page(tmp_path):
    run = write_run(tmp_path / "a")
    assert html_page(collect_runs([run])) == html_page(collect_runs([run]))


def test_format_without_a_name(tmp_path, command, monkeypatch):
    run = write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert command("report", run) == (0, "report.html: 1 arm, 1 run\n", "")
    assert command("report", run, "--format", "md") == (0, "report.md: 1 arm, 1 run\n", "")
    assert command("report", run, "--format", "csv", "--out", "x") == (0, "x: 1 arm, 1 run\n", "")
    code, _, err = command("report", run, "--out", "x.pdf")
    assert code == 2
    assert "--out x.pdf: should be html, md, csv, png or svg" in " ".join(err.split())


def test_what_cannot_be_reported(tmp_path, command):
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").touch()
    good = write_run(tmp_path / "good")
    (tmp_path / "recipe.yaml").write_text("tokens: 1\n")
    damaged, odd = write_run(tmp_path / "damaged"), write_run(tmp_path / "odd")
    (damaged / "metrics.jsonl").write_text("{}\n" + (good / "metrics.jsonl").read_text())
    text = (good / "metrics.jsonl").read_text()
    (odd / "metrics.jsonl").write_text(text.replace('"loss": ', '"loss": "x", "was": ', 1))
    bad = tmp_path / "study"
    write_run(bad / "a" / "1")
    (bad / "results.json").write_text('{"arms": 3}')
    cases = {
        (tmp_path / "none",): (3, "none: no such folder; wanted a run"),
        (empty,): (3, "empty: no run there (no metrics.jsonl in it"),
        (begun,): (3, "begun: nothing was measured there yet; wait for the first line"),
        (tmp_path / "recipe.yaml",): (2, "recipe.yaml: not a study (no `arms`)"),
        (damaged,): (3, "damaged/metrics.jsonl:1: not a line of metrics"),
        (odd,): (3, "odd/metrics.jsonl: damaged: loss at step 1 should be a number, got 'x'"),
        (bad,): (3, "results.json: cannot be read: arms: "),
        (good, "--out", tmp_path / "none" / "r.html"): (1, "r.html: cannot be written: No such"),
        (good, "--out", tmp_path / "none" / "r.png"): (1, "r.png: cannot be written: No such"),
    }
    for words, (code, said) in cases.items():
        ended, out, err = command("report", *words)
        assert (ended, out) == (code, ""), err
        assert said in err
        assert "not an error that rewarm expects" not in err


def test_a_run_that_is_behind_is_in_the_curves_and_not_in_the_means(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / "s" / "a" / str(seed), seed=seed)
    path = tmp_path / "s" / "a" / "3" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:15]))
    found = collect_runs([tmp_path / "s"])
    assert len(found.records) == 3
    assert found.results.seeds("a") == [1, 2]
    [row] = final_losses_table(found).rows
    assert row[1].text == "2 of 3"


def test_arms_of_other_lengths_and_corpora_are_not_set_against_each_other(tmp_path):
    german = {"data": {"context": 128, "train": {"german": {"shards": "data/german"}}}}
    for arm, points, settings in (
        ("a", 30, {}),
        ("b", 30, {}),
        ("short", 20, {}),
        ("g", 30, german),
    ):
        run = write_run(tmp_path / "s" / arm / "1", points, seed=1, settings=settings)
        text = (run / "metrics.jsonl").read_text()
        more = text.replace('"downstream/loss"', '"german/loss": 9.0, "downstream/loss"')
        (run / "metrics.jsonl").write_text(more)
    found = collect_runs([tmp_path / "s"])
    versus = {row[0].text: row[3].text for row in validation_set_table(found, "upstream").rows}
    assert versus == {"a": "", "b": "+0.0000", "g": "+0.0000", "short": ""}
    assert [*final_losses(found, ("upstream", "downstream"))] == ["a", "b", "short"]
    assert [*final_losses(found, ("upstream", "german"))] == ["g"]
    assert "german adaptation" in final_losses_table(found).columns
