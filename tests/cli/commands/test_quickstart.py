"""The quickstart as a user runs it; then every example of README and docs/ in its folder."""

import json
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
from repository import ROOT
from rewarm_process import RewarmProcess
from shared_folder import shared_folder
from text_corpora import write_sums

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.cli.quickstart_steps import _write_recipes
from rewarm.data.batch_loader import BatchLoader
from rewarm.data.shard_format import read_shard_index
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.runs.resolve_run import resolve

pytestmark = pytest.mark.slow

README = ROOT / "README.md"
PAGES = [
    page
    for page in (README, *sorted((ROOT / "docs").glob("*.md")))
    if "```console" in page.read_text()
    and page.name not in ("plan.md", "paper-study.md")  # tests/cli/commands/test_{plan,check}.py
]

# A sixteenth of the work in the same number of steps; the arms have the layers of their base.
SMALLER = {
    "tokens: 819_200": "tokens: 102_400",
    "tokens: 245_760": "tokens: 30_720",
    "{tokens: 2048, microbatch: 16}": "{tokens: 256, microbatch: 2}",
    "layers: 4": "layers: 2",
    "tokens: 25k": "tokens: 5k",
}


def shell(command, folder):
    words = shlex.split(command)
    assert words[0] == "rewarm", command
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def finished_quickstart(tmp_path_factory):
    """The folder in which `rewarm quickstart` ran, its output, and its seconds.

    It ran with smaller recipes; afterwards they are as the quickstart writes them.
    """

    def run_quickstart(folder):
        recipes = {
            path: path.read_text() for path in _write_recipes(folder / "rewarm-quickstart").values()
        }
        for path in recipes:
            steps = load_recipe(path).steps
            for text, smaller in SMALLER.items():
                path.write_text(path.read_text().replace(text, smaller))
            assert load_recipe(path).steps == steps
            assert load_recipe(path).batch.tokens == 256
        started = time.monotonic()
        completed = shell("rewarm quickstart", folder)
        assert completed.returncode == 0, completed.stderr
        seconds = time.monotonic() - started
        for path, recipe in recipes.items():
            path.write_text(recipe)
        (folder / "result.json").write_text(json.dumps([completed.stdout, seconds]))

    folder = shared_folder(tmp_path_factory, "quickstart", run_quickstart)
    return folder, *json.loads((folder / "result.json").read_text())


def test_the_table_has_adaptation_and_forgetting_of_every_arm(finished_quickstart):
    folder, output, _ = finished_quickstart
    for arm in ("rewarm", "no-warmup", "constant"):
        run = folder / "rewarm-quickstart" / "runs" / arm
        first, *_, last = [
            line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "evaluate"
        ]
        forgetting = last["upstream/loss"] - first["upstream/loss"]
        adaptation = first["downstream/loss"] - last["downstream/loss"]
        (row,) = [line for line in output.splitlines() if line.startswith(f"{arm} ")]
        assert f"{forgetting:+.3f}" in row
        assert f"{adaptation:+.3f}" in row
        assert adaptation > 0.5  # it learns the new text
    assert "the same tokens for every arm" in output


def test_it_writes_a_picture_recipes_and_checkpoints(finished_quickstart):
    folder = finished_quickstart[0] / "rewarm-quickstart"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("base", "rewarm", "no-warmup", "constant"):
        assert (folder / "recipes" / f"{name}.yaml").is_file()
        assert last_checkpoint(folder / "runs" / name) is not None


def test_a_second_call_takes_seconds_and_prints_the_same(finished_quickstart):
    folder, output, first_seconds = finished_quickstart
    started = time.monotonic()
    second = shell("rewarm quickstart", folder)
    assert second.returncode == 0, second.stderr
    assert time.monotonic() - started < max(20, first_seconds / 8)
    assert second.stdout.splitlines()[-12:] == output.splitlines()[-12:]


