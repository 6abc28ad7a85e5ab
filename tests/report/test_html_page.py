"""The page: what real runs show on it, and what untrusted files cannot do to it."""

import json

from parsed_page import ParsedPage
from written_runs import HOSTILE, write_run

from rewarm.recipe.recipe import load_recipe
from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_page import html_page
from rewarm.training.loop import train


def test_page_of_a_trained_run(recipe_text, tmp_path, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text.replace("tokens: 20480", "tokens: 4096"))
    train(load_recipe(path))
    out = tmp_path / "r.html"
    code, printed, _ = command("report", tmp_path / "run", "--out", out)
    assert (code, printed.splitlines()[-1]) == (0, f"{out}: 1 arm, 1 run")
    page = ParsedPage(out.read_text())
    text = " ".join(" ".join(page.texts).split())
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['upstream/loss']:.4f}" in text
    assert "1 arm, 1 run; complete; 4,096 tokens each." in text
    assert "The learning rate was measured on the weights at" in text
    assert "torch" in text
    assert "threads" in text
    assert "new weights" not in text
    assert "step 4 4,096 tokens lr 0.009397 → 0.001 schedule rewarm 0.1.0" in text
    [arm] = page.chart_data["arms"]
    assert arm["name"] == "run"


def test_nine_arms_of_ten_thousand_points_take_less_than_two_megabytes(tmp_path, command):
    for arm in range(9):
        write_run(tmp_path / "runs" / f"arm-{arm}", 10_000, peak=(arm + 1) * 1e-4, every=100)
    out = tmp_path / "r.html"
    assert command("report", tmp_path / "runs", "--out", out)[0] == 0
    assert out.stat().st_size < 2_000_000
    assert len(ParsedPage(out.read_text()).chart_data["arms"]) == 9


def test_untrusted_text_never_becomes_markup(tmp_path, command):
    settings = {"note": HOSTILE, HOSTILE: "<b>&amp;"}
    run = write_run(tmp_path / HOSTILE.replace("/", "∕"), settings=settings)
    text = (run / "metrics.jsonl").read_text()
    hostile_key = json.dumps(f"{HOSTILE}/loss")[1:-1]
    (run / "metrics.jsonl").write_text(text.replace("upstream/loss", hostile_key))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": HOSTILE, "step": 30, "what": HOSTILE}) + "\n")
    start = {"kind": "start", "time": HOSTILE, "environment": {HOSTILE: HOSTILE}}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    results = {
        "arms": {HOSTILE: {}},
        "claims": {HOSTILE: {"claim": HOSTILE, "verdict": HOSTILE, "why": HOSTILE}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    out = tmp_path / "r.html"
    assert command("report", tmp_path, "--out", out)[0] == 0
    page = ParsedPage(out.read_text())
    assert "b" not in {tag for tag, _ in page.elements}
    images = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    assert not [name for _, known in page.elements for name in known if name.startswith("on")]
    assert "".join(page.texts).count("onerror=alert(1)>") > 10
    assert page.chart_data["arms"][0]["name"] == run.name
    assert [tag for tag, _ in page.elements].count("script") == 3
    [policy] = [known["content"] for _, known in page.elements if known.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_page_needs_no_network(tmp_path):
    text = html_page(collect_runs([write_run(tmp_path / "a")]))
    for _, attributes in ParsedPage(text).elements:
        assert not attributes.keys() & {"srcset", "action", "style"}
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in text
    assert "url(" not in text
    assert "MIT License" in text


def test_the_same_runs_give_the_same_page(tmp_path):
    run = write_run(tmp_path / "a")
    assert html_page(collect_runs([run])) == html_page(collect_runs([run]))
