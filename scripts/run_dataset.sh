# Sourced by run_blender.sh and run_mip360.sh: every scene of a data set end to end, failures reported at the end.
# Needs: dataset, config, scale flags, default scenes. Usage: run_dataset DATA_ROOT [SCENE...]
run_dataset() {
  local root here python failed=() outs=()
  root=$(realpath -- "$1")
  shift
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  python=${PYTHON:-$here/.venv/bin/python}
  [[ -x $python ]] || python=python3
  local scenes=("$@")
  ((${#scenes[@]})) || scenes=("${default_scenes[@]}")
  export OMP_WAIT_POLICY=PASSIVE
  local out
  out=$(realpath -m -- "${OUT:-output}")/$dataset
  cd "$here"
  for scene in "${scenes[@]}"; do
    echo "=== $dataset/$scene" >&2
    if "$python" -m scene.downscale -s "$root/$scene" -o "$out/lr/$scene" "${downscale_flags[@]}" &&
      scripts/run_scene.sh "$out/lr/$scene" "$out/$scene" --config "$config"; then
      outs+=("$out/$scene")
    else
      failed+=("$scene")
    fi
  done
  if ((${#outs[@]})); then "$python" -m evaluation.tables "${outs[@]}"; fi
  if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    return 1
  fi
}