def test_the_next_commands_that_it_suggests_run(finished_quickstart, tmp_path):
    folder, output, _ = finished_quickstart
    change_folder, *commands, back = output.partition("Next, try\n")[2].strip().split("\n  ")
    assert [command.split()[1] for command in commands] == [
        "plot-schedule", "check", "train", "eval",
    ]  # fmt: skip
    assert back == "cd .."  # the README's next commands start where the quickstart did
    assert all(len(f"  {command}") <= 80 for command in commands)  # can be copied as one line
    for command in commands:
        shorter = " --set tokens=20480" if " train " in command else ""
        work = folder / change_folder.removeprefix("cd ")
        code, printed = run_example(command + shorter, work, tmp_path)
        assert code == 0, (command, printed)


def examples(page):
    """Yields (command, output) of every command in a page's console blocks."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        yield from re.findall(r"^\$ (rewarm .+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


def run_example(command, folder, work):
    """Returns the exit code and the output of a command, as a terminal would show it."""
    words = shlex.split(command.removeprefix("rewarm "))
    process = RewarmProcess(work, *words, cwd=folder)
    code = process.wait(timeout=300)
    return code, process.errors + process.output


def test_the_readme_shows_the_output_of_the_quickstart(finished_quickstart):
    _, output, _ = finished_quickstart
    expected_output = dict(examples(README))["rewarm quickstart"]
    assert without_digits(output).startswith(without_digits(expected_output))


def test_the_readmes_tokens_and_digest_are_those_of_the_quickstart(finished_quickstart):
    """All numbers of its output that need no training; the losses are stored (test_docs.py)."""
    folder = finished_quickstart[0] / "rewarm-quickstart"
    text = dict(examples(README))["rewarm quickstart"]
    if f"Python {platform.python_version()}'s" not in text:
        pytest.skip("another Python has another standard library")
    for corpus in ("upstream", "downstream"):
        train, validation = (
            read_shard_index(folder / "shards" / corpus / part).tokens for part in ("train", "val")
        )
        assert f"   {corpus:<10} {train:,} tokens, {validation:,} held out\n" in text
    recipe = load_recipe(folder / "recipes" / "rewarm.yaml")
    corpora = list(resolve(recipe).corpora.values())
    loader = BatchLoader(corpora, recipe.corpus_weights, sequences=recipe.sequences_per_step)
    *_, last = islice(loader.batches(), recipe.steps)
    assert f"(stream digest {last.position.digest[:12]})" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_prints_what_its_page_shows(finished_quickstart, tmp_path, reached, page):
    folder = finished_quickstart[0]
    if page.name == "learning-rates.md":  # its plot depends on the tokens of the base
        folder = tmp_path
        recipe = _write_recipes(folder / "rewarm-quickstart")["base"].read_text()
        base = reached("pythia-14m", recipe, step=400, tokens=819_200, lrs=(1e-4, 2e-3, 2e-4))
        (folder / "rewarm-quickstart" / "runs").mkdir()
        base.rename(folder / "rewarm-quickstart" / "runs" / "base")
    for command, expected_output in examples(page):
        if command == "rewarm quickstart":
            continue
        shows_an_error = expected_output.startswith("--set ")
        code, output = run_example(command, folder, tmp_path)
        assert code == (2 if shows_an_error else 0), (command, output)
        assert without_digits(output) == without_digits(expected_output), command


def test_the_shell_commands_of_the_readme_run(finished_quickstart, tmp_path):
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL))
    commands = re.findall(r"^rewarm .*rewarm-quickstart/.*$", blocks, re.MULTILINE)
    commands = [command for command in commands if " shard " not in command]  # see the next test
    assert [command.split()[1] for command in commands] == ["train", "eval"]
    train, evaluate = commands
    assert "stop with Ctrl-C, resume with the same command and `--resume`" in README.read_text()
    folder = finished_quickstart[0]
    process = RewarmProcess(tmp_path, *shlex.split(train)[1:], cwd=folder)
    assert process.wait_for("step 0  evaluated")
    time.sleep(3)  # as a reader would: it has not ended by then
    process.signal(signal.SIGINT)
    assert process.wait() == 130, process.errors
    for command in (f"{train} --resume", evaluate):
        code, output = run_example(command, folder, tmp_path)
        assert code == 0, (command, output)


def test_your_own_text_goes_from_jsonl_to_a_report(finished_quickstart, tmp_path):
    """The README's block as it is, in the folder in which the quickstart ran."""
    folder = finished_quickstart[0]
    section = README.read_text().partition("### Your own text")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    commands = block.splitlines()
    assert [command.split()[1] for command in commands] == [
        "shard", "new", "check", "train", "report",
    ]  # fmt: skip
    write_sums(folder / "text.jsonl", documents=58)
    kilobytes = int(re.search(r"(\d+) kB\nor more", section)[1])
    assert (folder / "text.jsonl").stat().st_size == pytest.approx(1000 * kilobytes, rel=0.1)
    outputs = {}
    for command in commands:
        code, outputs[command.split()[1]] = run_example(command, folder, tmp_path)
        assert code == 0, (command, outputs)
    assert re.search(r"upstream +25k tokens of \S+, upstream \(", outputs["check"])
    assert "<h2>Summary</h2>" in (folder / "report.html").read_text()
    first, *_, last = [
        line
        for line in read_metrics(folder / "runs" / "laptop" / "metrics.jsonl")
        if line["kind"] == "evaluate"
    ]
    assert last["downstream/loss"] < first["downstream/loss"] - 3  # it learns the sums
    assert last["upstream/loss"] < first["upstream/loss"] + 1.5  # and keeps most of the old text


