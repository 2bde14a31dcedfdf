"""How the CUDA half is built: for every GPU, without warnings or spills, and a failure leaves the CPU package."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from diff_gaussian_rasterization import _native as rasterizer
from simple_knn import _native as knn

from tests.submodules.building import KNN, RASTERIZER, configure, run

for tool in ("cmake", "g++", "nm", "readelf"):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is needed", allow_module_level=True)

EVERY_GPU = "80-real 86-real 89-real 90"
KERNEL = "__global__ void fill(float* p) { p[threadIdx.x] = 1.f; }\nvoid splat_test(float* p) { fill<<<1, 32>>>(p); }\n"
SPILLS = """
__global__ void __launch_bounds__(1024, 2) spills(float* p) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; i++) a[i] = p[i * 32 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) p[i * 32 + threadIdx.x] = a[63 - i] * a[i];
}
"""
NO_NVCC = {"CUDACXX": "/nonexistent/nvcc"}
AUTO, ON, ONE_GPU = "-DSPLAT_CUDA=AUTO", "-DSPLAT_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90-real"
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")


def cuda_source(folder: Path, text: str) -> str:
    (folder / "kernel.cu").write_text(text)
    return f"-DSPLAT_CUDA_SOURCES={folder / 'kernel.cu'}"


def summary(printed: str) -> str:
    (line,) = re.findall(r"^-- (?:diff_gaussian_rasterization|simple_knn): (.*)$", printed, re.MULTILINE)
    return line


# --- what is installed ---


@needs_nvcc
@pytest.mark.parametrize(("native", "package"), [(rasterizer, RASTERIZER), (knn, KNN)], ids=["rasterizer", "knn"])
def test_what_is_installed_has_kernels_for_every_gpu(native, package: Path) -> None:
    """`make test` builds with SPLAT_WERROR: no warning, and no kernel that spills registers, on any of them."""
    if native.cuda_build == "no: SPLAT_CUDA=OFF":
        pytest.skip("built with SPLAT_CUDA=OFF")
    sources = list(package.glob("csrc/cuda/*.cu"))
    assert native.cuda_build == (EVERY_GPU if sources else "no: no CUDA sources")


def spills(log: str) -> dict[str, int]:
    """Bytes of spill stores by kernel, the most on any GPU; CUB's kernels, which are not ours, left out."""
    found: dict[str, int] = {}
    for name, stored in re.findall(r"Function properties for (\S+)\n.*?(\d+) bytes spill stores", log):
        if "3cub" not in name:
            found[name] = max(found.get(name, 0), int(stored))
    return found


@pytest.mark.parametrize("package", [RASTERIZER, KNN], ids=["rasterizer", "knn"])
def test_no_kernel_of_ours_spills(package: Path) -> None:
    """Also where CUB is included and the compiler was not told to warn. Of what the last build compiled."""
    kernels = {k: n for log in package.glob("build/*/cuda.log") for k, n in spills(log.read_text()).items()}
    if not kernels:
        pytest.skip("no log of a build that compiled kernels; remove the package's build folder and build again")
    assert {name: stored for name, stored in kernels.items() if stored} == {}


def test_spills_are_read_from_the_log() -> None:
    kernel = "ptxas info    : Function properties for {}\n    8 bytes stack frame, {} bytes spill stores, 4 bytes "
    kernel += "spill loads\n"
    log = kernel.format("_Z4fillPf", 0) + kernel.format("_Z4fillPf", 4) + kernel.format("_ZN3cub4sortEv", 8)
    assert spills(log) == {"_Z4fillPf": 4}


@pytest.mark.parametrize("native", [rasterizer, knn], ids=["rasterizer", "knn"])
def test_what_is_installed_loads_on_any_machine(native) -> None:
    """Neither a driver nor a CUDA runtime nor a folder of this machine is asked for, and none of them is shown."""
    dynamic = run("readelf", "-d", native.__file__)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    needed = set(re.findall(r"\(NEEDED\).*\[([\w-]+)\.", dynamic))
    assert "libc" in needed
    assert needed <= {
        "libc",
        "libm",
        "libstdc++",
        "libgcc_s",
        "libgomp",
        "libpthread",
        "librt",
        "libdl",
        "ld-linux-x86-64",
    }
    exported = re.findall(r" [TBDV] (\S+)", run("nm", "-D", "--defined-only", native.__file__))
    assert "PyInit__native" in exported
    assert [name for name in exported if "cuda" in name.lower() or "splat" in name] == []


# --- the seam ---


