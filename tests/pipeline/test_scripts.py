"""The shell scripts pass on what their headers say; a stand-in for Python writes down how it was called."""

import os
import subprocess
from pathlib import Path

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


def test_the_ordering_study_changes_the_ordering_alone(tmp_path):
    command = ("scripts/ablate_ordering.sh", str(tmp_path), str(tmp_path / "out"), "--seed", "1")
    *runs, table = calls(tmp_path, *command)
    orderings = ["file", "random", "greedy", "als", "tour"]
    for ordering, words in zip(orderings, runs, strict=True):
        assert words[1:] == [
            *("-s", str(tmp_path), "-m", str(tmp_path / "out" / ordering), "--cost", "pose", "--seed", "1"),
            *("--ordering", ordering),
        ]
    assert table == ["-m", "evaluation.tables", *(str(tmp_path / "out" / ordering) for ordering in orderings)]
    *runs, _ = calls(tmp_path, *command, COST="orb")
    assert all(words[words.index("--cost") + 1] == "orb" for words in runs)
