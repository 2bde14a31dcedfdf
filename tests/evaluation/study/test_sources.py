"""Tasks know their scenes by content: other files under the same path are another scene."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from arguments.study import ExecutorParams
from evaluation.study import sources
from evaluation.study.executors import execute
from evaluation.study.plan import Command, Plan, Task
from evaluation.study.sources import changed, fingerprint, sources_of
from evaluation.study.state import read_manifest, stale
from evaluation.study.tasks import LOGS
from tests.study_factory import COUNT, fake_task


@pytest.fixture(autouse=True)
def fresh():
    """As another process: nothing is known of files that were read before."""
    forget()


def forget() -> None:
    sources._stamp.cache_clear()
    sources._content.cache_clear()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "out")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    (tmp_path / "scene" / "train").mkdir(parents=True)
    (tmp_path / "scene" / "train" / "0.png").write_bytes(b"pixels")
    return tmp_path / "scene"


def reading(plan: Plan, scene: Path) -> Task:
    """A task that is given a scene as steps are."""
    task = fake_task(plan, "reader", COUNT)
    shell = task.commands[0].words
    plan.tasks["reader"] = replace(task, commands=(Command("look", (*shell, f"--source_path={scene}")),))
    return plan.tasks["reader"]


def run(plan: Plan) -> None:
    assert execute(plan, list(plan.tasks.values()), ExecutorParams()).complete
    forget()


def test_another_scene_in_the_same_place_is_told(plan, scene):
    task = reading(plan, scene)
    run(plan)
    manifest = read_manifest(plan.folder("reader"))
    assert list(manifest["sources"]) == ["--source_path"]
    assert stale(plan, task, manifest) == ""
    (scene / "train" / "0.png").write_bytes(b"pixelz")
    forget()
    assert stale(plan, task, manifest) == f"made from other content of {scene}"
    (scene / "train" / "0.png").write_bytes(b"pixels")  # other times, the same content
    forget()
    assert stale(plan, task, manifest) == ""
    del manifest["sources"]  # written by an earlier version
    assert stale(plan, task, manifest) == ""


@pytest.mark.parametrize("other", [True, False], ids=["other content", "the same, copied anew"])
def test_what_was_begun_from_another_scene_begins_anew(plan, scene, other):
    task = reading(plan, scene)
    words = task.commands[0].words
    counted = Command("x", words)
    broken = replace(task, commands=(counted, Command("y", ("sh", "-c", "exit 3"))))
    plan.tasks["reader"] = broken
    execute(plan, [broken], ExecutorParams())
    if other:
        (scene / "new.png").write_bytes(b"more")
    os.utime(scene / "train" / "0.png", (1, 1))
    whole = replace(task, commands=(counted, Command("y", ("true",))))
    plan.tasks["reader"] = whole
    run(plan)
    assert len((plan.folder("reader") / "0.txt").read_text().splitlines()) == 1 + other
    assert read_manifest(plan.folder("reader"))["attempts"] == 2 - other
    assert json.loads((plan.folder("reader") / LOGS / "progress.json").read_text())["sources"].keys() == {
        "--source_path"
    }


def test_a_fingerprint_is_of_names_and_contents_below_links_too(scene, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "images").symlink_to(scene / "train")
    for folder, name in ((scene, "a.json"), (scene, "train/1.png"), (tmp_path / "linked", "images/2.png")):
        before = fingerprint(folder)
        forget()
        assert not changed(folder, before)
        (folder / name).write_text("new")
        forget()
        assert changed(folder, before)
        forget()
    before = fingerprint(scene)
    (scene / ".lock").touch()
    os.utime(scene / "a.json", (1, 1))
    assert not changed(scene, before)  # a hidden file, and another time


def test_what_counts_as_a_source(plan, scene, tmp_path):
    inside = plan.out / "frames-1"
    inside.mkdir(parents=True)
    words = ("tool", "-s", str(scene), f"--hr_root={tmp_path / 'nothing'}", str(inside), "/", f"--init={scene}")
    later = ("-s", str(scene / "train"), "x" * 5000, "/" + "y" * 5000, str(tmp_path))
    task = replace(fake_task(plan, "a"), commands=(Command("command", words), Command("frames", later)))
    expected = {"-s": scene, "-s 1": scene / "train", "--init": scene}
    assert sources_of(task, plan.out) == expected  # tmp_path holds the tasks themselves


def test_a_scene_s_product_is_what_it_wrote(plan):
    fake_task(plan, "scene-1", "mkdir -p {folder}/lr && echo one > {folder}/lr/0.png")
    fake_task(plan, "frames-1", "true", needs=("scene-1",))
    run(plan)
    manifest = read_manifest(plan.folder("frames-1"))
    assert stale(plan, plan.tasks["frames-1"], manifest) == ""
    (plan.folder("scene-1") / "study.json").unlink()
    (plan.folder("scene-1") / LOGS / "progress.json").unlink()
    run(plan)  # the same scene
    assert stale(plan, plan.tasks["frames-1"], manifest) == ""
    (plan.folder("scene-1") / "study.json").unlink()
    (plan.folder("scene-1") / LOGS / "progress.json").unlink()
    fake_task(plan, "scene-1", "mkdir -p {folder}/lr && echo two > {folder}/lr/0.png")
    run(plan)
    assert stale(plan, plan.tasks["frames-1"], manifest) == "made from an earlier scene-1"
