# Sourced by ablate_*.sh: one study on one scene. Usage: ablate STUDY.toml LR_SCENE OUT [flags of run.py...]
ablate() {
  local here python study=$1 scene out ended=0
  if (($# < 3)); then
    sed -n '2,/^set /{s/^# //p}' "$0" >&2
    exit 2
  fi
  scene=$(realpath -- "$2") out=$(realpath -m -- "$3")
  shift 3
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  python=${PYTHON:-$here/.venv/bin/python}
  [[ -x $python ]] || python=python3
  export OMP_WAIT_POLICY=PASSIVE PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
  local options=(--source "$scene" --out "$out")
  [[ -z ${SEEDS:-} ]] || options+=(--seeds ${SEEDS})
  "$python" -m evaluation.study "$here/studies/$study" run "${options[@]}" --slots "${SLOTS:-1}" -- "$@" || ended=$?
  ((ended <= 1)) || return "$ended" # 1: something failed and was told; the rest is compared all the same
  "$python" -m evaluation.study "$here/studies/$study" table "${options[@]}" --frames --json "$out/results.json" -- "$@" || return
  return "$ended"
}
