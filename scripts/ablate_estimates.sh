#!/usr/bin/env bash
# The same network's frames estimated several times, projected, fused, refined, one table.
# Usage: scripts/ablate_estimates.sh LR_SCENE OUT [flags of run.py...]
# The variants stand in studies/estimates.toml; OUT gets one folder a task, named by its content, and results.json.
# The same command continues an interrupted study. SEEDS="0 1 2", SLOTS=2: more seeds, tasks at the same time.
set -euo pipefail
source "$(dirname "$0")/ablate.sh"
ablate estimates.toml "$@"