def test_every_block_of_the_tutorial_runs(finished_quickstart, tmp_path):
    """In an empty folder, except that the quickstart is complete: its blocks one after another."""
    (tmp_path / "rewarm-quickstart").symlink_to(finished_quickstart[0] / "rewarm-quickstart")
    page = (ROOT / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    files = iter(re.findall(r"Save this as `(.*?)`", page))
    outputs = {}
    for kind, text in blocks:
        if kind == "yaml":
            (tmp_path / next(files)).write_text(text)
            continue
        lines = {"sh": text.splitlines(), "python": [text]}[kind]  # there are no other kinds
        for line in lines:
            code, outputs[line] = (
                run_example(line, tmp_path, tmp_path)
                if kind == "sh"
                else run_python(line, tmp_path)
            )
            assert code == 0, (line, outputs[line])
    assert next(files, None) is None
    assert "40 steps" in outputs["rewarm check first.yaml"]
    assert "complete: step 40 of 40" in outputs["rewarm train first.yaml --resume"]
    first, replay = (outputs[f"rewarm train {name}.yaml"] for name in ("first", "replay"))
    assert last_change(first, "downstream") < -0.1  # what the text says: it adapts,
    assert 0 < last_change(replay, "upstream") < last_change(first, "upstream")  # and forgets less
    assert last_change(replay, "downstream") < last_change(first, "downstream") / 2
    assert "def __init__(self" in outputs[blocks[-1][1]]


def run_python(code, folder):
    """Returns the exit code and the output of a block of Python."""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stderr + ended.stdout


def last_change(output, name):
    """Returns the change of a loss since before step 1, as the last evaluation prints it."""
    return float(re.findall(rf"{name} [\d.]+ \(([-+][\d.]+)\)", output)[-1])


def without_digits(text):
    """Returns text without its numbers, which depend on the standard library of a Python."""
    text = re.sub(r"(sha256|digest) [0-9a-f]{12}", r"\1 #", text)  # differ by CPU and by Python
    return re.sub(r"[\d.,]+[kMB]?", "#", re.sub(r"[ \t]+", " ", text).replace(" \n", "\n")).strip()
