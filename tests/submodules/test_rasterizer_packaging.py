"""How the native packages are built: flags and symbols of each unit, source archives, wheels."""

import json
import re
import shlex
import shutil
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.submodules.building import KNN, RASTERIZER, ROOT, configure, run

PACKAGES = pytest.mark.parametrize("package", [RASTERIZER, KNN], ids=lambda p: p.name)
VECTOR_FLAGS = {
    "scalar": set(),
    "avx2": {"-mavx2", "-mfma"},
    "avx512": {"-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi2"},
}

for tool in ("cmake", "g++", "nm", "objdump"):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is needed", allow_module_level=True)
pytest.importorskip("nanobind")


# --- units ---


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The compiler's command line of every unit, by its object's name (kernels_avx2, dispatch.cpp, ...)."""
    build = tmp_path_factory.mktemp("configured")
    configure(build, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DSPLAT_WERROR=ON")
    units = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        target = re.search(r"CMakeFiles/(\w+)\.dir", entry["command"])
        name = target[1] if target and target[1].startswith("kernels_") else Path(entry["file"]).name
        units[name] = words
    return units


def compile_unit(words: list[str], to: Path, *replaced: str) -> None:
    """Runs a command line of CMake's with another output."""
    kept = [w for i, w in enumerate(words) if w != "-o" and words[i - 1] != "-o"]
    run(*kept, *replaced, "-o", to, cwd=to.parent)


def test_only_kernels_are_compiled_for_more_than_the_base_processor(commands: dict[str, list[str]]) -> None:
    kernels = {name for name in commands if name.startswith("kernels_")}
    assert kernels == {f"kernels_{isa}" for isa in VECTOR_FLAGS}
    assert {"dispatch.cpp", "buffer.cpp", "bindings.cpp"} < commands.keys()
    for name, words in commands.items():
        machine = {w for w in words if w.startswith("-m") and not w.startswith("-mtls-dialect")}
        assert machine == VECTOR_FLAGS.get(name.removeprefix("kernels_"), set()), name
        assert "-ffast-math" not in words
        if name in kernels:
            assert f"-DSPLAT_ISA_NAME={name.removeprefix('kernels_')}" in words
            assert {"-Wconversion", "-Werror"} < set(words)


