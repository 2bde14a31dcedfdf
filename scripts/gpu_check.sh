#!/usr/bin/env bash
# What only a GPU can show, run and recorded part by part, without a network. Each part ends within 10 minutes.
#
#   scripts/gpu_check.sh pack DIR               where data and weights are: gathers what must travel beside the checkout
#   scripts/gpu_check.sh list                   the parts, and how far each is
#   scripts/gpu_check.sh run PART...            these parts; one that is done is skipped, one cut short goes on
#   scripts/gpu_check.sh all                    every part that is not done; what failed is told at the end
#
# Options: --out DIR (progress and results of one commit, default build/gpu_check), --pack DIR (from `pack`; default:
# what SEQSPLAT_DATA and SEQSPLAT_WEIGHTS name), --limit SECONDS (of a part, default 570). PYTHON names the interpreter.
# Exit code: 0 done; 1 a part failed; 2 no GPU, or wrong words; 75 a part needs more time: call again.
# shellcheck disable=SC2329  # parts are called by their names
set -euo pipefail
cd "$(dirname "$0")/.."

PARTS=(build gsplat gpu-tests suite-native suite-training suite-rest agreement memcheck racecheck rasterizer determinism
  knn vsr vsr-others priors lego100 hr25 report)
GSPLAT=1.5.3
RESUMABLE=" determinism lego100 hr25 " # they go on where they were cut short
UNFINISHED=75
ATTEMPTS=12
python=${PYTHON:-python3}

die() {
  echo "error: $*" >&2
  exit 2
}

# --- parts: each leaves result.json in $folder; the shell stops a part at its first command that fails ---

part_build() {
  local package
  for package in diff-gaussian-rasterization simple-knn; do
    build_native "$package" ON || {
      echo "$package: this machine's compilers warn of something, see above; built again with warnings left alone"
      build_native "$package" OFF
    }
  done
  "$python" -m benchmarks.device | tee "$folder/result.json"
}

part_gpu_tests() { run_pytest -m gpu tests; }
part_suite_native() { run_pytest -m "$usual" tests/submodules tests/cuda tests/gaussian_renderer; }
part_suite_training() { run_pytest -m "$usual" tests/training tests/trust tests/pipeline; }
part_suite_rest() {
  run_pytest -m "$usual" tests --ignore=tests/submodules --ignore=tests/cuda --ignore=tests/gaussian_renderer \
    --ignore=tests/training --ignore=tests/trust --ignore=tests/pipeline
}
part_agreement() { limited "$python" -m tests.cuda.agreement --device cuda --json "$folder/result.json"; }
part_memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize --tool memcheck --report-api-errors no; }
part_racecheck() { sanitize --tool racecheck; }
part_gsplat() { # compiled by itself when first used, for minutes: here, before tests and benchmarks use it
  if ! "$python" -c 'import gsplat' > /dev/null 2>&1; then
    echo "gsplat is not installed and not in the pack: nothing is compared with it"
    return
  fi
  MAX_JOBS=$(nproc) limited "$python" -c 'from gsplat.cuda._backend import _C; assert _C is not None, "no kernels"'
}
part_rasterizer() { limited "$python" -m benchmarks.rasterizer --device cuda --json "$folder/result.json"; }
part_knn() { limited "$python" -m benchmarks.knn --device cuda --json "$folder/result.json"; }
part_vsr() { limited "$python" -m benchmarks.vsr --device cuda --json "$folder/result.json"; }
part_vsr_others() { # their weights are not carried; values do not change the time
  limited "$python" -m benchmarks.vsr --device cuda --upsampler iconvsr basicvsr_pp psrt --random_weights \
    --json "$folder/result.json"
}
part_priors() {
  if ! "$python" -c 'import diffusers' > /dev/null 2>&1; then
    echo "diffusers is not installed: no prior runs here (requirements-priors.txt)"
    return
  fi
  limited "$python" -m benchmarks.priors --device cuda --size 100x100 200x200 --json "$folder/result.json"
}

