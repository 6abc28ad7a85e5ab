"""The whole story on this machine, in minutes: real text, a base, three ways to continue it.

The text is the running Python's own standard library. Upstream is its English: the language
reference and the docstrings. Downstream is its source code, without those docstrings.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.data.shard_format import read_shard_index
from rewarm.data.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError
from rewarm.plots.loss_figure import save_losses
from rewarm.recipe.recipe import Recipe, load_recipe
from rewarm.runs.metrics_file import read_metrics

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
ARMS = ("rewarm", "no-warmup", "constant")

_BASE = """\
# Pre-train a small model on the English of Python's standard library: the base to continue from.
# It warms up from 0 and decays to a tenth of its peak, as Pythia did.
run: {out}/runs/base
seed: 1
tokens: 819_200
model:
  architecture: {{layers: 4, hidden: 96, heads: 4, vocabulary: 4096, positions: 128}}
data:
  context: 128
  train:
    upstream: {{shards: {out}/shards/upstream/train}}
  validation:
    upstream:   {{shards: {out}/shards/upstream/val, tokens: 25k}}
    downstream: {{shards: {out}/shards/downstream/val, tokens: 25k}}
batch: {{tokens: 2048, microbatch: 16}}
schedule: {{name: rewarm, start_lr: 0, peak_lr: 2e-3, min_lr: 2e-4, warmup: 5%, decay: cosine}}
precision: fp32
every: {{log: 20, evaluate: 100, save: 100}}
"""

_ARM = """\
# Continue the base on source code: {said}
run: {out}/runs/{name}
seed: 2
tokens: 245_760
model: {{base: {out}/runs/base}}      # a run stands for its last checkpoint
data:
  context: 128
  train:
    downstream: {{shards: {out}/shards/downstream/train}}
    # To replay 5 % of the old text, give downstream "weight: 95%" and take the next line in:
    # upstream: {{shards: {out}/shards/upstream/train, weight: 5%}}
  validation:
    upstream:   {{shards: {out}/shards/upstream/val, tokens: 25k}}
    downstream: {{shards: {out}/shards/downstream/val, tokens: 25k}}