@PACKAGES
def test_warnings_stop_nobody_else(package: Path, tmp_path: Path) -> None:
    """Other compilers have other warnings: they are errors only where asked for."""
    configure(tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", package=package)
    commands = (tmp_path / "compile_commands.json").read_text()
    assert "-Wconversion" in commands
    assert "-Werror" not in commands
    silenced = re.findall(r"(\S*)-Wno-[\w-]+", (package / "CMakeLists.txt").read_text())
    assert set(silenced) <= {"$<$<CXX_COMPILER_ID:GNU>:"}  # Clang does not know them all


@pytest.mark.parametrize("isa", ["avx512", "avx2", pytest.param("scalar", marks=pytest.mark.slow)])
def test_kernels_leave_no_symbol_outside_their_namespace(commands: dict[str, list[str]], isa: str, tmp_path: Path):
    """Otherwise the linker keeps one copy of an inline function, perhaps the AVX-512 one, for all of them.

    Compiled with little inlining, so that a leak does not hide behind an optimiser's mood; and without a warning.
    """
    unit = tmp_path / "kernels.o"
    compile_unit(commands[f"kernels_{isa}"], unit, "-Og")
    symbols = re.findall(r"^[0-9a-f ]{16} (\S) (.+)$", run("nm", "-C", unit), re.MULTILINE)
    shared = {name for kind, name in symbols if kind not in "tbdrnU"}
    personality = {name for name in shared if name.startswith("DW.ref.")}  # a pointer for exceptions, no code
    assert f"splat::{isa}::kKernels" in shared
    assert {name for name in shared - personality if not name.startswith(f"splat::{isa}::")} == set()


@pytest.mark.parametrize("name", ["dispatch.cpp", "buffer.cpp"])
def test_the_dispatcher_runs_on_any_processor(commands: dict[str, list[str]], name: str, tmp_path: Path) -> None:
    compile_unit(commands[name], tmp_path / "unit.o", "-O2")
    code = run("objdump", "-d", "--no-show-raw-insn", tmp_path / "unit.o")
    assert re.search(r"\tret", code)
    assert re.findall(r"\tv\w+.*|.*%[yz]mm.*", code) == []


# --- source archives and metadata ---


def backend(package: Path, hook: str, folder: Path) -> Path:
    """What scikit-build-core writes for `build_sdist` or `build_wheel`."""
    pytest.importorskip("scikit_build_core")
    script = f"from scikit_build_core.build import {hook}; print('made', {hook}({str(folder)!r}))"
    lines = run(sys.executable, "-c", script, cwd=package).splitlines()
    return folder / next(line for line in reversed(lines) if line.startswith("made ")).removeprefix("made ")


def copied(package: Path, to: Path) -> Path:
    """The package's own files only, so that nothing else of the checkout can help."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=package).split("\0")
    for name in filter(None, listed):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / name, to / name)
    return to


@PACKAGES
def test_source_archive_is_complete(package: Path, tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a checkout is needed")
    sources = copied(package, tmp_path / "package")
    expected = {str(p.relative_to(sources)) for p in sources.rglob("*") if p.is_file()}
    with tarfile.open(backend(sources, "build_sdist", tmp_path)) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert names - {"PKG-INFO"} == expected
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@PACKAGES
def test_one_wheel_for_python_3_12_and_later(package: Path) -> None:
    settings = tomllib.loads((package / "pyproject.toml").read_text())
    (override,) = settings["tool"]["scikit-build"]["overrides"]
    assert override["if"] == {"python-version": ">=3.12", "implementation-name": "cpython"}
    assert override["wheel"]["py-api"] == "cp312"
    assert "nanobind_add_module(_native STABLE_ABI" in (package / "CMakeLists.txt").read_text()
    assert "torch" not in str(settings["build-system"]["requires"])


# --- wheels, and a stranger who installs them ---


def train_in(empty: Path, python: str | Path, **environment: str) -> None:
    shutil.copy(ROOT / "examples" / "standalone_rasterizer.py", empty / "train.py")
    printed = run(python, "-W", "error", "train.py", cwd=empty, **environment)
    before, after = (float(x) for x in re.findall(r"PSNR ([\d.]+) dB", printed))
    assert before < 12
    assert after > 28


@pytest.mark.slow
@pytest.mark.net
def test_a_stranger_trains_in_a_fresh_environment(tmp_path: Path) -> None:
    """Nothing of this interpreter's packages: pip brings what is needed to build, and torch and numpy."""
    empty, wheels, python = tmp_path / "empty", tmp_path / "wheels", tmp_path / "venv" / "bin" / "python"
    empty.mkdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    clean = {"PYTHONPATH": ""}
    for package in (RASTERIZER, KNN):
        sources = copied(package, tmp_path / package.name)
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, sources, **clean)
    torch = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert torch
    run(python, "-m", "pip", "install", "-q", *wheels.glob("*.whl"), torch[0], "numpy", **clean)
    train_in(empty, python, **clean)


@pytest.mark.slow
def test_a_stranger_trains_with_the_two_wheels(tmp_path: Path) -> None:
    """Wheels made from the source archives, installed elsewhere, and a script in an empty folder."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = (sys.executable, "-m", "pip", "-q")
    for package in (RASTERIZER, KNN):
        sources = copied(package, tmp_path / package.name)
        archive = backend(sources, "build_sdist", tmp_path)
        folder = tmp_path / f"wheel-{package.name}"
        run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, archive)
        (wheel,) = folder.glob("*.whl")
        check_wheel(wheel, package)
        run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel)
    train_in(empty, sys.executable, PYTHONPATH=str(site))
    where = "import diff_gaussian_rasterization as d, simple_knn as k; print(d.__file__, k.__file__)"
    assert run(sys.executable, "-c", where, cwd=empty, PYTHONPATH=str(site)).count(str(site)) == 2


def check_wheel(wheel: Path, package: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    info = next(name for name in names if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
    metadata = HeaderParser().parsestr(names[info + "METADATA"].decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert names[info + "licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert metadata["Requires-Python"] == ">=3.10"
    assert "torch" not in str(metadata.get_all("Requires-Dist"))
    module = next(p.parent for p in package.glob("*/__init__.py"))
    python = {f"{module.name}/{p.name}" for p in module.glob("*.py")}
    (native,) = (name for name in names if name.endswith(".so"))
    assert {name for name in names if not name.startswith(info)} == {*python, native}
    tag = "cp312-abi3" if sys.version_info >= (3, 12) else f"cp3{sys.version_info.minor}-cp3{sys.version_info.minor}"
    assert f"-{tag}-" in wheel.name
    assert len(names[native]) < 12e6  # with the kernels of every GPU
    assert str(ROOT).encode() not in names[native]