part_determinism() {
  local name
  for name in fixed1 fixed2 fast0 fast1 fast2; do
    local flags=(--seed 0 --deterministic)
    [[ $name == fast* ]] && flags=(--seed "${name#fast}")
    limited "$python" train.py -s "$lego/hr_800" -m "$folder/$name" --eval --init_points hull --device cuda \
      --iterations 3000 --test_iterations 3000 --save_iterations 3000 "${flags[@]}"
  done
  "$python" -m benchmarks.gpu_parts determinism "$folder" --json "$folder/result.json"
}

part_lego100() {
  scene "$lego/lr_200" --hr_root "$lego/hr_800" --lr_kernel bicubic --config configs/blender.toml
}
part_hr25() { scene "$lego/hr_800" --eval --steps train render metrics; }

part_report() { # into benchmarks/results/gpu and docs/; the archive is for another checkout's benchmarks.gpu_pages
  "$python" -m benchmarks.gpu_pages "$out"
  cd "$out"
  find . -mindepth 2 -maxdepth 2 \( -name state -o -name log.txt -o -name result.json \) -print0 |
    tar -czf report/results.tar.gz --null -T -
}

# --- what parts share ---

build_native() { # PACKAGE ON|OFF: whether warnings are errors
  limited "$python" -m pip install -q --no-deps --no-build-isolation --no-index --upgrade --target build/native \
    --config-settings=cmake.define.SPLAT_CUDA=ON "--config-settings=cmake.define.SPLAT_WERROR=$2" "./submodules/$1"
}

limited() { # COMMAND...: stopped when the part's time is up, so that it can save what it has
  local left=$((limit - SECONDS))
  if ((left <= 0)); then return "$UNFINISHED"; fi
  local code=0
  timeout --foreground --kill-after=20 "$left" "$@" || code=$?
  if ((code == 124)); then code=$UNFINISHED; fi
  return "$code"
}

usual="not slow and not net and not fuzz"
run_pytest() {
  limited "$python" -m pytest -q "$@" 2>&1 | tee "$folder/tests.log"
  "$python" -m benchmarks.gpu_parts tests "$folder/tests.log" --json "$folder/result.json"
}

sanitize() {
  command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not installed"; return 1; }
  limited compute-sanitizer --error-exitcode 9 "$@" "$python" -m tests.cuda.exercise --device cuda 2>&1 |
    tee "$folder/tests.log"
  "$python" -m benchmarks.gpu_parts tests "$folder/tests.log" --json "$folder/result.json"
}

scene() { # SCENE FLAGS...: 30,000 iterations; cut short, the same command goes on from the last checkpoint
  limited "$python" run.py -s "$1" -m "$folder/model" "${@:2}" --white_background --init_points hull --device cuda \
    --iterations 30000 --test_iterations 7000 30000 --save_iterations 30000 --skip_train --lpips LPIPS_alex
  "$python" -m benchmarks.gpu_parts scene "$folder/model" --seconds "$(($(spent) + SECONDS))" --json "$folder/result.json"
}

spent() { cat "$folder/seconds" 2> /dev/null || echo 0; }

# --- the driver ---

state() { # PART: done, cut short, failed, or not run
  cat "$out/$1/state" 2> /dev/null || echo "not run"
}

run_part() { # PART: its exit code. Not in a condition: there the shell would not stop a part where it fails
  local name=$1 folder=$out/$1 code=0
  if [[ $name != report && $(state "$name") == "done" ]]; then
    echo "$name: done before"
    return 0
  fi
  if [[ $name != build && $name != report && $(state build) != "done" ]]; then
    echo "$name: the part build comes first"
    return 1
  fi
  mkdir -p "$folder"
  echo "== $name"
  SECONDS=0
  (
    set -e
    "part_${name//-/_}"
  ) 2>&1 | tee -a "$folder/log.txt"
  code=${PIPESTATUS[0]}
  if ((code == UNFINISHED)) && [[ $RESUMABLE != *" $name "* ]]; then
    echo "$name: more than $limit s" | tee -a "$folder/log.txt"
    code=1
  fi
  echo $(($(spent) + SECONDS)) > "$folder/seconds"
  case $code in
    0) echo "done" ;;
    "$UNFINISHED") echo "cut short" ;;
    *) echo "failed" ;;
  esac > "$folder/state"
  echo "== $name: $(state "$name"), ${SECONDS} s"
  return "$code"
}

