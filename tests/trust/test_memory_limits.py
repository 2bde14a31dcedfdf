"""Too little memory at ten levels: training finishes, or ends with code 2 and names a flag that lowers its need."""

import re
import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from scene.ply import write_points
from scene.points import PointCloud
from tests.forked import ScriptProcess
from tests.training_factory import command, write_scene

POINTS = 60_000


def limit_memory(extra_bytes: int) -> None:
    """In the child: address space for what is mapped now and `extra_bytes` more."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra_bytes, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_scene(tmp_path_factory.mktemp("scene"))
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (POINTS, 3)).astype(np.float32)
    write_points(root / "lr" / "points3d.ply", PointCloud(xyz, np.full((POINTS, 3), 99, np.uint8)))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [1, 5, 20, 40, 60, 80, 120, 160, 240, 1000])
def test_training_finishes_or_names_a_flag(root, megabytes):
    said = root / f"{megabytes}.txt"
    argv = command(root, root / f"out_{megabytes}", iterations=20, max_gaussians=POINTS + 10_000)
    process = ScriptProcess(argv, said, partial(limit_memory, megabytes << 20))
    code = process.wait(120)
    text = process.text()
    assert code in (0, 2), f"exit {code}: {text}"
    assert "Traceback" not in text
    if megabytes in (1, 1000):
        assert code == (2 if megabytes == 1 else 0), text
    if code == 2:
        assert re.search(r"--(max_gaussians|r\b|resolution|max_memory)|-r ", text.splitlines()[-1]), text
