"""`rewarm report`: its formats, and the paths that it refuses."""

import pytest
from written_runs import write_run


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figures_are_reproducible(tmp_path, command, form):
    for seed in (1, 2):
        write_run(tmp_path / "s" / "a" / str(seed), seed=seed)
    write_run(tmp_path / "s" / "$x$" / "1", seed=1)
    out = tmp_path / f"r.{form}"
    assert command("report", tmp_path / "s", "--out", out)[0] == 0
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG" if form == "png" else b"<?xml")
    if form == "svg":
        again = tmp_path / "again.svg"
        assert command("report", tmp_path / "s", "--out", again)[0] == 0
        assert again.read_bytes() == content


def test_the_format_is_that_of_the_option_or_of_the_file(tmp_path, command, monkeypatch):
    run = write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert command("report", run) == (0, "report.html: 1 arm, 1 run\n", "")
    assert command("report", run, "--format", "md") == (0, "report.md: 1 arm, 1 run\n", "")
    assert command("report", run, "--format", "csv", "--out", "x") == (0, "x: 1 arm, 1 run\n", "")
    code, _, err = command("report", run, "--out", "x.jpg")
    assert code == 2
    assert "--out x.jpg: not a format of reports (html, md and csv" in " ".join(err.split())


def test_a_report_in_a_new_folder(tmp_path, command):
    run = write_run(tmp_path / "run")
    folder = tmp_path / "new"
    for options, path in (
        ((f"{folder}/a/",), folder / "a" / "report.html"),
        ((folder / "a", "--format", "pdf"), folder / "a" / "report.pdf"),
        ((folder / "b" / "r.pdf",), folder / "b" / "r.pdf"),
    ):
        code, out, err = command("report", run, "--out", *options)
        assert (code, out) == (0, f"{path}: 1 arm, 1 run\n"), err
        assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"<!DOCTYPE html")


def test_unusable_paths_are_refused(tmp_path, command):
    empty = tmp_path / "empty"
    empty.mkdir()
    unmeasured = tmp_path / "unmeasured"
    unmeasured.mkdir()
    (unmeasured / "metrics.jsonl").touch()
    good = write_run(tmp_path / "good")
    (tmp_path / "recipe.yaml").write_text("tokens: 1\n")
    damaged, wrong_type = write_run(tmp_path / "damaged"), write_run(tmp_path / "wrong-type")
    (damaged / "metrics.jsonl").write_text("{}\n" + (good / "metrics.jsonl").read_text())
    text = (good / "metrics.jsonl").read_text()
    (wrong_type / "metrics.jsonl").write_text(text.replace('"loss": ', '"loss": "x", "was": ', 1))
    study = tmp_path / "study"
    write_run(study / "a" / "1")
    (study / "results.json").write_text('{"arms": 3}')
    cases = {
        (tmp_path / "none",): (3, "none: no such folder; expected a run"),
        (empty,): (3, "empty: no run found (no metrics.jsonl in it"),
        (unmeasured,): (3, "unmeasured: no metrics yet; wait for the first line"),
        (tmp_path / "recipe.yaml",): (2, "recipe.yaml: not a study (no `arms`)"),
        (damaged,): (3, "damaged/metrics.jsonl:1: not a line of metrics: should be an object"),
        (wrong_type,): (
            3,
            "metrics.jsonl:2: not a line of metrics: loss should be a number, got 'x'",
        ),
        (study,): (3, "results.json: cannot be read: arms: "),
        (good, "--out", good / "recipe.yaml" / "r.html"): (1, "r.html: cannot be written: "),
        (good, "--out", good / "recipe.yaml" / "r.png"): (1, "r.png: cannot be written: "),
    }
    for arguments, (code, message) in cases.items():
        ended, out, err = command("report", *arguments)
        assert (ended, out) == (code, ""), err
        assert message in err
        assert "not an error that rewarm expects" not in err
