"""Two `rewarm shard` commands at once on one `--out`, and kills between: nothing is ever corrupt.

    python benchmarks/two_shard_commands.py [--tries 20] [--documents 2000]

In each try, two processes start at the same time, or up to a second apart; in every third try one
is killed on the way. One has to write the shards, the other has to be refused with exit code 3 and
a message that says why; after a kill, a third command finishes. What is written has to be, byte by
byte, what one command alone writes, and nothing may be left beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REFUSALS = ("another `rewarm shard` is writing it", "not empty; name another folder")


def write_text(path: Path, documents: int, draw: random.Random) -> None:
    """Writes a text of random words."""
    words = ["the", "rate", "of", "a", "run", "is", "raised", "and", "decays", "again"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            text = " ".join(draw.choices(words, k=draw.randint(3, 200)))
            file.write(json.dumps({"text": text}) + "\n")


def write_tokenizer(path: Path) -> None:
    """Writes a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    encoder = Tokenizer(models.BPE(vocabulary, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.save(str(path))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(command: list[str]) -> subprocess.Popen[str]:
    """Starts a command."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def one_try(
    command: list[str], out: Path, expected: dict[str, bytes], seconds: float, kill: bool
) -> str:
    """Runs two commands at once; returns what happened.

    Raises:
        SystemExit: something is corrupt, or an error is not one of those that are expected.
    """
    first = start(command)
    time.sleep(seconds)
    second = start(command)
    if kill:
        time.sleep(1.0)
        first.kill()
    results = [process.communicate()[1] for process in (first, second)]
    codes = [first.returncode, second.returncode]
    for code, error in zip(codes, results, strict=True):
        refused = code == 3 and any(text in error for text in REFUSALS)
        if not (code in (0, -9) or refused):
            raise SystemExit(f"unexpected: exit code {code}: {error}")
    if codes.count(0) > 1:
        raise SystemExit("both commands claim to have written the folder")
    if not out.exists():
        if -9 not in codes:
            raise SystemExit(f"no command wrote the folder: {results}")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if contents(out) != expected:
        raise SystemExit(f"{out} differs from what one command alone writes")
    if list(out.parent.glob("out.*")):
        raise SystemExit(f"left over: {list(out.parent.glob('out.*'))}")
    return f"exit codes {codes[0]}, {codes[1]}"


def main() -> None:
    """Runs all tries, and prints how often each outcome came."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--documents", type=int, default=2000)
    options = parser.parse_args()
    draw = random.Random(0)
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_text(work / "text.jsonl", options.documents, draw)
        write_tokenizer(work / "tokenizer.json")
        command = [
            *(sys.executable, "-m", "rewarm", "shard", str(work / "text.jsonl")),
            *("--tokenizer", str(work / "tokenizer.json"), "--validation", "10%"),
            *("--shard-size", "20k", "--out"),
        ]
        subprocess.run([*command, str(work / "alone")], check=True, stdout=subprocess.DEVNULL)
        expected = contents(work / "alone")
        for number in range(options.tries):
            out = work / "out"
            seconds = draw.choice([0.0, 0.0, draw.random()])
            outcomes[
                one_try([*command, str(out)], out, expected, seconds, kill=number % 3 == 2)
            ] += 1
            shutil.rmtree(out)
    for outcome, count in outcomes.most_common():
        print(f"{count:3} × {outcome}")
    print(f"{options.tries} tries: what was written was always that of one command alone")


if __name__ == "__main__":
    main()
