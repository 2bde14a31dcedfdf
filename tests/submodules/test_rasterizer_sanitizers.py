"""Special values under AddressSanitizer and UndefinedBehaviorSanitizer, for every instruction set of this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from diff_gaussian_rasterization import isa_supported

SOURCE = Path(__file__).resolve().parents[2] / "submodules" / "diff-gaussian-rasterization"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds the package, built with both sanitizers."""
    compiler = shutil.which("g++")
    if not (compiler and shutil.which("cmake")):
        pytest.skip("g++ and cmake are needed")
    folder = tmp_path_factory.mktemp("sanitized")
    build, package = folder / "build", folder / "diff_gaussian_rasterization"
    flags = [f"-DPython_EXECUTABLE={sys.executable}", "-DSPLAT_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", SOURCE, "-B", build, *flags], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "-j", "2"], check=True, capture_output=True)
    shutil.copytree(SOURCE / "diff_gaussian_rasterization", package)
    for library in build.glob("_native*.so"):
        shutil.copy(library, package)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avx512", "avx2", "scalar"])
def test_special_values_raise_no_report(sanitized: Path, name: str):
    if not isa_supported(name):
        pytest.skip(f"this processor has no {name}")
    runtime = [
        subprocess.run(
            ["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for library in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # CPython keeps memory to its end
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": f"{sanitized}:{SOURCE.parents[1]}",
        "SPLAT_ISA": name,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.submodules.hostile_splats"],
        cwd=SOURCE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"finished {name}: 100000 splats" in done.stdout
    assert "runtime error" not in done.stderr
    assert "AddressSanitizer" not in done.stderr
