"""scripts/gpu_check.sh without a GPU: a stand-in for Python tells what would have been run, and fails when told to."""

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import device, gpu_pack
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/gpu_check.sh"
PARTS = re.search(r"PARTS=\((.*?)\)", SCRIPT.read_text(), re.S)[1].split()  # type: ignore[index]
STAND_IN = """#!/bin/bash
cd "$(dirname "$0")"
echo "$*" >> calls
if [[ -f slow && "$*" == *"$(cat slow)"* ]]; then exec sleep 20; fi
if [[ -f fail && "$*" == *"$(cat fail)"* ]]; then echo "broken on purpose"; exit 3; fi
"""


class Check:
    """The script with its own folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "python").write_text(STAND_IN)
        (folder / "python").chmod(0o755)
        (folder / "compute-sanitizer").symlink_to(folder / "python")
        (folder / "log").write_text("")

    def __call__(self, *words: str, python: str | None = None) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        path = f"{self.folder}:{os.environ['PATH']}"
        environment = {**os.environ, "PYTHON": python or str(self.folder / "python"), "PATH": path}
        command = [SCRIPT, *words, "--out", self.out]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        return done.returncode, done.stdout, done.stderr

    def calls(self) -> list[str]:
        """What was run since the last time, but for questions (-c)."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("-c ")]

    def states(self) -> dict[str, str]:
        lines = self("list")[1].splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def tell(self, what: str, module: str) -> None:
        (self.folder / what).write_text(module)


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


def test_every_part_is_listed_and_has_its_function(check):
    assert check.states() == dict.fromkeys(PARTS, "not run")
    text = SCRIPT.read_text()
    assert {f"part_{name.replace('-', '_')}" for name in PARTS} == set(re.findall(r"^(part_\w+)\(\)", text, re.M))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "pack, list, run or all is expected"),
        (("run",), "run PART... is expected"),
        (("run", "nothing"), "nothing: no such part"),
        (("all", "knn"), "all takes no part"),
        (("pack",), "pack DIR is expected"),
        (("all", "--fast"), "--fast: one of --out"),
    ],
)
def test_wrong_words_are_refused_in_one_line(check, words, message):
    code, _, errors = check(*words)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert message in errors
    assert check.calls() == []


def test_without_a_gpu_one_line_and_code_2(check):
    if device.why_not() is None:
        pytest.skip("there is a GPU")
    for words in (("all",), ("run", "build")):
        code, output, errors = check(*words, python="python3")
        assert (code, output, len(errors.splitlines())) == (2, "", 1)
        assert errors.startswith("error: no GPU here")


def test_the_build_comes_first(check):
    code, output, _ = check("run", "knn")
    assert code == 1
    assert "knn: the part build comes first" in output
    assert check.calls() == []


def test_a_part_that_fails_stops_none_and_is_all_that_runs_again(check):
    check.tell("fail", "benchmarks.knn")
    code, output, errors = check("all")
    assert code == 1
    assert errors == "failed: knn\n"
    assert "broken on purpose" in output
    assert "broken on purpose" in (check.out / "knn/log.txt").read_text()
    assert check.states() == {name: "failed" if name == "knn" else "done" for name in PARTS}
    calls = check.calls()
    assert sum("benchmarks.rasterizer" in call for call in calls) == 1

    (check.folder / "fail").unlink()
    assert check("all")[0] == 0
    assert [call.split()[1] for call in check.calls()] == ["benchmarks.knn", "benchmarks.gpu_pages"]
    assert set(check.states().values()) == {"done"}


def test_a_part_stops_at_its_first_command_that_fails(check):
    assert check("run", "build")[0] == 0
    check.calls()
    check.tell("fail", "train.py")
    assert check("run", "determinism", "vsr")[0] == 1
    assert [call.split()[0] for call in check.calls()] == ["train.py", "-m"]
    assert check.states()["determinism"] == "failed"


