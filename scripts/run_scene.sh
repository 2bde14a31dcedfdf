#!/usr/bin/env bash
# One scene end to end. Usage: scripts/run_scene.sh SCENE OUT [flags of run.py...]
#   SCENE  folder of LR views (made by `python -m scene.downscale`, or foreign with --lr_kernel)
#   OUT    output folder; the same command continues an interrupted run
set -euo pipefail
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
scene=$1 out=$2
shift 2
export OMP_WAIT_POLICY=PASSIVE
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[[ -x $python ]] || python=python3
exec "$python" "$here/run.py" -s "$scene" -m "$out" "$@"
