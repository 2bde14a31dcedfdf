"""The numerical tests of the rasterizer once more under every other instruction set of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from diff_gaussian_rasterization import isa, isa_supported

HERE = Path(__file__).resolve().parent
FILES = ("gradients", "robustness", "geometry", "adam", "training", "maps", "train_step", "order", "memory")
MARKS = "not slow and not net and not fuzz"
# without those that start processes, and without what is the same under each instruction set
CHOICE = "not instruction_set and not at_exit and not process and not capture and not beyond_all_bounds"


# Without vectors they take longest; `test_rasterizer_robustness` compares all instruction sets every time.
@pytest.mark.parametrize("name", ["avx512", "avx2", pytest.param("scalar", marks=pytest.mark.slow)])
def test_numerical_tests_pass_under(name: str) -> None:
    if not isa_supported(name):
        pytest.skip(f"this processor has no {name}")
    if name == isa():
        pytest.skip("the tests themselves run under it")
    files = [str(HERE / f"test_rasterizer_{stem}.py") for stem in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", MARKS, "-k", CHOICE, *files],
        cwd=HERE.parents[1],
        env={**os.environ, "SPLAT_ISA": name},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert " passed" in done.stdout
