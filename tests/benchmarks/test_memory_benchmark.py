"""The benchmarks of memory and of simple_knn: they run, their rows are about the model and the points they name."""

import re
import sys

import pytest
import torch

from benchmarks import knn, memory
from scene.gaussians import FIELDS, Gaussians
from scene.ply import write_gaussians
from tests.scene_factory import write_blender
from utils.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@pytest.fixture
def trained(tmp_path):
    """A scene and the PLY of some Gaussians in it."""
    g = torch.Generator().manual_seed(0)
    shapes = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (1,), "sh0": (1, 3), "shN": (15, 3)}
    values = {name: torch.randn(500, *shapes[name], generator=g) * 0.5 for name in FIELDS}
    values["log_scales"] -= 3
    write_gaussians(tmp_path / "model.ply", Gaussians(**values))
    return write_blender(tmp_path / "scene", size=200), tmp_path / "model.ply"


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line][2:]


def test_each_limit_has_a_row(trained, monkeypatch, capsys):
    scene, ply = trained
    words = ["memory", "-s", str(scene), "--ply", str(ply), "--limit", "0", "400", "--threads", "1", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", words)
    memory.main()
    free, bound = cells(capsys.readouterr().out)
    assert free[:3] == ["none", "500", "200x200"]
    assert bound[:3] == ["400", "500", "200x200"]
    assert all(row[5] == "1" and float(row[3]) < 400 for row in (free, bound))


def test_the_probe_sees_memory_and_trains(trained):
    scene, ply = trained
    cameras, targets, six = memory.of_scene(scene, -1, ply)
    assert len(cameras) == len(targets) == 8
    found = memory.probe(cameras[:2], targets[:2], six, 0, steps=2)
    assert found["instances"] > 0
    assert found["bytes"] > 0
    assert found["seconds"] > 0
    memory.forget_peak()
    before = memory.resident_bytes()
    torch.ones(25_000_000)
    assert memory.resident_bytes("VmHWM") - before > 80_000_000


def test_limits_are_checked():
    with pytest.raises(UserError, match="--limit at least 0"):
        memory.parse(["-s", "a", "--ply", "b", "--limit", "-1"])


def test_knn_prints_a_row_for_each_number_of_points(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["knn", "--n", "2000", "5000", "--threads", "1", "--repeats", "2"])
    knn.main()
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["2000", "5000"]
    assert all(re.fullmatch(r"\d+\.\d\d", cell) for row in rows for cell in row[1:3])
