#!/usr/bin/env bash
# The same scene under every ordering, with learned flow and with flow from geometry, one table.
# Usage: scripts/ablate_ordering.sh LR_SCENE OUT [flags of run.py...]
# The variants stand in studies/ordering.toml; OUT gets one folder a task, named by its content, and results.json.
# The same command continues an interrupted study. SEEDS="0 1 2", SLOTS=2: more seeds, tasks at the same time.
set -euo pipefail
source "$(dirname "$0")/ablate.sh"
ablate ordering.toml "$@"
