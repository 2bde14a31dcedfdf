#!/usr/bin/env bash
# A table of the paper on full data, the published cells beside. Usage: scripts/reproduce_tables.sh DATA TABLE [flags]
#   DATA   folder with nerf_synthetic/ and mipnerf360/, or with the scenes of one of them
#   TABLE  T2 T3 T4 T6-8 (NeRF-synthetic), T9-11 (Mip-NeRF 360)
# An interrupted call goes on where it was; tables share what they have in common. Flags:
#   --networks psrt basicvsr ...    any --upsampler; psrt is the paper's        --scenes lego ship    only these
#   --corrected  without the release's quirks     --seeds 0 1 2     --out DIR     --only_table     --dry_run
#   --unchecked  also with other views or sizes         --format latex     --output FILE
#   --executor ray  --slots 2  --threads 8  --devices cuda:0 cuda:1    as those of python -m evaluation.study
#   -- FLAGS     of run.py, for all rows: -- --no_lpips
set -euo pipefail
if (($# < 2)); then
  sed -n '2,11s/^# //p' "$0" >&2
  exit 2
fi
export OMP_WAIT_POLICY=PASSIVE
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[[ -x $python ]] || python=python3
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m evaluation.paper "$@"