batch: {{tokens: 2048, microbatch: 16}}
schedule: {schedule}
precision: fp32
every: {{log: 10, evaluate: 20, save: 60}}
"""

_SCHEDULES = {
    "rewarm": (
        "raise the rate to the old peak, then decay again.",
        "{name: rewarm, start_lr: 2e-4, peak_lr: 2e-3, min_lr: 2e-4, warmup: 10%, decay: cosine}",
    ),
    "no-warmup": (
        "jump to the old peak at once, then decay again.",
        "{name: no-warmup, peak_lr: 2e-3, min_lr: 2e-4, decay: cosine}",
    ),
    "constant": ("stay at the rate where the base ended.", "{name: constant, lr: 2e-4}"),
}


def run_quickstart(out: Path) -> None:
    """Runs the whole story under `out`, skipping what an earlier start completed.

    Raises:
        RewarmError: what any of the steps raises.
    """
    console = Console(highlight=False, soft_wrap=True)
    say = console.print
    say(f"[bold]1. Text[/]  Python {sys.version.split()[0]}'s standard library → {out}/text")
    texts = _write_texts(out / "text")
    say(f"[bold]2. Shards[/]  a BPE of {VOCABULARY:,} entries, token shards → {out}/shards")
    file = _train_tokenizer(out / "tokenizer.json", texts)
    for name, path in texts.items():
        _shard(name, path, out / "shards" / name, file, console)
    files = _write_recipes(out)
    say(f"[bold]3. Base[/]  pre-trained on upstream: {files['base']}")
    _train(load_recipe(files["base"]), console)
    runs: dict[str, Path] = {}
    for arm in ARMS:
        say(f"[bold]4. Continue[/]  on downstream, {arm}: {files[arm]}")
        checked = load_recipe(files[arm])
        _train(checked, console)
        runs[arm] = Path(checked.run)
    picture = out / "curves.png"
    save_losses({arm: [run] for arm, run in runs.items()}, picture)
    say("")
    say(_table(runs))
    say("loss      nats per token; forgetting is its rise upstream, adaptation its fall downstream")
    say(_same_batches(runs))
    say(f"picture   {picture}\n")
    say(_next_steps(out), markup=False)


def _write_texts(folder: Path) -> dict[str, Path]:
    """Writes upstream.jsonl and downstream.jsonl, unless they are there."""
    paths = {name: folder / f"{name}.jsonl" for name in ("upstream", "downstream")}
    if all(path.exists() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    english, code = _standard_library()
    for path, documents in zip(paths.values(), (english, code), strict=True):
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
        partial.rename(path)
    return paths


def _standard_library() -> tuple[list[str], list[str]]:
    """Returns the English and the code of the standard library, as documents."""
    root = Path(sysconfig.get_path("stdlib"))
    english = [text for text in _topics() if len(text) > 200]
    code = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0] in ("site-packages", "pydoc_data") or "test" in parts or "tests" in parts:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, OSError):
            continue  # lib2to3 and others keep broken files on purpose
        told, bare = _split(source, tree)
        english += [told] if len(told) > 200 else []
        code += [bare] if len(bare) > 200 else []
    if not (english and code):
        raise DataError(f"{root}: this Python comes without its standard library's text")
    return english, code


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the language reference out
        return
    yield from topics.values()


def _split(source: str, tree: ast.Module) -> tuple[str, str]:
    """Returns the docstrings of a file, and the file without them."""
    told, lines = [], source.splitlines(keepends=True)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            told.append(text)
            quoted = node.body[0]
            for line in range(quoted.lineno - 1, quoted.end_lineno or quoted.lineno):
                lines[line] = ""
    return "\n\n".join(told), "".join(lines)


def _train_tokenizer(file: Path, texts: dict[str, Path]) -> Path:
    """Trains a byte-level BPE on both texts, as much of one as of the other."""
    if file.exists():
        return file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    documents = {name: _documents(path) for name, path in texts.items()}
    size = min(sum(map(len, one)) for one in documents.values())
    sample: list[str] = []
    for one in documents.values():
        left = size
        for text in one:
            if left <= 0:
                break
            sample.append(text)
            left -= len(text)
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(sample, trainer)
    encoder.save(str(file))
    return file


def _documents(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _shard(name: str, text: Path, folder: Path, file: Path, console: Console) -> None:
    if not folder.exists():
        write_shards([text], folder, load_tokenizer(str(file)), validation=0.05)
    counts = {part: read_shard_index(folder / part).tokens for part in ("train", "val")}
    console.print(f"   {name:<10} {counts['train']:,} tokens, {counts['val']:,} held out")


def _write_recipes(out: Path) -> dict[str, Path]:
    folder = out / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    written = {"base": _BASE.format(out=out)}
    for name, (said, schedule) in _SCHEDULES.items():
        written[name] = _ARM.format(out=out, name=name, said=said, schedule=schedule)
    paths = {name: folder / f"{name}.yaml" for name in written}
    for name, path in paths.items():
        if not path.exists():  # whoever edited one wants it kept
            path.write_text(written[name], encoding="utf-8")
    return paths


def _train(checked: Recipe, console: Console) -> None:
    last = last_checkpoint(Path(checked.run))
    if last is not None and last.name == f"step-{checked.steps:08d}":
        console.print(f"   complete: {last}")
        return
    from rewarm.training.loop import train

    train(checked, resume=True)


def _evaluations(run: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "evaluate"]


def _table(runs: dict[str, Path]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("arm")
    for name in ("upstream loss", "forgetting", "downstream loss", "adaptation"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, run in runs.items():
        first, *_, last = _evaluations(run)
        row = [arm]
        for name, sign in (("upstream", 1), ("downstream", -1)):
            before, after = first[f"{name}/loss"], last[f"{name}/loss"]
            row += [f"{before:.3f} → {after:.3f}", f"{sign * (after - before):+.3f}"]
        table.add_row(*row)
    return table


def _same_batches(runs: dict[str, Path]) -> str:
    """Returns a line that says whether all arms really saw the same tokens."""
    digests = {
        [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"][-1][
            "stream"
        ]
        for run in runs.values()
    }
    if len(digests) == 1:
        return f"batches   the same tokens for every arm (stream digest {digests.pop()[:12]})"
    return "batches   [bold]not[/] the same for every arm: a recipe was edited?"


def _next_steps(out: Path) -> str:
    return f"""\
Next, try
  rewarm check {out}/recipes/rewarm.yaml
  rewarm plot-schedule {out}/recipes/rewarm.yaml {out}/recipes/constant.yaml
  rewarm train {out}/recipes/rewarm.yaml --set run={out}/runs/half --set schedule.peak_lr=1e-3
  rewarm eval {out}/runs/base {out}/runs/rewarm --data upstream={out}/shards/upstream/val"""
