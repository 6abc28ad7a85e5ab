#!/usr/bin/env bash
# Runs the law study: text, a base, four probe arms per shift; the law's predictions of fourteen
# further arms per shift, which have to be committed; then these arms, with one seed, then three.
# Repeat the command to resume where it stopped; complete parts are not repeated.
#
#   pip install ./plugins/rewarm-infinite ./plugins/rewarm-wsd
#   bash benchmarks/law_study.sh              # predicts, and stops
#   git add docs/law-study && git commit      # the proof that predictions were first
#   bash benchmarks/law_study.sh              # trains the arms that were predicted
#   python benchmarks/law_study_tables.py --figure docs/law-study.png
#
# ../shared/data has the text: {english-docs,english-other,german}.jsonl.zst. SEEDS: "17" for one.
# Predictions that exist are kept: remove docs/law-study/predictions-*.json to predict anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1
work=build/law-study recipes=benchmarks/law-study

compare() { # SHIFT, probes or tests, SEEDS
  local settings=(--set "study=$work/runs/$1/$2" --set "recipe=$recipes/$1.yaml" --set "seeds=[$3]")
  python -m rewarm compare "$recipes/$2.yaml" "${settings[@]}" >"$work/$1-$2.txt"
}

python benchmarks/law_study.py shards
if [[ ! -e $work/runs/base/checkpoints/step-00004000 ]]; then
  resume=$([[ -e $work/runs/base/metrics.jsonl ]] && echo --resume || true)
  python -m rewarm train "$recipes/base.yaml" $resume
fi
for shift in downstream german; do compare $shift probes 17; done
if ! ls docs/law-study/predictions-*.json >/dev/null 2>&1; then
  python benchmarks/law_study.py predict
fi
python benchmarks/law_study.py committed
for seeds in 17 ${SEEDS-17,18,19}; do
  for shift in downstream german; do compare $shift tests "$seeds"; done
done
python benchmarks/law_study.py curves
