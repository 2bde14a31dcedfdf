"""What code a step's key holds: all that can change its result, and nothing that only runs, shows or compares."""

import re

from arguments.steps import STEPS
from utils.keys import BUILT, GROUND, NO_RESULT
from utils.provenance import PROJECT, code_files, hash_files

PACKAGES = {*GROUND, *(package for step in STEPS.values() for package in step.code)}


def test_code_that_changes_no_result_is_left_out(tmp_path):
    for path in (
        *("arguments/study.py", "arguments/training.py", "evaluation/study/table.py", "evaluation/study.py"),
        *("submodules/simple-knn/build/cuda.cu", "submodules/simple-knn/csrc/knn.cu"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before = True\n")

    def state() -> str:
        return hash_files(code_files({"arguments", "evaluation", "submodules"}, NO_RESULT, tmp_path))["sha256"]

    before = state()
    for path in ("arguments/study.py", "evaluation/study/table.py", "submodules/simple-knn/build/cuda.cu"):
        (tmp_path / path).write_text("before = False\n")
        assert state() == before
    for path in ("arguments/training.py", "evaluation/study.py", "submodules/simple-knn/csrc/knn.cu"):
        (tmp_path / path).write_text("before = False\n")
        assert state() != before
        before = state()


def test_what_is_left_out_exists_and_the_rest_is_there():
    everything, kept = code_files(PACKAGES), code_files(PACKAGES, NO_RESULT)
    for name in NO_RESULT:
        path = PROJECT / name
        assert path.exists() or name in BUILT, f"{name} has moved"
        assert not [p for p in kept if p.is_relative_to(path)]
    apart = {p.relative_to(PROJECT) for p in {*everything} - {*kept}}
    assert {p.parts[0] for p in apart} - {"submodules"} == {"arguments", "evaluation", "utils"}
    assert all("build" in p.parts for p in apart if p.parts[0] == "submodules")
    assert {"arguments/training.py", "arguments/downscale.py", "utils/compute.py", "evaluation/frame_quality.py"} <= {
        str(p.relative_to(PROJECT)) for p in kept
    }


def test_no_step_imports_what_starts_and_compares_steps():
    apart = [name.removesuffix(".py").replace("/", ".") for name in NO_RESULT if name.startswith(("evaluation", "arg"))]
    apart.remove("arguments.next_step")  # a line for people, which scripts print
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(map(re.escape, apart))})\b", re.MULTILINE)
    scripts = {PROJECT / step.script for step in STEPS.values()}
    for path in {*code_files(PACKAGES, NO_RESULT), *scripts}:
        hit = pattern.search(path.read_text()) if path.suffix == ".py" else None
        assert not hit, f"{path}: {hit and hit[0]}: what a step uses belongs into its key"
