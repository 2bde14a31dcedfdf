"""What --flow, --propagation and their like mean: decided once, recorded, and the same frames however they are made."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vsr_upsample
from arguments.loading import ModelParams
from arguments.upsampling import PATH_ONLY, SINGLE_IMAGE, UpsamplingParams
from scene import load_scene
from scene.images import read_image, write_png
from scene.sequences import FILE_NAME, Sequences, Subsequence, write_sequences
from tests.scene_factory import picture, write_blender
from tests.upsampling import made_views
from tests.upsampling.test_run import Recorder
from upsampling import Job, _images, describe, load, run
from upsampling.aligner import Aligner
from upsampling.alignment import Alignment, Graph
from upsampling.neighbours import NEIGHBOUR_COSTS, neighbour_cost
from upsampling.planes import alpha_plane, colour_plane, joined
from upsampling.registry import NETWORKS
from upsampling.sources import folder_source, scene_source
from upsampling.spandrel import SpandrelUpsampler
from utils.errors import UserError

CPU = torch.device("cpu")
VIEWS = 6


class GraphRecorder(Recorder):
    """Takes graphs, says how much memory it wants, and remembers the alignments."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.size, self.alignments = size, []

    def graph_bytes(self, t: int, h: int, w: int, in_file: bool, learned: bool) -> int:
        return self.size * (1 if in_file else t)

    def upsample(self, frames, alignment=None):
        self.alignments.append(alignment)
        return super().upsample(frames, alignment)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """OUT of a scene of six RGBA views of 16x16 px about the origin, with a schedule and depths of a ball."""
    root, out = write_blender(tmp_path / "scene", views=VIEWS, size=16), tmp_path / "out"
    scene = load_scene(root)
    write_sequences(out / FILE_NAME, Sequences((Subsequence(tuple(scene.train), tuple(range(VIEWS))),)))
    for name in scene.train:
        path = out / "geometry" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        z = made_views.depth(scene.cameras[name], table=False).astype(np.float32)
        np.savez_compressed(path, z=z, alpha=(z > 0).astype(np.float32))
    return out


def source_of(out: Path, compat: str = "", **flags: object):
    model = ModelParams(source_path=str(out.parent / "scene"), model_path=str(out), eval=True)
    return scene_source(model, UpsamplingParams(**flags), out, compat)  # type: ignore[arg-type]


def aligner_of(out: Path, net: object, compat: str = "", **flags: object) -> Aligner:
    return Aligner.of(UpsamplingParams(**flags), source_of(out, compat, **flags), net, compat)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "compat", "net", "expected"),
    [
        ({}, "", GraphRecorder(), ("geometry", "graph", 30)),
        ({}, "", Recorder(), ("geometry", "path", 30)),  # a network that takes no graph
        ({"flow": "learned"}, "", GraphRecorder(), ("learned", "path", 20)),
        ({"flow": "learned", "propagation": "graph"}, "", GraphRecorder(), ("learned", "graph", 20)),
        ({"propagation": "path", "max_angle": 12.0}, "", GraphRecorder(), ("geometry", "path", 12)),
        ({}, "sequence_matters", GraphRecorder(), ("learned", "path", 180)),
        ({"flow": "geometry"}, "sequence_matters", GraphRecorder(), ("geometry", "graph", 180)),
        ({"propagation": "none"}, "", GraphRecorder(), ("learned", "none", 20)),
    ],
)
def test_what_auto_means(out, flags, compat, net, expected):
    found = aligner_of(out, net, compat, **flags)
    assert (found.flow, found.propagation, found.max_angle_deg) == expected


def test_without_depths_auto_is_learned_and_geometry_an_error(out):
    for path in (out / "geometry").rglob("*.npz"):
        path.unlink()
    with pytest.raises(UserError, match=r"view train/r_0 has no depth; make all anew with render\.py --geometry"):
        source_of(out)
    (out / "geometry").rename(out / "elsewhere")
    assert aligner_of(out, GraphRecorder()).flow == "learned"
    with pytest.raises(UserError, match=r"--flow geometry: there is no .*geometry; run\.py makes it"):
        source_of(out, flow="geometry")
    with pytest.raises(UserError, match="has no depth"):
        source_of(out, flow="geometry", geometry=str(out / "elsewhere"))


