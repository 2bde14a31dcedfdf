"""scripts/reproduce_tables.sh as it is called: its own executor and child processes, BasicVSR, two tiny scenes."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from evaluation.lpips import Lpips
from evaluation.study.plan import Plan
from evaluation.study.planner import make_plan
from evaluation.study.spec import read_study, with_overrides
from evaluation.study.state import read_manifest
from scene.images import read_image
from scene.ply import write_points
from scene.points import random_points
from tests.ordering.test_build import number_from_one
from tests.scene_factory import write_blender, write_colmap
from utils.errors import UserError
from utils.weights import resolve

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
VIEWS = {"chair": 7, "lego": 8}  # on a ring: some steps over 45 degrees, and none
KINDS = ("single", "s", "als")
FLAGS = ("--iterations", "60", "--save_iterations", "60", "--test_iterations", "60")
WITHOUT_LPIPS = (*FLAGS, "--no_lpips")


@pytest.fixture(autouse=True)
def network() -> None:
    """BasicVSR's weights are there, or the test says where they were looked for."""
    try:
        resolve("basicvsr_vimeo_bi")
    except UserError as error:
        pytest.skip(str(error))


def reproduce(root: Path, table: str, *flags: str) -> tuple[list[dict[str, list[str]]], str]:
    """Call the script in `root`, flags of run.py last: (cells by row of each table, what it wrote on stderr)."""
    scenes = sorted(path.name for path in (root / "data").iterdir())
    command = [str(ROOT / "scripts/reproduce_tables.sh"), "data", table, "--networks", "basicvsr", "--scenes", *scenes]
    command += ["--unchecked", "--out=out", "--devices=cpu", "--threads=1", "--", *flags]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tables: list[dict[str, list[str]]] = []
    for line in done.stdout.splitlines():
        name, *cells = [cell.strip("* ") for cell in line.split("|")[1:-1]] or [""]
        if name == "---":
            tables.append({})
        elif name and tables:
            tables[-1].setdefault(name.partition(" [")[0], cells)  # ours stand above the published row of that name
    return tables, done.stderr


def plan_of(root: Path, name: str, flags: tuple[str, ...]) -> Plan:
    """What the script's study file makes: which folder belongs to which row and scene."""
    return make_plan(with_overrides(read_study(root / f"out/{name}.toml"), flags, "test"), str(root / "out"))


def images(folder: Path) -> dict[str, np.ndarray]:
    """{file: [H, W, 3] in 0-255 on black} of a folder."""
    found = {path.name: read_image(path).astype(float) for path in sorted(folder.glob("*.png"))}
    return {k: np.rint(v[..., :3] * v[..., 3:] / 255) if v.shape[2] == 4 else v for k, v in found.items()}


