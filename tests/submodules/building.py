"""Commands that the tests of the native packages' builds share."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RASTERIZER, KNN = ROOT / "submodules" / "diff-gaussian-rasterization", ROOT / "submodules" / "simple-knn"


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def configure(build: Path, *options: str, package: Path = RASTERIZER, **environment: str) -> str:
    """What CMake prints when it prepares a build of the package in `build`; without CUDA unless `options` want it."""
    usual = (f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release", "-DSPLAT_CUDA=OFF")
    return run("cmake", "-S", package, "-B", build, *usual, *options, **environment)
