#!/usr/bin/env bash
# NeRF-synthetic, 200 -> 800. Usage: scripts/run_blender.sh DATA_ROOT [SCENE...]   (OUT=folder, default output)
# DATA_ROOT holds chair/ drums/ ...; `python -m scene.check DATA_ROOT` says what is missing before a long run.
set -euo pipefail
(($#)) || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
dataset=blender config=configs/blender.toml downscale_flags=(--scale 4)
default_scenes=(chair drums ficus hotdog lego materials mic ship)
source "$(dirname "$0")/run_dataset.sh"
run_dataset "$@"