run_all() {
  local name code left failed=()
  for name in "${PARTS[@]}"; do
    code=$UNFINISHED left=$ATTEMPTS
    while ((code == UNFINISHED && left-- > 0)); do
      run_part "$name"
      code=$?
    done
    ((code == 0)) || failed+=("$name")
  done
  ((${#failed[@]} == 0)) && return
  echo "failed: ${failed[*]}" >&2
  return 1
}

need_gpu() {
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null ||
    die "no GPU here: $python has no PyTorch that sees one"
}

one_commit() { # results of different code must not lie side by side
  local commit
  commit=$(git rev-parse HEAD 2> /dev/null) || return 0
  [[ -f $out/commit ]] || echo "$commit" > "$out/commit"
  [[ $(cat "$out/commit") == "$commit" ]] || die "$out holds results of another commit; name a new folder with --out"
}

carried() { # packages of the pack that this interpreter has not, put where it looks last
  local package name
  if [[ ! -d $out/packages ]]; then
    rm -rf "$out/unpacking" && mkdir "$out/unpacking"
    tar -xzf "$pack/site.tar.gz" -C "$out/unpacking"
    mv "$out/unpacking" "$out/packages"
  fi
  for package in "$out"/packages/*; do
    name=${package##*/}
    [[ $name == *.dist-info ]] && continue
    "$python" -c "import $name" 2> /dev/null && continue
    ln -sfn "$package" "$out/site/$name"
    ln -sfn "$package"-*.dist-info "$out/site/"
  done
}

out=build/gpu_check pack="" limit=570 words=()
while (($#)); do
  case $1 in
    --out | --pack | --limit)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -*) die "$1: one of --out, --pack, --limit is expected" ;;
    *) words+=("$1") ;;
  esac
  shift
done
set -- "${words[@]}"

[[ $out == /* ]] || out=$PWD/$out
export PYTHONPATH="$PWD/build/native:$PWD:$out/site${PYTHONPATH:+:$PYTHONPATH}" OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
export PATH="$PATH:/usr/local/cuda/bin" TORCH_EXTENSIONS_DIR="$out/extensions"
case ${1:-} in
  pack)
    (($# == 2)) || die "pack DIR is expected"
    wheels=$(mktemp -d)
    "$python" -m pip download -q --no-deps -d "$wheels" "gsplat==$GSPLAT" ||
      echo "gsplat $GSPLAT cannot be had from the package registry: the other machine compares with its own, or with none"
    wheel=$(compgen -G "$wheels/gsplat-*.whl") || true
    exec "$python" -m benchmarks.gpu_pack "$2" ${wheel:+--gsplat "$wheel"}
    ;;
  list)
    for name in "${PARTS[@]}"; do printf '%-16s %s\n' "$name" "$(state "$name")"; done
    exit
    ;;
  run) (($# > 1)) || die "run PART... is expected; scripts/gpu_check.sh list names them" ;;
  all) (($# == 1)) || die "all takes no part; use run PART..." ;;
  *) die "pack, list, run or all is expected; the head of $0 explains them" ;;
esac
for name in "${@:2}"; do
  [[ " ${PARTS[*]} " == *" $name "* ]] || die "$name: no such part; scripts/gpu_check.sh list names them"
done
need_gpu
mkdir -p "$out/site"
one_commit
if [[ -n $pack ]]; then
  pack=$(cd "$pack" && pwd)
  export SEQSPLAT_DATA="$pack/data" SEQSPLAT_WEIGHTS="$pack/weights"
  carried
fi
lego=${SEQSPLAT_DATA:-SEQSPLAT_DATA}/nerf_synthetic_lego

set +e # from here on failures are counted
if [[ $1 == all ]]; then
  run_all
  exit
fi
worst=0
for name in "${@:2}"; do
  run_part "$name"
  code=$?
  if ((code == UNFINISHED && worst == 0)); then
    worst=$UNFINISHED
  elif ((code != 0 && code != UNFINISHED)); then
    worst=1
  fi
done
exit "$worst"
