#!/usr/bin/env bash
# Runs a shipped study on real text: tokenizer, shards, every arm with every seed, the report.
# Repeat the command to resume where it stopped; complete parts are not repeated.
#
#   bash benchmarks/mini_study.sh cpu            two cores, about half an hour per seed
#   bash benchmarks/mini_study.sh gpu            one GPU
#   bash benchmarks/mini_study.sh gpu small      the same with a few steps per arm, in fp32, as a test
#
# DATA: a folder with {english-docs,english-other,german}.jsonl.zst and, for gpu, 20B_tokenizer.json.
# WORK: the folder of shards and runs (build/mini-cpu). WORKERS: runs at once. OUT: the folder of the
# report and results.json.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
size=${1:?cpu or gpu} scale=${2-}
DATA=$(cd "${DATA:-$here/../../shared/data}" && pwd)
WORK=${WORK:-$here/../build/mini-$size${scale:+-$scale}}
WORKERS=${WORKERS:-2}
OUT=${OUT:-$WORK/out}
mkdir -p "$WORK" "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$WORK"
export PYTHONPATH=$here/..:$PWD/plugins${PYTHONPATH:+:$PYTHONPATH} # the checkout's own rewarm

rewarm() { python3 -m rewarm "$@"; }

for schedule in infinite wsd; do
  rewarm schedules "$schedule" >/dev/null 2>&1 || python3 -m pip install --quiet --no-deps \
    --no-build-isolation --target plugins "$here/../plugins/rewarm-$schedule"
done

if [[ $size == cpu && ! -e tokenizer.json ]]; then # a small vocabulary, trained equally on all three texts
  python3 - "$DATA" <<'PYTHON'
import io, json, sys
from pathlib import Path

import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def texts(path, left=5_000_000):
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), "utf-8"):
            text = json.loads(line)["text"]
            left -= len(text)
            if left < 0:
                return
            yield text


names = ("english-docs", "english-other", "german")
encoder = Tokenizer(models.BPE())
encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
encoder.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=4096,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
paths = (Path(sys.argv[1], f"{name}.jsonl.zst") for name in names)
encoder.train_from_iterator((text for path in paths for text in texts(path)), trainer)
encoder.save("tokenizer.json")
PYTHON
elif [[ ! -e tokenizer.json ]]; then
  cp "$DATA/20B_tokenizer.json" tokenizer.json
fi
for pair in english-docs:upstream english-other:downstream german:german; do
  IFS=: read -r file corpus <<<"$pair"
  [[ -e data/mini/$corpus/val/index.json ]] || rewarm shard "$DATA/$file.jsonl.zst" \
    --out "data/mini/$corpus" --tokenizer tokenizer.json --validation 2% --shard-size 1M
done
if [[ ! -e $size-mini.yaml ]]; then
  rewarm new "$size-mini"
  if [[ $scale == small ]]; then
    sed -i -E 's/^tokens: .*/tokens: 8192/; s/tokens: 100k/tokens: 2k/; s/bf16/fp32/
      s/tokens: 32_768, microbatch: 64/tokens: 1024, microbatch: 2/; s/^(every: .*)save: [0-9]+/\1save: 3/
      s/evaluate: [0-9]+/evaluate: 2/; s/upstream@[0-9]+/upstream@3/; s/start-300/start-3/
      s/seeds: .*/seeds: [17]/' "$size"-mini*.yaml
  fi
fi
status=0
rewarm compare "$size-mini.yaml" --workers "$WORKERS" >"$OUT/table.txt" || status=$?
cat "$OUT/table.txt"
cp "runs/$size-mini/results.json" "$OUT/"
rewarm report "runs/$size-mini" --out "$OUT/report.html"
exit "$status"
