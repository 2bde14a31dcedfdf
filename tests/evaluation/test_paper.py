"""The paper's tables: the study behind them, their cells, and all of them on tiny scenes through the pipeline."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import align_sequence
import metrics
import render
import train
import vsr_upsample
from arguments.flags import make
from arguments.paper import PaperParams
from arguments.training import OptimizationParams
from evaluation import frame_quality
from evaluation.paper import __main__ as paper
from evaluation.paper.study import BLENDER, MIP360, row_name, study_text
from evaluation.paper.tables import TABLES, Cells, jump_table, quality_tables
from evaluation.study import executors, tasks
from evaluation.study.planner import make_plan
from evaluation.study.results import Result
from evaluation.study.spec import read_study
from scene import downscale
from scene.check import SETS
from tests.ordering.test_build import number_from_one
from tests.scene_factory import write_blender, write_colmap
from utils import log
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--iterations", "6", "--save_iterations", "6", "--test_iterations", "6", "--no_lpips")
SCRIPTS = {
    **{f"{module.__name__}.py": module.main for module in (align_sequence, vsr_upsample, train, render, metrics)},
    "scene.downscale": downscale.main,
    "evaluation.frame_quality": frame_quality.main,
}


# --- the study file ---


def study_of(tmp_path, data, networks=("psrt",), corrected=False, seeds=(0,)):
    folders = {name: tmp_path / "my data" / name for name in data.scenes}
    path = tmp_path / "paper.toml"
    path.write_text(study_text(data, folders, networks, seeds, corrected))
    return read_study(path)


@pytest.mark.parametrize("data", [BLENDER, MIP360], ids=lambda d: d.name)
def test_every_row_and_scene_is_in_the_study(tmp_path, data):
    study = study_of(tmp_path, data, ("psrt", "basicvsr"))
    assert sorted(scene.name for scene in study.scenes) == sorted(SETS[data.name])
    rows = [f"{kind}-{network}" for network in ("psrt", "basicvsr") for kind in ("single", "s", "als")]
    assert [v.name for v in study.variants] == ["bicubic", *rows, "hr"]
    assert study.backgrounds == ("black",)
    for table in TABLES.values():
        if table.data is data:
            assert set(table.variants(["psrt", "basicvsr"])) <= {v.name for v in study.variants}


@pytest.mark.parametrize(
    ("data", "lambda_tex", "cost", "limits", "longest"),
    [(BLENDER, 0.6, "orb", (15, 30, 45), 100), (MIP360, 0.4, "pose", (30, 50), 8)],
    ids=lambda d: getattr(d, "name", None),
)
def test_variants_have_the_papers_settings(tmp_path, data, lambda_tex, cost, limits, longest):
    study = study_of(tmp_path, data)
    scene, als = study.scenes[0], study.variant("als-psrt")
    order = study.settings(scene, als, "order")
    assert (order["ordering"], order["cost"], tuple(order["thres_values"])) == ("als", cost, limits)
    assert (order["num_images_in_sequence"], order["compat"]) == (longest, "sequence_matters")
    assert study.settings(scene, als, "upsample")["upsampler"] == "psrt"
    assert make(OptimizationParams, study.settings(scene, als, "train")).lambda_tex == lambda_tex
    assert study.settings(scene, study.variant("single-psrt"), "upsample")["propagation"] == "none"
    assert study.settings(scene, study.variant("s-psrt"), "order")["ordering"] == "greedy"
    assert study.settings(scene, als, "metrics")["lpips"] == ["LPIPS"]
    corrected = study_of(tmp_path, data, corrected=True)
    assert not corrected.settings(scene, corrected.variant("als-psrt"), "order").get("compat")
    flow = corrected.settings(scene, corrected.variant("als-psrt"), "upsample")
    assert (flow["flow"], flow["propagation"], flow["max_angle"]) == ("learned", "path", 180.0)
    assert ("--compat" in corrected.scenes[0].prepare[0]) == (data is MIP360)


def test_folders_with_spaces_and_networks_of_the_users_own(tmp_path):
    study = study_of(tmp_path, BLENDER, ("my_lab.net:load",))
    plan = make_plan(study, str(tmp_path / "out"))
    (prepared,) = {c.words for t in plan.tasks.values() if t.kind == "scene" and t.scene == "lego" for c in t.commands}
    assert str(tmp_path / "my data/lego") in prepared
    assert row_name("als", "my_lab.net:load") in {v.name for v in study.variants}
    own = PaperParams(networks=("a:b", "a_b"), out=str(tmp_path))
    with pytest.raises(UserError, match="differ only in characters"):
        paper.write_study(BLENDER, {}, own)


# --- the cells ---


def results(variants, scenes, seeds=(0,), views=200):
    found = []
    for i, variant in enumerate(variants):
        for j, scene in enumerate(scenes):
            for seed in seeds:
                value = {"PSNR": 20.0 + i + j / 10 + seed, "SSIM": 0.9, "LPIPS": 0.05}
                found.append(Result(scene, variant, seed, {"black": {f"{v}": value for v in range(views)}}))
    return found


def lines(table):
    return {row[0].partition(" [")[0]: row[1:] for row in [*table.rows, *table.below]}


def test_table_4_sets_our_means_above_the_papers():
    table, scenes = TABLES["T4"], BLENDER.scenes
    (made,) = quality_tables(table, ["psrt"], scenes, Cells(results(table.variants(["psrt"]), scenes), [0]))
    found = lines(made)
    assert found["psrt, ALS"] == ["22.35", "0.9000", "0.0500"]
    assert found["Sequence Matters, ALS"] == ["31.41", "0.9520", "0.0540"]
    assert found["Sequence Matters with VRT, ALS"] == ["31.37", "0.9516", "0.0544"]
    assert "SRGS" not in found  # of table 3
    assert not any("NOT COMPARABLE" in note for note in made.notes)
    few = Cells(results(table.variants(["psrt"]), scenes[:2], views=25), [0])
    (made,) = quality_tables(table, ["psrt"], scenes[:2], few)
    assert "means are over all 8: NOT COMPARABLE" in made.caption
    assert all("200 test views, ours 25" in note for note in made.notes)


def test_table_3_has_the_other_papers_and_what_forbids_comparing():
    table = TABLES["T3"]
    (made,) = quality_tables(table, ["psrt"], BLENDER.scenes, Cells([], [0]))
    found = lines(made)
    assert found["psrt, ALS"] == ["-", "-", "-"]
    assert {"SRGS", "GaussianSR", "FastSR-NeRF", "ZS-SRT", "3DGS on true HR (bound)"} <= set(found)
    assert "Sequence Matters with VRT, ALS" not in found
    assert any("NOT COMPARABLE: white background, ours black" in note for note in made.notes)


def test_tables_9_to_11_have_means_of_nine_and_of_seven_scenes():
    table, scenes = TABLES["T9-11"], MIP360.scenes
    cells = Cells(results(table.variants(["psrt"]), scenes), [0])
    psnr, ssim, lpips = quality_tables(table, ["psrt"], scenes, cells)
    assert psnr.header == ["PSNR", *scenes, "mean of 9", "mean of 7"]
    values = [20.0 + j / 10 for j in range(9)]
    seven = [v for v, scene in zip(values, scenes, strict=True) if scene not in ("flowers", "treehill")]
    assert lines(psnr)["bicubic frames + 3DGS"][-2:] == ["20.40", f"{np.mean(seven):.2f}"]  # ours, not the paper's
    assert psnr.rows[0][-2:] == ["20.40", f"{np.mean(seven):.2f}"]
    assert lines(psnr)["Sequence Matters, ALS"][-2:] == ["27.02", "28.54"]
    assert lines(ssim)["Sequence Matters, ALS"][-2] == "0.7741"
    assert lines(lpips)["Sequence Matters, ALS"][-2] == "0.2774"


def test_a_cell_is_empty_until_all_its_seeds_are_there():
    scenes = BLENDER.scenes[:2]
    found = results(["bicubic"], scenes, seeds=(0, 1))
    assert Cells(found, [0, 1]).mean("bicubic", scenes, "PSNR") == pytest.approx(20.55)
    assert Cells(found, [0, 1]).value("bicubic", scenes[0], "FVD") is None
    assert Cells(found[1:], [0, 1]).value("bicubic", scenes[0], "PSNR") is None
    assert Cells(found[1:], [0, 1]).mean("bicubic", scenes, "PSNR") is None


def test_table_2_scores_the_views_of_s_in_both_orderings():
    def measured(psnr, views):
        per_view = {f"v{i}": {"PSNR": psnr + i} for i in range(4)}
        return {"per_view": per_view, "order": {"jumps": {"views": views}}}

    frames = {
        ("s-psrt", "chair"): measured(30.0, ["v1", "v3"]),
        ("als-psrt", "chair"): measured(31.0, []),
        ("s-psrt", "lego"): measured(20.0, []),  # no jump: no cell
        ("als-psrt", "lego"): measured(20.0, ["v0"]),
    }
    found = lines(jump_table(TABLES["T2"], ["psrt"], ["chair", "lego", "ship"], frames))
    assert found["psrt, S (greedy)"] == ["32.00", "-", "-", "-"]
    assert found["psrt, ALS"] == ["33.00", "-", "-", "-"]
    assert found["psrt, number of these frames"] == ["2", "0", "-", "-"]
    assert found["Sequence Matters, S (greedy)"] == ["32.11", "33.30", "30.03", "31.81"]


# --- what is missing is said ---


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["paper", *map(str, words)])
    paper.main()


def test_missing_data_are_named_before_anything_runs(tmp_path, monkeypatch):
    write_blender(tmp_path / "nerf_synthetic/lego", views=3, size=32)
    out = ("--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"7 of 8 scenes are missing .*chair: the folder is not there; python -m scene"):
        run(monkeypatch, tmp_path, "T4", *out)
    with pytest.raises(UserError, match=r"1 of 1 scenes .*lists 3 views, the data set has 100"):
        run(monkeypatch, tmp_path, "T4", *out, "--scenes", "lego")
    with pytest.raises(UserError, match="--scenes bonsai: the scenes of nerf_synthetic are chair"):
        run(monkeypatch, tmp_path, "T4", *out, "--scenes", "bonsai")
    with pytest.raises(UserError, match=r"DATA \{T2,T3"):
        run(monkeypatch, tmp_path, "T5")
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_named_before_anything_runs(tmp_path, monkeypatch):
    write_blender(tmp_path / "lego", views=3, size=32)
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path / "cache"))
    words = (tmp_path, "T2", "--scenes", "lego", "--unchecked", "--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"s-psrt: weights psrt_vimeo not found; .*fetch PSRT_Vimeo.pth from https://"):
        run(monkeypatch, *words)
    assert not list((tmp_path / "out").glob("frames-*"))


# --- all of it on tiny scenes ---


@pytest.fixture
def here(monkeypatch):
    """Tasks run in this process: no start of a Python each. Returns the names of the commands that ran."""
    ran = []

    def run_child(words, environment, output, cwd, bound):
        name, *arguments = words[2:] if words[1] == "-m" else words[1:]
        ran.append(Path(name).name)
        with monkeypatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr("sys.argv", [name, *arguments])
            SCRIPTS[Path(name).name]()
        return 0

    def execute(plan, todo, params):
        outcome = executors.Outcome()
        for name in executors.unfinished(plan, todo, False):
            assert tasks.carry_out(executors.write_order(plan, plan.tasks[name]), tasks.Machine("cpu", 1)) == 0
            outcome.made.add(name)
        outcome.done = {task.id for task in todo}
        return outcome

    monkeypatch.setattr(tasks, "run_child", run_child)
    monkeypatch.setattr(executors, "execute", execute)
    yield ran
    log.set_quiet(False)


def shown(capsys):
    return [[cell.strip("* ") for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]


def test_two_tiny_scenes_give_every_table_of_nerf_synthetic(tmp_path, monkeypatch, here, capsys):
    for name in ("chair", "lego"):
        write_blender(tmp_path / name, views=4, test_views=2, size=64)
    common = ("--scenes", "chair", "lego", "--unchecked", "--networks", "bicubic", "--out", tmp_path / "out", "--quiet")
    run(monkeypatch, tmp_path, "T2", *common)
    table = {row[0]: row[1:] for row in shown(capsys) if row}
    assert "train.py" not in here  # frames only
    first = len(here)
    assert table["bicubic, number of these frames"] == ["4", "4", "8"]  # four views on a ring: every step is a jump
    assert 15 < float(table["bicubic, ALS"][2]) < 40
    run(monkeypatch, tmp_path, "T2", *common)
    assert len(here) == first  # nothing is made twice
    capsys.readouterr()
    run(monkeypatch, tmp_path, "T3", *common, "--output", tmp_path / "t.md", "--", *TINY)
    rows = shown(capsys)
    assert [row[0] for row in rows[2:5]] == list(TABLES["T3"].variants(["bicubic"]).values())
    assert all(float(row[1]) > 5 and row[3] == "-" for row in rows[2:5])  # PSNR, and LPIPS left out
    assert here[first:].count("train.py") == 6
    assert here[first:].count("vsr_upsample.py") == 0  # the frames are there: with bicubic as network, S makes its row
    written = (tmp_path / "t.md").read_text()
    assert "| bicubic, ALS |" in written
    assert "The paper reports no bicubic: compare rows of one network" in written
    assert "NOT COMPARABLE with published cells: all rows of ours with --iterations=6" in written
    manifest = next((tmp_path / "out").glob("frames-*/study.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"code": content["code"] | {"upsample": "another"}}))
    capsys.readouterr()
    for name, overrides in (("T2", ()), ("T3", ("--", *TINY))):
        run(monkeypatch, tmp_path, name, *common, "--only_table", *overrides)
        assert "tasks were made by other code or from other results; status says which." in capsys.readouterr().out
    manifest.write_text(json.dumps(content))
    before = len(here)
    run(monkeypatch, tmp_path, "T6-8", *common, "--only_table", "--", *TINY)
    psnr = {row[0]: row[1:] for row in shown(capsys)[:7]}
    means = [float(psnr["bicubic, ALS"][2]), float(rows[3][1])]
    assert means[0] == means[1] == pytest.approx(np.mean([float(x) for x in psnr["bicubic, ALS"][:2]]), abs=0.011)
    assert psnr["bicubic, frame by frame"] == ["-", "-", "-"]  # not run, not invented
    assert len(here) == before


def test_two_tiny_scenes_give_the_tables_of_mip_nerf_360(tmp_path, monkeypatch, here, capsys):
    for name in ("flowers", "room"):
        root = write_colmap(
            tmp_path / "mipnerf360" / name, views=9, size=(160, 128), model=(1, (140.0, 140.0, 80.0, 64.0))
        )
        images = bytearray((root / "sparse/0/images.bin").read_bytes())
        number_from_one(images)
        (root / "sparse/0/images.bin").write_bytes(bytes(images))
    common = (
        "--scenes",
        "flowers",
        "room",
        "--unchecked",
        "--networks",
        "bicubic",
        "--out",
        tmp_path / "out",
        "--quiet",
    )
    run(monkeypatch, tmp_path, "T9-11", *common, "--", *TINY)
    table = {row[0]: row[1:] for row in shown(capsys)[:6]}
    assert list(table) == ["PSNR", "---", *TABLES["T9-11"].variants(["bicubic"]).values()]
    assert table["PSNR"] == ["flowers", "room", "mean of 2", "mean of 1"]
    assert all(float(cell) > 5 for row in list(table.values())[2:] for cell in row)


def test_the_script_says_how_it_is_used_and_what_would_be_run(tmp_path):
    def script(*words):
        command = [ROOT / "scripts/reproduce_tables.sh", *map(str, words)]
        environment = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert script().returncode == 2
    assert "Usage: scripts/reproduce_tables.sh DATA TABLE" in script().stderr
    write_blender(tmp_path / "lego", views=3, size=32)
    planned = script(".", "T4", "--scenes", "lego", "--unchecked", "--networks", "bicubic", "--dry_run", "--", *TINY)
    assert planned.returncode == 0, planned.stderr
    assert "3 runs, 10 tasks (1 scene, 3 frames, 3 model, 3 views)" in planned.stdout
    assert (tmp_path / "output/paper/nerf_synthetic.toml").is_file()
