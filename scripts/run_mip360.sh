#!/usr/bin/env bash
# Mip-NeRF 360, 1/8 -> 1/2 with the sizes of the paper. Usage: scripts/run_mip360.sh DATA_ROOT [SCENE...]   (OUT=folder, default output)
# DATA_ROOT holds bicycle/ bonsai/ ...; `python -m scene.check DATA_ROOT` says what is missing before a long run.
set -euo pipefail
(($#)) || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
dataset=mip360 config=configs/mip360.toml downscale_flags=(--compat sequence_matters)
default_scenes=(bicycle flowers garden stump treehill room counter kitchen bonsai)
source "$(dirname "$0")/run_dataset.sh"
run_dataset "$@"
