#!/usr/bin/env bash
# Everything that needs a GPU, in stages of less than ten minutes each, without a network. Every
# stage writes its results to $OUT (by default build/gpu/STAGE).
#
#   bash benchmarks/gpu.sh wheels    on a machine with a network: packages that the GPU's lacks, into .whl/
#   bash benchmarks/gpu.sh tests     pytest -m gpu, and how long a save stops training
#   bash benchmarks/gpu.sh 410m      a step of rewarm and its peers, by kernel family, first steps, overheads
#   bash benchmarks/gpu.sh sizes     70m, 160m, 1b and 1.4b compared with litgpt
#   bash benchmarks/gpu.sh widths    the best microbatch of each size
#   bash benchmarks/gpu.sh kernels   410m deterministic, with plain kernels, in every precision
#   bash benchmarks/gpu.sh attention 410m with each attention backend
#   bash benchmarks/gpu.sh fp8       410m in fp8, peers in bf16, by kernel family
#   bash benchmarks/gpu.sh losses    1,000 steps of 70m in every precision; repeat to resume
#   bash benchmarks/gpu.sh study     the study gpu-mini (text in .data/, see mini_study.sh); repeat to resume
#   bash benchmarks/gpu.sh memory    410m and 1.4b with memory: fast and lean
#   bash benchmarks/gpu.sh all       all of these except the study, in order: an hour
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT=${OUT:-build/gpu/${1-}}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
failed=0

# rewarm is imported from the checkout; its wheel is installed for its metadata: version and entry
# points of the schedules.
with_wheels() {
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  if compgen -G '.whl/*.whl' >/dev/null; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
      --target "$site" .whl/*.whl || exit
  fi
  export PYTHONPATH=$PWD:$site
}

run() { # run NAME SECONDS COMMAND...: writes a log; a failure does not stop the next command
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  echo "── $name: $*"
  timeout -s "${SIGNAL:-TERM}" "$seconds" "$@" 2>&1 | tee "$OUT/$name.txt"
  local status=${PIPESTATUS[0]}
  ((status == 0)) || failed=1
  echo "── $name: exit code $status after $((SECONDS - started)) s"
}

step() { # step NAME SECONDS OPTIONS...: the table, and all results as JSON
  local name=$1 seconds=$2
  shift 2
  run "$name" "$seconds" python3 benchmarks/training_step.py "$@" --json "$OUT/$name.json"
}

merge_logs() { # a machine may return few files only
  cat "$OUT"/*.txt >"$OUT/tables" && rm "$OUT"/*.txt
}

case ${1-} in
  tests | 410m | sizes | widths | kernels | attention | fp8 | losses | study | memory)
    mkdir -p "$OUT"
    with_wheels
    ;;
esac

case ${1-} in
  wheels)
    version() { python3 -c "import importlib.metadata as m; print('$1==' + m.version('$1'))"; }
    rm -rf .whl
    python3 -m pip wheel --quiet --no-deps --wheel-dir .whl . plugins/rewarm-{infinite,wsd} || exit
    names=(pydantic pydantic_core annotated-types typing-inspection webdataset braceexpand)
    requirements=(litgpt)
    for name in "${names[@]}" zstandard jsonschema jsonschema-specifications referencing rpds-py; do
      requirements+=("$(version "$name")")
    done
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .whl \
      --python-version "${PYTHON_THERE:-3.12}" --implementation cp --platform manylinux_2_28_x86_64 \
      --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "${requirements[@]}" || exit
    ls -l .whl
    ;;
  tests)
    # An interrupted pytest still reports failures.
    pytest=(python3 -m pytest -m gpu -p no:cacheprovider)
    SIGNAL=INT run tests 300 "${pytest[@]}" --ignore tests/estimates/test_memory.py
    SIGNAL=INT run memory 170 "${pytest[@]}" tests/estimates/test_memory.py
    run saves 100 python3 benchmarks/save_stall.py
    ;;
  410m)
    step 410m 570 --model pythia-410m --microbatch 16 --profile
    ;;
  sizes)
    for size in 70m:32:110 160m:32:125 1b:8:155 1.4b:8:185; do
      IFS=: read -r name microbatch seconds <<<"$size"
      step "$name" "$seconds" --model "pythia-$name" --microbatch "$microbatch" \
        --peers litgpt --no-first-step --no-overheads --steps 10
    done
    ;;
  widths)
    for size in 70m:64 160m:64 410m:8 410m:32 1b:16 1b:24 1.4b:16; do
      IFS=: read -r name microbatch <<<"$size"
      step "$name-$microbatch" 82 --model "pythia-$name" --microbatch "$microbatch" \
        --peers '' --no-first-step --no-overheads --steps 10
    done
    merge_logs
    ;;
  kernels)
    step deterministic 80 --deterministic --peers '' --no-first-step --no-overheads
    step plain 140 --kernels plain --peers '' --profile --no-first-step --no-overheads
    for precision in $(python3 -c '
from typing import get_args
from rewarm.recipe.recipe import Recipe
print(*get_args(Recipe.model_fields["precision"].annotation))'); do
      step "$precision" 85 --precision "$precision" --peers '' --no-first-step --no-overheads
    done
    merge_logs
    ;;
  attention)
    step attention 570 --model pythia-410m --microbatch 16 --profile --no-first-step \
      --no-overheads --peers 'rewarm cuDNN,rewarm flash,rewarm efficient'
    ;;
  fp8)
    step fp8 400 --precision fp8 --model pythia-410m --microbatch 16 --profile --peers litgpt \
      --no-first-step
    step fp8-32 100 --precision fp8 --model pythia-410m --microbatch 32 --peers '' \
      --no-first-step --no-overheads
    merge_logs
    ;;
  losses)
    run losses 570 python3 benchmarks/loss_by_precision.py "${LOSSES:-build/losses}" --microbatch 64
    cp "${LOSSES:-build/losses}"/precision.* "$OUT"
    ;;
  study)
    export DATA=${DATA:-.data} WORKERS=${WORKERS:-3}
    run study 570 bash benchmarks/mini_study.sh gpu
    ;;
  memory)
    for size in 410m:16:fast 410m:16:lean 410m:64:lean 1.4b:8:fast 1.4b:8:lean; do
      IFS=: read -r name microbatch memory <<<"$size"
      step "$name-$microbatch-$memory" 115 --model "pythia-$name" --microbatch "$microbatch" \
        --memory "$memory" --peers '' --profile --no-first-step --no-overheads --steps 10
    done
    merge_logs
    ;;
  all)
    for stage in tests 410m attention fp8 kernels losses memory sizes widths; do
      OUT=$OUT/$stage bash benchmarks/gpu.sh "$stage" || failed=1
    done
    ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
exit "$failed"