def test_depths_are_inputs_of_the_step_only_where_they_are_used(out):
    files = [out / "geometry" / f"train/r_{i}.npz" for i in range(VIEWS)]
    assert source_of(out).inputs["geometry"] == files
    for flags in ({"flow": "learned"}, {"propagation": "none"}, {"upsampler": "bicubic"}):
        assert "geometry" not in source_of(out, **flags).inputs


def test_a_graph_needs_a_network_that_takes_one_and_cameras(out, tmp_path):
    with pytest.raises(UserError, match="--propagation graph: basicvsr propagates along a path only"):
        aligner_of(out, Recorder(), propagation="graph")
    with pytest.raises(UserError, match="--propagation graph: psrt propagates along a path only"):
        UpsamplingParams(upsampler="psrt", propagation="graph")  # before anything is trained for its depth
    with pytest.raises(UserError, match="a folder has no cameras"):
        UpsamplingParams(frames="a", output_path="b", propagation="graph")
    write_png(tmp_path / "lr" / "f.png", picture(0, 8, 8))
    folder = Aligner.of(UpsamplingParams(), folder_source(tmp_path / "lr", ""), GraphRecorder(), "")  # type: ignore[arg-type]
    assert (folder.flow, folder.propagation, folder.angles_deg(("f",))) == ("learned", "path", None)


def test_views_without_neighbours_are_said_to_have_none(out, capsys):
    near = aligner_of(out, GraphRecorder(), max_angle=180.0)
    assert near.describe().endswith(f"; {sum(near.neighbours) / VIEWS:.1f} neighbours a view")
    assert (min(near.neighbours), near.loners()) == (3, "")
    run(job(out, GraphRecorder(), "alone", max_angle=0.001, propagation="graph"))
    told = capsys.readouterr().err
    assert "; 0.0 neighbours a view" in told
    assert f"warning: {VIEWS} of {VIEWS} views get nothing from another view: none is within 0.001 degrees" in told


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_flags_know_which_networks_look_at_one_image_and_which_take_a_graph(name):
    if name == "spandrel":  # it is built from a file alone
        net: object = SpandrelUpsampler
    else:
        net = load(UpsamplingParams(upsampler=name, random_weights=True, precision="fp32"), None, CPU)
    assert (net.num_neighbours == 0) == (name in SINGLE_IMAGE)
    assert (net.num_neighbours > 0 and not hasattr(net, "graph_bytes")) == (name in PATH_ONLY)


def test_a_path_hands_nothing_on_over_a_wide_angle(out):
    names = [f"train/r_{i}" for i in range(VIEWS)]
    angles = np.array(aligner_of(out, Recorder()).angles_deg(names))
    steps = np.diag(angles, 1)
    limit = float(np.sort(steps)[2] + 1e-6)
    path = aligner_of(out, Recorder(), max_angle=limit).alignment(names, CPU, out)
    assert isinstance(path, Alignment)
    assert path.forward == (None, *(i if steps[i] <= limit else None for i in range(VIEWS - 1)))
    assert path.backward == (*(i + 1 if steps[i] <= limit else None for i in range(VIEWS - 1)), None)
    assert all(path.near(i, s) == (angles[i, s] <= limit) for i in range(VIEWS) for s in range(VIEWS))
    padded = aligner_of(out, Recorder(), max_angle=limit).alignment([names[0], *names, names[-1]], CPU, out)
    assert (padded.forward[1], padded.backward[VIEWS]) == (0, VIEWS + 1)  # a doubled end is no angle away
    assert float(padded.flow_of(1, 0).px.abs().max()) < 1e-3


def test_a_graph_weighs_by_angle_and_rejects_what_is_too_far(out):
    names = [f"train/r_{i}" for i in range(VIEWS)]
    found = aligner_of(out, GraphRecorder(), max_angle=70.0, neighbours=2, passes=3)
    angles, graph = np.array(found.angles_deg(names)), found.alignment(names, CPU, out)
    assert isinstance(graph, Graph)
    assert [v.frame for v in graph.backward] == [5, 4, 3, 2, 1, 0] * 3
    assert [v.frame for v in graph.forward] == [0, 1, 2, 3, 4, 5] * 3
    for visit in graph.forward[-VIEWS:]:
        near = sorted((angles[visit.frame, j], j) for j in range(VIEWS) if j != visit.frame)
        assert visit.sources == tuple(j for a, j in near if a <= 70)[:2]
        np.testing.assert_allclose(visit.factors, [np.exp(-angles[visit.frame, j] / 8) for j in visit.sources])
    assert any(visit.sources for visit in graph.forward[-VIEWS:])