def test_warnings_of_the_machines_own_compilers_are_told_and_stop_nothing(check):
    check.tell("fail", "SPLAT_WERROR=ON")
    code, output, _ = check("run", "build")
    assert code == 0
    assert output.count("broken on purpose") == output.count("built again with warnings left alone") == 2
    builds = [call for call in check.calls() if " pip install " in call]
    assert [re.findall(r"SPLAT_WERROR=(\w+)", call) for call in builds] == [["ON"], ["OFF"]] * 2
    check.tell("fail", "pip install")
    (check.out / "build/state").unlink()
    assert check("run", "build")[0] == 1
    assert check.states()["build"] == "failed"


def test_a_training_that_is_cut_short_goes_on(check):
    check("run", "build")
    check.tell("slow", "run.py")
    assert check("run", "hr25", "--limit", "2")[0] == 75
    assert check.states()["hr25"] == "cut short"
    before = int((check.out / "hr25/seconds").read_text())
    assert before >= 2
    check.calls()
    (check.folder / "slow").unlink()
    assert check("run", "hr25")[0] == 0
    first, second = check.calls()
    assert first.startswith("run.py -s ")
    assert "--iterations 30000" in first
    seconds = re.search(r"--seconds (\d+)", second)
    assert seconds
    assert int(seconds[1]) >= before


def test_another_part_has_no_second_try_when_its_time_is_up(check):
    check("run", "build")
    check.tell("slow", "benchmarks.vsr")
    code, output, _ = check("run", "vsr", "--limit", "1")
    assert code == 1
    assert "vsr: more than 1 s" in output
    assert check.states()["vsr"] == "failed"


def test_packages_of_the_pack_are_used_where_there_is_none(check, tmp_path):
    for name in ("here", "there"):
        (tmp_path / f"site/{name}").mkdir(parents=True)
        (tmp_path / f"site/{name}-1.0.dist-info").mkdir()
    (tmp_path / "pack").mkdir()
    shutil.make_archive(str(tmp_path / "pack/site"), "gztar", tmp_path / "site")
    check.tell("fail", "import there")
    assert check("run", "build", "--pack", str(tmp_path / "pack"))[0] == 0
    assert {path.name for path in (check.out / "site").iterdir()} == {"there", "there-1.0.dist-info"}
    assert (check.out / "site/there").resolve() == check.out / "packages/there"


def test_results_of_another_commit_are_refused(check):
    check("run", "build")
    if not (check.out / "commit").exists():
        pytest.skip("a checkout is needed")
    (check.out / "commit").write_text("another\n")
    code, _, errors = check("run", "vsr")
    assert code == 2
    assert "results of another commit" in errors


def test_gsplat_travels_without_the_manuals_it_carries(tmp_path):
    glm = "gsplat/cuda/csrc/third_party/glm"
    with zipfile.ZipFile(tmp_path / "gsplat.whl", "w") as wheel:
        for name in ("gsplat/__init__.py", f"{glm}/glm/vec3.hpp", f"{glm}/doc/manual.pdf", f"{glm}/test/a.cpp"):
            wheel.writestr(name, "x")
    gpu_pack.copy_gsplat(tmp_path / "gsplat.whl", tmp_path / "site")
    kept = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert kept == {"gsplat/__init__.py", f"{glm}/glm/vec3.hpp"}


def test_a_pack_and_the_checkout_have_64_mib_together(data_dir, tmp_path):
    found = gpu_pack.pack(tmp_path / "pack", data_dir)
    assert sum(found.values()) <= gpu_pack.LIMIT_BYTES == 60 * 2**20
    assert set(found) == {"data", "weights", "site.tar.gz"}
    assert (tmp_path / "pack/data/nerf_synthetic_lego/hr_800/transforms_train.json").is_file()
    with tarfile.open(tmp_path / "pack/site.tar.gz") as packages:
        assert "./jaxtyping/__init__.py" in packages.getnames()
    with pytest.raises(UserError, match="is there already"):
        gpu_pack.pack(tmp_path / "pack", data_dir)
    with pytest.raises(UserError, match="SEQSPLAT_DATA must name"):
        gpu_pack.pack(tmp_path / "other", tmp_path)
