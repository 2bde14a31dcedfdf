#!/usr/bin/env bash
# The same scene under every ordering, one table. Usage: scripts/ablate_ordering.sh SCENE OUT [flags of run.py...]
# Writes OUT/{file,random,greedy,als,tour}; the same command continues an interrupted study.
# All five use one cost, so that only the ordering differs: pose, or $COST (auto: each ordering's own).
set -euo pipefail
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
scene=$(realpath -- "$1") out=$(realpath -m -- "$2")
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[[ -x $python ]] || python=python3
outs=() failed=()
for ordering in file random greedy als tour; do
  if "$here/scripts/run_scene.sh" "$scene" "$out/$ordering" --cost "${COST:-pose}" "$@" --ordering "$ordering"; then
    outs+=("$out/$ordering")
  else
    failed+=("$ordering")
  fi
done
cd "$here"
if ((${#outs[@]})); then "$python" -m evaluation.tables "${outs[@]}"; fi
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