def distance_backwards(scene, names):
    """--neighbour_cost tests.upsampling.test_aligner:distance_backwards: the last view is the nearest to all."""
    return np.tile(-np.arange(float(len(names))), (len(names), 1))


def nonsense(scene, names):
    return np.full((2, 2), np.nan)


def test_a_neighbour_cost_of_the_users_own(out):
    names = [f"train/r_{i}" for i in range(VIEWS)]
    own = aligner_of(out, GraphRecorder(), max_angle=180.0, neighbour_cost=f"{__name__}:distance_backwards")
    assert own.alignment(names, CPU, out).forward[-VIEWS].sources == (5, 4, 3)
    assert [p.name for p in own.source.inputs["plugins"]] == ["test_aligner.py"]
    with pytest.raises(UserError, match=r"nonsense: returned shape \[2, 2\] for 6 views; \[6, 6\]"):
        aligner_of(out, GraphRecorder(), neighbour_cost=f"{__name__}:nonsense").alignment(names, CPU, out)
    with pytest.raises(UserError, match="--neighbour_cost angel: unknown; did you mean angle"):
        source_of(out, neighbour_cost="angel")  # before anything of an earlier run is removed
    with pytest.raises(UserError, match=r"--neighbour_cost os\.near:f: cannot be imported"):
        source_of(out, propagation="path", neighbour_cost="os.near:f")  # also where nothing asks for it
    with pytest.raises(UserError, match=r"--neighbour_cost os\.near:f: cannot be imported"):
        aligner_of(out, GraphRecorder(), neighbour_cost="os.near:f").alignment(names, CPU, out)
    with pytest.raises(ValueError, match="twice"):
        neighbour_cost("angle")(NEIGHBOUR_COSTS["angle"])


# --- whole runs ---


def job(out: Path, net: object, folder: str = "hr", **flags: object) -> Job:
    settings = UpsamplingParams(alpha="bicubic", **flags)  # type: ignore[arg-type]
    return Job(net, settings, source_of(out, **flags), out / folder)  # type: ignore[arg-type]


class MixedViews:
    """Views of two sizes, one of which has no alpha."""

    def size(self, name: str) -> tuple[int, int]:
        return (12, 12) if name in ("train/r_1", "train/r_4") else (16, 16)

    def has_alpha(self, name: str) -> bool:
        return name != "train/r_5"

    def raw(self, name: str) -> np.ndarray:
        raise NotImplementedError


def test_a_graph_is_one_call_of_all_saved_views_of_a_size_and_kind(out):
    n = [f"train/r_{i}" for i in range(VIEWS)]
    calls = (Subsequence((n[2], n[1], n[0], n[3]), (0, 1)), Subsequence((*n[3:], n[0]), (0, 1, 2, 3)))
    source = replace(source_of(out), views=MixedViews(), sequences=Sequences(calls))
    found = Aligner.of(UpsamplingParams(), source, GraphRecorder(), "").calls()  # type: ignore[arg-type]
    assert [call.frames for call in found] == [(n[2], n[3], n[0]), (n[1], n[4]), (n[5],)]
    assert all(call.saved == call.frames for call in found)
    path = Aligner.of(UpsamplingParams(), source, Recorder(), "").calls()  # type: ignore[arg-type]
    assert path == list(calls)


