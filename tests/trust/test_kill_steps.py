"""kill -9 at random moments of ordering, upsampling and rendering: what is started again ends with the same files."""

import hashlib
import random
import signal
import time
from pathlib import Path

import pytest

from tests.forked import ScriptProcess
from tests.training_factory import command, write_scene

BOOKKEEPING = {"run.json", ".lock", "cfg_args"}  # times, process ids and the folder's own name differ


def words(step: str, root: Path, out: Path) -> list[str]:
    """Command line of one step into `out`."""
    if step == "render":
        return ["-m", str(out), "-s", str(root / "lr"), "--eval", "--device=cpu"]
    more = {"order": ["--cost=orb"], "upsample": ["--upsampler=bicubic", "--lr_kernel=bicubic"]}
    return ["-s", str(root / "lr"), "-m", str(out), "--eval", "--device=cpu", *more[step]]


def digest(out: Path) -> dict[str, str]:
    files = [p for p in out.rglob("*") if p.is_file() and p.name not in BOOKKEEPING and p.suffix != ".tmp"]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def finish(step: str, root: Path, out: Path) -> None:
    process = ScriptProcess(words(step, root, out), root / f"{out.name}_{step}.txt", step=step)
    assert process.wait() == 0, process.text()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene"))


def prepare(step: str, root: Path, out: Path) -> None:
    """What `step` needs to be there."""
    if step == "upsample":
        finish("order", root, out)
    if step == "render":
        assert ScriptProcess(command(root, out, iterations=10), root / f"{out.name}_train.txt").wait() == 0


@pytest.mark.parametrize("step", ["order", "upsample", "render"])
def test_kills_change_no_file(root, step):
    out = root / f"killed_{step}"
    prepare(step, root, out)
    rng, codes = random.Random(step), []
    for _ in range(3):
        process = ScriptProcess(words(step, root, out), root / f"{out.name}.txt", step=step)
        time.sleep(rng.uniform(0.0, 0.4))
        process.signal(signal.SIGKILL)
        codes.append(process.wait())
    assert set(codes) <= {-signal.SIGKILL, 0}
    finish(step, root, out)
    reference = root / f"reference_{step}"
    prepare(step, root, reference)
    finish(step, root, reference)
    assert digest(out) == digest(reference)


def test_no_step_touches_its_scene(tmp_path):
    root = write_scene(tmp_path)
    before = digest(root / "lr")
    for step in ("upsample", "render"):
        prepare(step, root, root / step)
        finish(step, root, root / step)
    assert digest(root / "lr") == before