def psnr(made: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Mean over images, by the definition."""
    return float(np.mean([10 * np.log10(255**2 / ((a - b) ** 2).mean()) for a, b in zip(made, truth, strict=True)]))


def differ(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Share of the frames with a pixel that differs by more than rounding."""
    return float(np.mean([np.abs(a[name] - b[name]).max() >= 3 for name in a]))


def test_table_4_and_table_2_of_basicvsr_on_two_scenes(tmp_path):
    for name, views in VIEWS.items():
        root = write_blender(tmp_path / "data" / name, views=views, test_views=2, size=64)
        write_points(root / "points3d.ply", random_points(300, half_extent=0.9))
    (table,), _ = reproduce(tmp_path, "T4", *WITHOUT_LPIPS)
    ours = ["basicvsr, frame by frame", "basicvsr, S (greedy)", "basicvsr, ALS"]
    assert list(table)[:3] == ours
    assert table["Sequence Matters, ALS"] == ["31.41", "0.9520", "0.0540"]
    assert table["Sequence Matters with VRT, S"] == ["31.25", "0.9505", "0.0557"]
    plan = plan_of(tmp_path, "nerf_synthetic", WITHOUT_LPIPS)
    runs = {(r.variant, r.scene): r for r in plan.runs}
    frames, scores = {}, []
    for kind, row in zip(KINDS, ours, strict=True):
        of_scenes = []
        for name, views in VIEWS.items():
            run = runs[f"{kind}-basicvsr", name]
            frames[kind, name] = images(plan.folder(run.frames) / "hr/train")
            assert len(frames[kind, name]) == views
            made = images(plan.folder(run.views) / "black/test/ours_60/renders")
            of_scenes.append(psnr(list(made.values()), list(images(tmp_path / "data" / name / "test").values())))
        scores.append(np.mean(of_scenes))
        assert float(table[row][0]) == pytest.approx(scores[-1], abs=0.006)  # what was drawn, not only what was said
        assert 0 < float(table[row][1]) < 1
    assert min(abs(a - b) for a, b in combinations(scores, 2)) > 0.001  # three rows, three models
    for name in VIEWS:
        for a, b in combinations(KINDS, 2):
            few = name == "chair" and (a, b) == ("single", "als")  # beyond the limits of ALS most frames stand alone
            assert differ(frames[a, name], frames[b, name]) > (0 if few else 0.5), (name, a, b)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.p*")}
    (again,), said = reproduce(tmp_path, "T4", *WITHOUT_LPIPS)
    assert again == table
    assert "20 of 20 tasks are done, 0 of them now" in said
    (jumps,), said = reproduce(tmp_path, "T2", *WITHOUT_LPIPS)
    assert "6 of 6 tasks are done, 0 of them now" in said  # the frames of table 4 serve
    assert before == {path: path.stat().st_mtime_ns for path in before}
    measured = read_manifest(plan.folder(runs["s-basicvsr", "chair"].frames))["results"]["black"]
    files = [f"{Path(view).name}.png" for view in measured["order"]["jumps"]["views"]]
    truth = images(tmp_path / "data/chair/train")
    assert 0 < len(files) < VIEWS["chair"]
    assert jumps["basicvsr, number of these frames"] == [str(len(files)), "0", str(len(files))]
    for kind, row in (("s", ours[1]), ("als", ours[2])):
        expected = psnr([frames[kind, "chair"][f] for f in files], [truth[f] for f in files])
        assert float(jumps[row][0]) == pytest.approx(expected, abs=0.006)
    assert jumps["Sequence Matters, ALS"][:2] == ["32.74", "34.73"]


def test_tables_9_to_11_of_basicvsr_with_lpips(tmp_path):
    try:
        Lpips(("LPIPS",))
    except UserError as error:
        pytest.skip(str(error))
    size, camera = (160, 128), (1, (140.0, 140.0, 80.0, 64.0))
    sparse = write_colmap(tmp_path / "data/room", views=9, size=size, model=camera) / "sparse/0/images.bin"
    numbered = bytearray(sparse.read_bytes())
    number_from_one(numbered)
    sparse.write_bytes(bytes(numbered))
    tables, _ = reproduce(tmp_path, "T9-11", *FLAGS)
    plan = plan_of(tmp_path, "mipnerf360", FLAGS)
    runs = {run.variant: run for run in plan.runs}
    rows = {"bicubic": "bicubic frames + 3DGS", "s-basicvsr": "basicvsr, S (greedy)", "als-basicvsr": "basicvsr, ALS"}
    for variant, row in (rows | {"hr": "3DGS on true HR (bound)"}).items():
        folder = plan.folder(runs[variant].views) / "black/test/ours_60"
        score = psnr(list(images(folder / "renders").values()), list(images(folder / "gt").values()))
        assert float(tables[0][row][0]) == pytest.approx(score, abs=0.006)
        assert all(0 < float(table[row][0]) < 1 for table in tables[1:])  # SSIM and LPIPS
    assert [table["Sequence Matters, ALS"][0] for table in tables] == ["31.52", "0.9123", "0.2218"]
    frames = [images(plan.folder(runs[variant].frames) / "hr/images") for variant in rows]
    assert len(frames[0]) == 9  # test views take part, as in the release
    assert min(differ(a, b) for a, b in combinations(frames, 2)) > 0
    again, said = reproduce(tmp_path, "T9-11", *FLAGS)
    assert again == tables
    assert "12 of 12 tasks are done, 0 of them now" in said
