"""The shell scripts pass on what their headers say; a stand-in for Python writes down how it was called."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def calls(folder: Path, *command: str, **env: str) -> list[list[str]]:
    recorder, log = folder / "python", folder / "calls"
    recorder.write_text(f'#!/bin/sh\n(IFS="|"; echo "$*") >> "{log}"\n')
    recorder.chmod(0o755)
    environment = os.environ | {"PYTHON": str(recorder)} | env
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
    lines = [line.split("|") for line in log.read_text().splitlines()]
    log.unlink()
    return lines


@pytest.mark.parametrize("name", ["alignment", "backend", "estimates", "lambda", "ordering"])
def test_ablations_are_studies_of_one_scene(tmp_path, name):
    out = str(tmp_path / "out")
    run, table = calls(tmp_path, f"scripts/ablate_{name}.sh", str(tmp_path), out, "--iterations", "9", SEEDS="3 4")
    study = ["-m", "evaluation.study", f"{ROOT}/studies/{name}.toml"]
    where = ["--source", str(tmp_path), "--out", out, "--seeds", "3", "4"]
    assert run == [*study, "run", *where, "--slots", "1", "--", "--iterations", "9"]
    assert table == [*study, "table", *where, "--frames", "--json", f"{out}/results.json", "--", "--iterations", "9"]


def test_without_a_scene_they_say_what_they_want(tmp_path):
    done = subprocess.run(["scripts/ablate_ordering.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage: scripts/ablate_ordering.sh LR_SCENE OUT" in done.stderr
    assert "set -euo" not in done.stderr
