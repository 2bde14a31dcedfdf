"""A whole study of a tiny scene through the pipeline's scripts: run, status, table, and what is made again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.study.__main__ import ACTIONS, main, show_status
from evaluation.study.executors import worker_environment
from evaluation.study.planner import make_plan
from evaluation.study.results import read_results
from evaluation.study.spec import read_study
from evaluation.study.tasks import LOGS
from tests.evaluation_factory import write_scenes
from utils.errors import UserError
from utils.locks import LOCK_NAME

TOML = """
out = "{out}"
baseline = "bicubic"
backgrounds = ["black"]
config = "config.toml"
[scenes.toy]
source = "{lr}"
hr = "{hr}"
[variants.bicubic]
upsample = {{upsampler = "bicubic"}}
[variants.mip-lr]
steps = ["train"]
flags = {{antialiasing = true, dilation = 0.1}}
[variants.broken]
steps = ["train"]
train = {{init_ply = "nowhere.ply"}}
"""
CONFIG = """
[scene]
eval = true
sh_degree = 1
[order]
ordering = "file"
[train]
iterations = 12
init_points = "scene"
save_iterations = [12]
test_iterations = [12]
[metrics]
no_lpips = true
"""


def study(path: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "evaluation.study", str(path), *words]
    return subprocess.run(command, env=worker_environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    root = tmp_path_factory.mktemp("study")
    lr, hr = write_scenes(root)
    (root / "config.toml").write_text(CONFIG)
    (root / "study.toml").write_text(TOML.format(out=root / "out", lr=lr, hr=hr))
    return root, study(root / "study.toml", "run", "--slots=2", "--threads=1", "--devices=cpu")


def test_one_model_of_the_lr_views_serves_all_seeds_on_request(tmp_path):
    lr, _ = write_scenes(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    text = f"config = 'config.toml'\nseeds = [0, 1]\n[scenes.toy]\nsource = '{lr}'\n"
    text += "[variants.start]\ntrain = {init_points = 'lr_model'}\n"
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "one.toml").write_text("lr_model_seed = 1\n" + text)
    own, one = (make_plan(read_study(tmp_path / name), str(tmp_path)) for name in ("own.toml", "one.toml"))
    seeds = [{t.seed for t in p.tasks.values() if t.kind == "lr"} for p in (own, one)]
    assert seeds == [{0, 1}, {1}]
    assert {t.seed for t in one.tasks.values() if t.kind == "model"} == {0, 1}
    assert own.runs[1] == one.runs[1]  # the seed that is its own gives the same tasks
    for wrong in ("-1", "true", "'0'"):
        (tmp_path / "wrong.toml").write_text(f"lr_model_seed = {wrong}\n" + text)
        with pytest.raises(UserError, match=r"lr_model_seed = .*; a number from 0 is expected"):
            read_study(tmp_path / "wrong.toml")


def test_what_fails_is_told_and_the_rest_is_done(done):
    root, first = done
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    failed = [line for line in first.stdout.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert "train ended with exit code 2: error: " in failed[0]
    assert "nowhere.ply" in failed[0]
    assert "ETA" in first.stderr
    status = study(root / "study.toml", "status").stdout
    assert "1 failed" in status
    assert "5 done, 1 failed, 1 waiting" in status


def test_the_table_compares_what_is_there(done, tmp_path):
    root, _ = done
    options = ("--metrics", "PSNR", "SSIM", "--format", "csv", "--json", str(tmp_path / "r.json"))
    table = study(root / "study.toml", "table", *options)
    assert table.returncode == 0, table.stderr
    lines = [line.split(",") for line in table.stdout.splitlines() if line.startswith(("toy,", "scene,"))]
    header, cells = lines[0], {(row[1], row[2]): row for row in lines[1:]}
    assert set(cells) == {("black", "bicubic"), ("black", "mip-lr")}
    assert cells["black", "mip-lr"][header.index("antialiasing")] == "True"
    assert cells["black", "mip-lr"][header.index("frame_PSNR")] == "-"
    assert float(cells["black", "bicubic"][header.index("frame_PSNR")]) > 15
    runs = read_results(tmp_path / "r.json")
    assert {r.protocols["black"].resolution for r in runs} == {"48x48"}  # LR models too: at the truth's size
    assert all(r.peak_MB > 50 and r.seconds > 0 for r in runs)
    assert {r.variant: set(r.fit) for r in runs} == {"bicubic": {"frames", "lr"}, "mip-lr": set()}
    assert float(cells["black", "bicubic"][header.index("fit_PSNR")]) > 5
    assert cells["black", "mip-lr"][header.index("fit_PSNR")] == "-"


def test_a_second_run_does_nothing_and_new_measures_train_nothing(done):
    root, _ = done
    models = {p: p.stat().st_mtime_ns for p in (root / "out").glob("model-*/study.json")}
    assert len(models) == 2
    part = ("--variants", "mip-lr", "--devices", "cpu")
    again = study(root / "study.toml", "run", *part)
    assert again.returncode == 0
    assert "0 of them now" in again.stderr
    more = study(root / "study.toml", "run", *part, "--", "--scale_modifier", "0.5")
    assert more.returncode == 0, more.stderr
    assert "1 of them now" in more.stderr
    assert models == {p: p.stat().st_mtime_ns for p in (root / "out").glob("model-*/study.json")}


def test_manifests_say_how_results_were_made(done):
    root, _ = done
    manifests = [json.loads(p.read_text()) for p in (root / "out").glob("*/study.json")]
    model = next(m for m in manifests if m["kind"] == "model" and m["needs"])
    assert model["settings"]["./train"]["iterations"] == 12
    assert model["commands"][0]["words"][0] == "train.py"
    assert model["commands"][0]["peak_bytes"] > 50e6
    assert model["code"]["train"]
    assert model["versions"]["torch"]
    assert model["machine"] == {"device": ["cpu"], "precision": []}
    assert set(model["results"]["measured"]) == {"test", "train", "frames", "lr"}
    frames = next(m for m in manifests if m["kind"] == "frames")
    assert frames["machine"]["device"] == ["cpu"]
    assert frames["machine"]["precision"][0] in ("float32", "bfloat16")
    home = os.path.expanduser("~")
    assert not any(home in word for m in manifests for c in m["commands"] for word in c["words"])
    assert not list((root / "out").glob("model-*/checkpoints"))


def test_a_task_whose_worker_was_killed_is_not_waiting(tmp_path, capsys):
    text = '[scenes.a]\nsource = "nowhere"\n[variants.x]\nupsample = {upsampler = "bicubic"}\n'
    (tmp_path / "s.toml").write_text(text + 'train = {init_points = "hull"}\n')
    plan = make_plan(read_study(tmp_path / "s.toml"), str(tmp_path / "out"))
    logs = plan.folder(plan.runs[0].model) / LOGS
    logs.mkdir(parents=True)
    (logs / LOCK_NAME).touch()  # its holder is gone
    show_status(plan)
    told = capsys.readouterr().out
    assert "1 cut short, 2 waiting" in told
    assert next(line for line in told.splitlines() if "cut short" in line).startswith(plan.runs[0].model)


def test_the_help_says_what_each_action_does(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"`{action}` " in told for action in ACTIONS)
    assert "`run` carries them out, and the same command goes on after a stop;" in told
