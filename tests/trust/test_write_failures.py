"""Writes that fail: the N-th one for every N, and a disk that is full. Old or new files, never a part; exit code 2."""

import errno
import json
import os
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scene.ply import read_gaussians, write_points
from scene.points import PointCloud
from tests.forked import ScriptProcess
from tests.training_factory import command, write_scene
from training.checkpoint import Checkpoints, load

FLAGS: dict[str, Any] = {"iterations": 12, "log_interval": 10}


class FailNth:
    """Makes the N-th write, fsync or replace of this process fail with ENOSPC; counts them all."""

    def __init__(self, n: int, counter: Path) -> None:
        self.left, self.done, self.counter = n, 0, counter

    def hit(self) -> None:
        self.done += 1
        self.counter.write_text(str(self.done)) if self.left < 0 else None
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrap(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.hit()
            return function(*args, **kwargs)

        return call

    def open(self, *args: Any, **kwargs: Any) -> Any:
        file = open(*args, **kwargs)  # noqa: SIM115 (the caller closes it)
        return _FailingFile(file, self)


class _FailingFile:
    def __init__(self, file: Any, fail: FailNth) -> None:
        self.file, self.fail = file, fail

    def write(self, data: bytes) -> int:
        self.fail.hit()
        return self.file.write(data)

    def __enter__(self) -> "_FailingFile":
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def inject(n: int, counter: Path) -> None:
    """Runs in the child: from now on the N-th operation fails (a negative N only counts)."""
    import utils.atomic

    fail = FailNth(n, counter)
    for name in ("fsync", "replace", "write"):
        setattr(os, name, fail.wrap(getattr(os, name)))
    vars(utils.atomic)["open"] = fail.open


def intact(out: Path) -> None:
    """Every file that is there is whole, and no temporary one is left."""
    assert not list(out.rglob("*.tmp"))
    for _, path in Checkpoints(out / "checkpoints", frozenset(), {}).found():
        load(path)
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in out.rglob("point_cloud.ply"):
        read_gaussians(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene"))


def result(out: Path) -> bytes:
    return (out / "point_cloud" / "iteration_12" / "point_cloud.ply").read_bytes()


def test_every_single_failure_leaves_whole_files(root):
    count = ScriptProcess(command(root, root / "whole", **FLAGS), root / "whole.txt", partial(inject, -1, root / "n"))
    assert count.wait() == 0, count.text()
    operations = int((root / "n").read_text())
    assert operations > 20, "the injection must see the run's writes"
    for n in range(1, operations + 1):
        out, said = root / f"fail_{n}", root / f"fail_{n}.txt"
        process = ScriptProcess(command(root, out, **FLAGS), said, partial(inject, n, root / "unused"))
        assert process.wait() == 2, f"operation {n}: {process.text()}"
        last = process.text().strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert str(out) in last, f"operation {n}: {last}"
        intact(out)
        if n % 6 == 0:  # a resume after any of them gives the same bits; every sixth is shown
            again = ScriptProcess(command(root, out, **FLAGS), said)
            assert again.wait() == 0, again.text()
            assert result(out) == result(root / "whole")


def limit_file_size(size_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize("megabytes", [1, 5, 20])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, megabytes):
    root = write_scene(tmp_path)
    points = int(1.1e6 * megabytes / 720)  # a checkpoint has 720 bytes a Gaussian
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (points, 3)).astype(np.float32)
    write_points(root / "lr" / "points3d.ply", PointCloud(xyz, np.full((points, 3), 99, np.uint8)))
    out, flags = root / "out", FLAGS | {"iterations": 40, "max_gaussians": points}
    first = ScriptProcess(command(root, out, **flags), root / "first.txt")
    path = out / "checkpoints" / "iteration_10.safetensors"
    while not path.exists():
        assert first.process.is_alive(), first.text()
    first.signal(signal.SIGKILL)
    first.wait()
    before = path.read_bytes()
    second = ScriptProcess(command(root, out, **flags), root / "second.txt", partial(limit_file_size, megabytes << 20))
    assert second.wait() == 2, second.text()
    assert str(out) in second.text()
    assert "free some space" in second.text()
    intact(out)
    assert path.read_bytes() == before