def test_both_packages_have_the_same_seam() -> None:
    for name in ("SplatCuda.cmake", "cuda/CMakeLists.txt"):
        assert (RASTERIZER / "cmake" / name).read_bytes() == (KNN / "cmake" / name).read_bytes()


def test_cuda_can_be_off_wanted_or_missing(tmp_path: Path) -> None:
    source = cuda_source(tmp_path, KERNEL)
    assert summary(configure(tmp_path / "off", source)) == "CPU only (SPLAT_CUDA=OFF)"
    assert summary(configure(tmp_path / "auto", source, AUTO, **NO_NVCC)) == "CPU only (no nvcc that works)"
    with pytest.raises(AssertionError, match="SPLAT_CUDA=ON: no nvcc that works"):
        configure(tmp_path / "on", source, ON, **NO_NVCC)
    with pytest.raises(AssertionError, match="SPLAT_CUDA=YES: use AUTO, ON or OFF"):
        configure(tmp_path / "wrong", source, "-DSPLAT_CUDA=YES")


@pytest.mark.slow
@needs_nvcc
def test_cuda_sources_are_compiled_for_every_listed_gpu(tmp_path: Path) -> None:
    build = tmp_path / "build"
    printed = configure(build, cuda_source(tmp_path, KERNEL + SPILLS), ON)  # which stops nobody but developers
    assert summary(printed) == f"CPU and CUDA ({EVERY_GPU})"
    library = build / "cuda" / "libsplat_cuda.a"
    assert "T splat_test(float*)" in run("nm", "-C", library)
    rules = "".join(p.read_text() for p in (build / "cuda").rglob("*") if p.name in ("build.ninja", "flags.make"))
    asked = {code for codes in re.findall(r"code=\[([\w,]+)\]", rules) for code in codes.split(",")}
    assert asked == {"sm_80", "sm_86", "sm_89", "sm_90", "compute_90"}
    assert len(re.findall(r"Used \d+ registers", (build / "cuda.log").read_text())) == 2 * 4


@needs_nvcc
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("this is no CUDA", r"kernel\.cu\(1\): error: "),
        (SPILLS, "error.*Registers are spilled"),
        ("__global__ void k(float* p) { int i; p[0] = 1.f; }", "error.*never referenced"),
    ],
    ids=["error", "spill", "warning"],
)
def test_a_cuda_failure_leaves_the_cpu_package(tmp_path: Path, text: str, message: str) -> None:
    """For developers warnings and spills are such failures."""
    source = cuda_source(tmp_path, text)
    options = (source, AUTO, ONE_GPU, "-DSPLAT_WERROR=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    line = summary(configure(tmp_path / "build", *options))
    found = re.fullmatch(r"CPU only \(the CUDA sources did not compile\): (.*); see (.*)", line)
    assert found
    error, log = found.groups()
    assert re.search(message, error)
    assert error in Path(log).read_text()
    assert (tmp_path / "build" / "cuda.txt").read_text().endswith(line + "\n")
    commands = (tmp_path / "build" / "compile_commands.json").read_text()
    assert "no: the CUDA sources did not compile" in commands
    assert log not in commands  # the text travels in the wheel


@needs_nvcc
def test_a_cuda_failure_is_an_error_where_cuda_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)SPLAT_CUDA=ON: the CUDA sources did not compile:.*error:"):
        configure(tmp_path / "build", cuda_source(tmp_path, "this is no CUDA"), ON, ONE_GPU)


@pytest.mark.slow
@needs_nvcc
def test_a_change_of_a_header_compiles_again(tmp_path: Path) -> None:
    """In a build folder that is used again, as `make` does."""
    package, build = tmp_path / "package", tmp_path / "build"
    shutil.copytree(KNN, package, ignore=shutil.ignore_patterns("build", "*.cu", "*.cpp"))
    (package / "csrc" / "knn.cpp").write_text("")
    (package / "csrc" / "module.cpp").write_text(
        '#include <nanobind/nanobind.h>\nint value();\nNB_MODULE(_native, m) { m.attr("value") = value(); }\n'
    )
    (package / "csrc" / "cuda").mkdir(exist_ok=True)
    (package / "csrc" / "cuda" / "value.cu").write_text('#include "value.cuh"\nint value() { return VALUE; }\n')
    for value in ("41", "42"):
        (package / "csrc" / "value.cuh").write_text(f"#define VALUE {value}\n")
        if value == "41":
            configure(build, ON, ONE_GPU, package=package)
        run("cmake", "--build", build)
        script = "import _native; print(_native.value)"
        assert run(sys.executable, "-c", script, cwd=build).strip() == value
