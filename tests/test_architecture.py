"""The layers of DESIGN: each package imports only packages below it, and nothing imports a script."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"run", "train", "render", "align_sequence", "vsr_upsample", "metrics"}
GROUND = {"arguments", "utils"}
WORLD = GROUND | {"scene"}
FRAMES = {"ordering", "upsampling", "priors", "gaussian_renderer"}
ALLOWED = {
    "utils": set(),
    "arguments": {"utils"},
    "scene": GROUND,
    "ordering": WORLD,
    "upsampling": WORLD | {"priors"},
    "priors": WORLD,
    "gaussian_renderer": WORLD,
    "training": WORLD | FRAMES,
    "evaluation": WORLD | FRAMES | {"training"},
}
# The native packages are layer 0: anyone may import them, they import nothing of ours.
NATIVE = {"diff_gaussian_rasterization", "simple_knn"}
BROKEN_WITHOUT_GPU = {"torchvision", "lpips", "basicsr", "spandrel", "timm", "mmcv", "torchmetrics"}  # or import it
GPL = {"plyfile"}
OPTIONAL = {
    # On a GPU one operator of torchvision is taken where it happens to be there; nothing needs it.
    ("upsampling/deformable.py", "torchvision"),
    # --upsampler spandrel: imported when asked for, and one line says what to install where it cannot be.
    ("upsampling/spandrel.py", "spandrel"),
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, first component) of every absolute import in a file, at any depth."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.lineno, node.module.split(".")[0]))
    return found


def sources(package: str) -> list[Path]:
    return [p for p in (ROOT / package).rglob("*.py") if "build" not in p.parts]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_follow_the_layers(package):
    ours = set(ALLOWED) | SCRIPTS
    for path in sources(package):
        for line, name in imports(path):
            assert name not in ours or name in ALLOWED[package] | {package}, f"{path}:{line} imports {name}"


def test_native_packages_import_nothing_of_ours():
    for path in sources("submodules"):
        for line, name in imports(path):
            assert name not in set(ALLOWED) | SCRIPTS, f"{path}:{line} imports {name}"


def test_no_import_that_breaks_without_a_gpu_or_carries_the_gpl():
    files = [
        *ROOT.glob("*.py"),
        *(p for package in [*ALLOWED, "submodules", "examples", "tests"] for p in sources(package)),
    ]
    for path in files:
        for line, name in imports(path):
            optional = (path.relative_to(ROOT).as_posix(), name) in OPTIONAL
            assert optional or name not in BROKEN_WITHOUT_GPU | GPL, f"{path}:{line} imports {name}"


def test_utils_know_no_word_of_the_domain():
    words = re.compile(r"\b(cameras?|gaussians|splats?|subsequences?)\b", re.IGNORECASE)
    for path in sources("utils"):
        hit = words.search(path.read_text())
        assert not hit, f"{path} says {hit and hit[0]!r}: it belongs into a package above"


@pytest.mark.parametrize(("pattern", "limit"), [("*.py", 60), ("utils/*.py", 150)], ids=["scripts", "utils"])
def test_scripts_and_utils_stay_small(pattern, limit):
    for path in ROOT.glob(pattern):
        assert len(path.read_text().splitlines()) <= limit, f"{path} has more than {limit} lines: split it by concept"


def test_no_file_of_ours_outgrows_a_reader():
    networks = {"basicvsr.py", "basicvsr_pp.py", "psrt.py", "iconvsr.py"}
    for package in [*ALLOWED, "examples", "benchmarks", "tests", "submodules"]:
        for path in sources(package):
            limit = 500 if path.name in networks else 400
            assert len(path.read_text().splitlines()) <= limit, f"{path} has more than {limit} lines"
