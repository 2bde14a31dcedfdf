"""The examples of docs/extending.md as they stand, through the commands that the page shows."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import align_sequence
import vsr_upsample
from scene import load_scene
from scene.images import read_image
from scene.paths import Roots
from scene.sequences import read_sequences
from tests.scene_factory import opengl_poses, picture, world_to_camera, write_blender

PAGE = (Path(__file__).resolve().parents[1] / "docs/extending.md").read_text()
EXAMPLE = re.compile(r"<!-- example: (\w+) -->\n```python\n(.*?)^```\n", re.S | re.M)
FILES = {"ordering": "orders.py", "cost": "costs.py", "network": "net.py", "neighbour": "near.py"}
PLUGINS = sorted(FILES)
SCRIPTS = {"align_sequence.py": align_sequence.main, "vsr_upsample.py": vsr_upsample.main}


def example(name: str) -> str:
    return next(code for found, code in EXAMPLE.findall(PAGE) if found == name)


def command(module: str) -> list[str]:
    """The words of the page's one command that names my_lab.MODULE."""
    (line,) = re.findall(rf"^PYTHONPATH=\. python (.* my_lab\.{module}:.*)$", PAGE, re.M)
    return shlex.split(line)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with all files of the page in my_lab/, and a scene."""
    (tmp_path / "my_lab").mkdir()
    for name, file in FILES.items():
        (tmp_path / "my_lab" / file).write_text(example(name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield write_blender(tmp_path / "scene", views=5)
    for name in [n for n in sys.modules if n.partition(".")[0] == "my_lab"]:
        sys.modules.pop(name)


def run(monkeypatch, lab, words, *more):
    """Run a command of the page on the scene; its output folder is `out` beside the scene."""
    folders = {"LR_SCENE": str(lab), "OUT": str(lab.parent / "out")}
    monkeypatch.setattr("sys.argv", [*(folders.get(word, word) for word in words), *more, "--quiet"])
    SCRIPTS[words[0]]()
    return lab.parent / "out"


def test_the_page_names_its_files():
    assert {name for name, _ in EXAMPLE.findall(PAGE)} >= set(FILES)
    for file in FILES.values():
        assert f"`my_lab/{file}`" in PAGE


@pytest.mark.parametrize("name", PLUGINS)
def test_ten_lines_are_enough(name):
    assert len([line for line in example(name).splitlines() if line.strip()]) <= 10


def test_example_of_an_ordering(lab, monkeypatch):
    out = run(monkeypatch, lab, command("orders"))
    assert read_sequences(out / "sequences.json").saved == tuple(reversed(load_scene(lab).train))


def test_example_of_a_cost(lab, monkeypatch):
    out = run(monkeypatch, lab, command("costs"))
    found = read_sequences(out / "sequences.json")
    assert (found.cost, found.unit) == ("my_lab.costs:brightness", "grey levels")
    scene = load_scene(lab)
    grey = [float(scene.images.load(name).mean()) * 255 for name in found.saved]
    assert found.step_costs() == pytest.approx(np.abs(np.diff(grey)), abs=1e-3)
    assert abs(grey[1] - grey[0]) == min(abs(g - grey[0]) for g in grey[1:])  # the nearest to the first comes next


def test_example_of_a_network(lab, monkeypatch):
    run(monkeypatch, lab, command("orders"))
    out = run(monkeypatch, lab, command("net"), "--scale", "3")
    scene = load_scene(lab)
    for name in scene.train:
        small, large = read_image(scene.images.path(name)), read_image(out / f"hr/{name}.png")
        assert large.shape == (96, 96, 4)
        opaque = small[..., 3] == 255
        assert (large[1::3, 1::3][opaque] == small[opaque]).all()
        assert (large.reshape(32, 3, 32, 3, 4)[:, :, :, 0] == large.reshape(32, 3, 32, 3, 4)[:, :, :, 2]).all()


def test_a_changed_module_makes_the_step_run_again(lab, monkeypatch):
    run(monkeypatch, lab, command("orders"))

    def made():
        out = run(monkeypatch, lab, command("net"), "--scale", "3", "--skip_done")
        return json.loads((out / "run.json").read_text())["steps"]["upsample"]

    first = made()
    assert made() == first
    with open(lab.parent / "my_lab/net.py", "a") as opened:
        opened.write("# changed\n")
    second = made()
    assert {group for group in first["inputs"] if second["inputs"][group] != first["inputs"][group]} == {"plugins"}


def test_example_of_a_neighbour_cost(lab, monkeypatch):
    """BasicVSR with random weights: which views a view gets features from is what the example says."""
    run(monkeypatch, lab, command("orders"))
    network = ("--upsampler", "basicvsr", "--random_weights", "--neighbours", "1", "--max_angle", "180")
    out = run(monkeypatch, lab, command("near"), *network)
    found = json.loads((out / "hr/alignment.json").read_text())
    assert found["propagation"] == "graph"
    number = {name: i for i, name in enumerate(load_scene(lab).train)}
    for name, view in found["views"].items():
        assert all(abs(number[n["name"]] - number[name]) == 1 for n in view["neighbours"])
        assert view["neighbours"]


def test_example_of_a_reader(tmp_path):
    from PIL import Image

    lines = []
    for i, pose in enumerate(opengl_poses(9)):
        Image.fromarray(picture(i, 8, 6)).save(tmp_path / f"{i}.png")
        numbers = world_to_camera(pose).flatten().tolist()
        lines.append(",".join([f"{i}.png", "20.5", *map(repr, numbers)]))
    (tmp_path / "poses.csv").write_text("\n".join(lines))
    made: dict = {}
    exec(example("reader"), made)
    capture = made["read_csv"](Roots(tmp_path), evaluate=True, allow_missing=False)
    assert (capture.train, capture.test) == (["1", "2", "3", "4", "5", "6", "7"], ["0", "8"])
    assert capture.views[3].K.tolist() == [[20.5, 0, 4], [0, 20.5, 3], [0, 0, 1]]
    assert np.allclose(capture.views[3].world_to_camera, world_to_camera(opengl_poses(9)[3]))
