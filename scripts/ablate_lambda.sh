#!/usr/bin/env bash
# The same frames under every weight of the frames' loss against the LR views', one table.
# Usage: scripts/ablate_lambda.sh LR_SCENE OUT [flags of run.py...]
# The variants stand in studies/lambda.toml; OUT gets one folder a task, named by its content, and results.json.
# The same command continues an interrupted study. SEEDS="0 1 2", SLOTS=2: more seeds, tasks at the same time.
set -euo pipefail
source "$(dirname "$0")/ablate.sh"
ablate lambda.toml "$@"
