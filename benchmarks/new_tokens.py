"""Compares a base model's own tokenizer with one that has new entries for another language.

    rewarm quickstart
    python benchmarks/new_tokens.py rewarm-quickstart GERMAN.jsonl

The new tokenizer adds the merges of a BPE of 2,000 entries, trained on the text, to the base's. The
base is continued with each on 245,760 tokens. Prints loss and bits per byte before and after; these
compare between tokenizers, and losses do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

RECIPE = """\
run: {run}
seed: 2
tokens: 245_760
model: {{base: {base}{tokenizer}}}
data:
  context: 128
  train: {{downstream: {{shards: {shards}/train}}}}
  validation: {{downstream: {{shards: {shards}/val, tokens: 25k}}}}
batch: {{tokens: 2048, microbatch: 16}}
schedule: {{name: rewarm, peak_lr: 2e-3, min_lr: 2e-4, warmup: 5%}}
precision: fp32
every: {{log: 20, evaluate: 40, save: null}}
"""


def with_new_entries(base: Path, texts: list[str]) -> str:
    """Returns tokenizer.json of a BPE with the base's entries, under their ids, and new ones."""
    document = json.loads(base.read_text())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Tokenizer.from_file(str(base)).pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    entries, merges = document["model"]["vocab"], document["model"]["merges"]
    next_id = max([*entries.values(), *(token["id"] for token in document["added_tokens"])]) + 1
    for left, right in json.loads(trained.to_str())["model"]["merges"]:
        if left in entries and right in entries and left + right not in entries:
            entries[left + right] = next_id
            merges.append([left, right])
            next_id += 1
    return json.dumps(document, ensure_ascii=False)


def main() -> None:
    """Writes tokenizer and shards, trains with both, and prints a table in Markdown."""
    quickstart, text = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    base = sorted((quickstart / "runs" / "base" / "checkpoints").glob("step-*"))[-1]
    with tempfile.TemporaryDirectory() as temporary, text.open() as lines:
        folder = Path(temporary)
        texts = [
            json.loads(line)["text"][:4000] for line, _ in zip(lines, range(400), strict=False)
        ]
        (folder / "text.jsonl").write_text("".join(f"{json.dumps({'text': t})}\n" for t in texts))
        (folder / "new-tokens").mkdir()
        tokenizer = folder / "new-tokens" / "tokenizer.json"
        tokenizer.write_text(with_new_entries(base / "tokenizer.json", texts))
        print("| tokenizer | loss | bits per byte |\n|---|---|---|")
        for name, source in (("the base's", base), ("with new entries", tokenizer.parent)):
            shards, run = folder / f"shards of {name}", folder / f"run of {name}"
            command = ["rewarm", "shard", folder / "text.jsonl", "--out", shards]
            options = ["--tokenizer", source, "--validation", "5%"]
            subprocess.run([*command, *options], check=True, capture_output=True)
            recipe = folder / "recipe.yaml"
            setting = "" if source == base else f", tokenizer: {source}"
            recipe.write_text(RECIPE.format(run=run, base=base, tokenizer=setting, shards=shards))
            subprocess.run(["rewarm", "train", recipe], check=True, capture_output=True)
            metrics = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            evaluations = [line for line in metrics if line["kind"] == "evaluate"]
            cells = [
                f"{evaluations[0][key]:.3f} → {evaluations[-1][key]:.3f}"
                for key in ("downstream/loss", "downstream/bits_per_byte")
            ]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