def test_features_go_to_a_file_where_memory_ends(out):
    for gigabytes, in_file in ((2.0, False), (0.5, True)):
        net = GraphRecorder(size=(1 << 30) // 8)
        run(job(out, net, folder=f"hr{in_file}", max_memory=gigabytes))
        assert (net.alignments[0].folder is not None) == in_file
    text = describe(job(out, GraphRecorder(size=(1 << 30) // 8), max_memory=0.5))
    assert "along flow from geometry on a graph of 3 neighbours in 2 rounds, up to 30 degrees apart" in text
    assert "features in a file" in text
    assert "in a file" not in describe(job(out, GraphRecorder(size=1)))
    assert "along learned flow on a path, up to 20 degrees apart" in describe(job(out, Recorder(), flow="learned"))


def test_a_run_that_was_cut_short_ends_with_the_same_frames(out, monkeypatch):
    monkeypatch.setattr("upsampling.basicvsr.BLOCKS", 1)
    flags = {"random_weights": True, "precision": "fp32", "max_angle": 90.0}
    net = load(UpsamplingParams(**flags), None, CPU)  # type: ignore[arg-type]
    whole = job(out, net, "whole", **flags)
    run(whole)
    first = job(out, net, "cut", **flags)
    run(first)
    for name in ("r_0", "r_3"):
        first.path(f"train/{name}").unlink()
    (out / "cut" / "alignment.json").unlink()
    _, notes = run(first, resume=True)
    assert notes["kept_from_before"] == VIEWS - 2
    assert (notes["flow"], notes["propagation"], notes["max_angle_deg"]) == ("geometry", "graph", 90)
    for path in (out / "whole").rglob("*.*"):
        assert path.read_bytes() == (out / "cut" / path.relative_to(out / "whole")).read_bytes(), path
    alone = job(out, net, "alone", propagation="none", **flags)
    run(alone)
    frames = [read_image(j.path("train/r_2")).astype(int) for j in (whole, alone)]
    assert np.abs(frames[0] - frames[1]).max() > 2
    assert not (out / "alone" / "alignment.json").exists()


@pytest.mark.parametrize(
    ("upsampler", "flow", "propagation"),
    [
        ("basicvsr", "learned", "path"),
        ("basicvsr", "geometry", "path"),
        ("basicvsr", "geometry", "graph"),
        ("basicvsr_pp", "geometry", "path"),
    ],
)
def test_an_ensemble_of_both_orders_is_the_mean_over_the_schedule_and_its_reverse(
    out, monkeypatch, upsampler, flow, propagation
):
    """By hand: the network over the views and over the views backwards; bit for bit before anything is rounded."""
    monkeypatch.setattr("upsampling.basicvsr.BLOCKS", 1)
    monkeypatch.setattr("upsampling.basicvsr_pp.BLOCKS", 1)
    flags = {"upsampler": upsampler, "flow": flow, "propagation": propagation, "max_angle": 90.0}
    settings = UpsamplingParams(ensemble=2, random_weights=True, precision="fp32", **flags)  # type: ignore[arg-type]
    net = load(settings, None, CPU)
    net.conv_last.weight.mul_(100)  # untrained, it adds next to nothing to the enlarged frame
    both = Job(net, settings, source_of(out, **flags), out / "hr")
    call = both.aligner.calls()[0]
    names = call.frames
    raw = [both.source.views.raw(name) for name in names]
    alphas = torch.stack([alpha_plane(image) for image in raw])

    def by_hand(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        forth = torch.stack([*net.upsample(planes, both.aligner.alignment(names, CPU, out))]).clamp(0, 1)
        back = [*net.upsample(planes.flip(0), both.aligner.alignment(names[::-1], CPU, out))]
        return forth, torch.stack(back[::-1]).clamp(0, 1)

    forth, back = by_hand(torch.stack([colour_plane(image) for image in raw]))
    assert float((forth - back).abs().max()) > 1e-3  # another estimate indeed
    alpha_forth, alpha_back = (x.mean(1) for x in by_hand(alphas[:, None].expand(-1, 3, -1, -1).contiguous()))
    colours, opacities = back + (forth - back) / 2, alpha_back + (alpha_forth - alpha_back) / 2
    deviations = ((forth - back).double().pow(2).mean(1) / 4).sqrt()
    made = list(_images(both, call, frozenset(call.save), lambda: None))
    assert [name for name, _, _ in made] == list(names)
    for i, (_, planes, deviation) in enumerate(made):
        assert torch.equal(planes, joined(colours[i], opacities[i], alphas[i]))
        np.testing.assert_allclose(deviation, deviations[i], rtol=1e-4, atol=1e-7)  # sums of squares in float32


def test_the_report_says_from_where_each_view_got_what(out):
    run(job(out, GraphRecorder(), max_angle=90.0))
    report = json.loads((out / "hr" / "alignment.json").read_text())
    assert (report["flow"], report["propagation"], report["max_angle_deg"]) == ("geometry", "graph", 90)
    assert set(report["views"]) == {f"train/r_{i}" for i in range(VIEWS)}
    for name, view in report["views"].items():
        neighbours = view["neighbours"]
        assert 0 < len(neighbours) <= 3
        assert name not in {n["name"] for n in neighbours}
        assert sum(n["weight"] for n in neighbours) == pytest.approx(1)
        assert all(0 <= n["visible"] <= 1 and 0 < n["angle_deg"] <= 90 for n in neighbours)
        mean = sum(n["weight"] * n["flow_px"] for n in neighbours)
        assert view["flow_px"] == pytest.approx(mean)
        assert 0 < view["disagreement"] < 1  # the pictures of the made scene have nothing to do with each other
    run(job(out, Recorder(), "path", flow="learned", max_angle=180.0))
    first = json.loads((out / "path" / "alignment.json").read_text())["views"]["train/r_0"]
    assert [(n["name"], n["weight"], n["flow_px"]) for n in first["neighbours"]] == [("train/r_1", 1.0, None)]
    assert first["disagreement"] is None  # a network that shows no flow


def test_the_script_goes_on_when_depths_change(out, monkeypatch, capsys):
    words = ["vsr_upsample.py", "-s", str(out.parent / "scene"), "-m", str(out), "--eval", "--skip_done", "--overwrite"]
    words += ["--upsampler", "tests.upsampling.test_aligner:make_graph_recorder", "--alpha", "bicubic"]
    monkeypatch.setattr(sys, "argv", words)
    vsr_upsample.main()
    record = json.loads((out / "run.json").read_text())["steps"]["upsample"]
    assert (record["settings"]["flow"], record["notes"]["propagation"]) == ("geometry", "graph")
    assert "hr/alignment.json" in record["outputs"]
    vsr_upsample.main()
    assert "upsample: up to date" in capsys.readouterr().err
    z = np.zeros((16, 16), np.float32)
    np.savez_compressed(out / "geometry" / "train/r_2.npz", z=z, alpha=z)
    vsr_upsample.main()
    assert "its input geometry changed" in capsys.readouterr().err
    (out / "geometry").rename(out / "moved")
    vsr_upsample.main()
    assert "setting flow was 'geometry' and is 'learned'" in capsys.readouterr().err


def make_graph_recorder(settings: UpsamplingParams, device: torch.device) -> GraphRecorder:
    return GraphRecorder()


class Slow(GraphRecorder):
    """Needs 4 s for a visit and 2 s to finish a frame, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def upsample(self, frames, alignment=None):
        for visit in (*alignment.visits(reverse=True), *alignment.visits(reverse=False)):
            assert visit.frame < len(frames)
            self.now += 4
            alignment.tick()
        for frame in super().upsample(frames, alignment):
            self.now += 2
            yield frame


@pytest.mark.parametrize("flags", [{}, {"passes": 3}, {"ensemble": 4}, {"ensemble": 2}, {"alpha": "bicubic"}])
def test_the_time_that_is_left_is_known_before_the_first_frame_is_there(out, capsys, monkeypatch, flags):
    net = Slow()
    monkeypatch.setattr("utils.log.time", SimpleNamespace(monotonic=lambda: net.now))
    settings = UpsamplingParams(precision="fp32", **flags)
    run(Job(net, settings, source_of(out, **flags), out / "hr"))  # type: ignore[arg-type]
    lines = re.findall(r" (\d+)/(\d+) .* ETA (?:(\d+):)?(\d+).* frame (\d) of 6", capsys.readouterr().err)
    assert lines[0][-1] == "0"
    assert [done == total for done, total, *_ in lines] == [*[False] * (len(lines) - 1), True]
    assert lines[-1][-1] == "6"
    for done, total, minutes, seconds, _ in lines[: len(lines) // 2]:
        left = 60 * int(minutes or 0) + int(seconds)
        assert left / (1 - int(done) / int(total)) == pytest.approx(net.now, rel=0.33)
