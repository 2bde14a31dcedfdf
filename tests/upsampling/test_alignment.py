"""Who hands features to whom: graphs, blending, features in files; networks with known flow against slow writings."""

import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.upsampling import slow_networks as slow
from tests.upsampling.made_views import colour, depth, look_at, slow_flow
from tests.upsampling.test_networks import moving_texture
from upsampling.alignment import Alignment, Graph, Visit, along_path, blended, handed
from upsampling.basicvsr import BasicVSR
from upsampling.basicvsr_pp import BasicVSRpp
from upsampling.features import Features
from upsampling.geometry import Flow, flow_between
from upsampling.neighbours import graph_visits
from upsampling.propagation import all_flows, propagate, sources_of
from upsampling.psrt import PSRT, without_indices
from upsampling.spynet import SPyNet, warp
from upsampling.tiling import SLACK_BYTES, plan, upsample
from utils.errors import UserError

BLOCKS = 2


# --- graphs ---


@given(
    hnp.arrays(float, (6, 6), elements=st.sampled_from([1.0, 2.0, 3.0, np.inf])),
    hnp.arrays(bool, (6, 6)),
    st.permutations(range(6)),
    st.integers(1, 4),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_visits_are_the_definition(cost, usable, order, neighbours, passes):
    factors = 1.0 + np.arange(36.0).reshape(6, 6)
    visits = graph_visits(cost, usable, factors, order, neighbours, passes)
    assert [v.frame for v in visits] == [*order] * passes
    made: set[int] = set()
    for visit in visits:
        fit = sorted((cost[visit.frame, j], j) for j in made if j != visit.frame and usable[visit.frame, j])
        assert visit.sources == tuple(j for _, j in fit[:neighbours])
        assert visit.factors == tuple(factors[visit.frame, j] for j in visit.sources)
        made.add(visit.frame)


def test_what_arrives_is_the_weighted_mean_of_the_warped_features():
    draw = torch.Generator().manual_seed(0)
    features = [torch.randn(1, 4, 6, 7, generator=draw) for _ in range(3)]
    known = [
        Flow(2 * torch.randn(1, 2, 6, 7, generator=draw), (torch.rand(1, 1, 6, 7, generator=draw) > 0.5).float()),
        Flow(torch.randn(1, 2, 6, 7, generator=draw)),  # visibility unknown: all counts
        Flow(torch.zeros(1, 2, 6, 7), torch.zeros(1, 1, 6, 7)),
    ]
    factors = (1.0, 0.5, 0.2)
    weights = [f * ((1 if k.visible is None else k.visible) + 1e-3) for f, k in zip(factors, known, strict=True)]
    expected = sum(w * warp(x, k.px) for w, x, k in zip(weights, features, known, strict=True)) / sum(weights)
    assert torch.allclose(blended(features, known, factors), expected, atol=1e-6)
    hidden = [Flow(k.px, torch.zeros(1, 1, 6, 7)) for k in known]  # seen by none: a mean all the same
    expected = sum(f * warp(x, k.px) for f, x, k in zip(factors, features, known, strict=True)) / sum(factors)
    assert torch.allclose(blended(features, hidden, factors), expected, atol=1e-5)
    assert torch.equal(handed(features[0], known[0]), warp(features[0], known[0].px) * known[0].visible)
    assert torch.equal(handed(features[1], known[1]), warp(features[1], known[1].px))


def test_parts_of_a_path_ask_for_the_flow_of_the_whole_clip():
    asked = []

    def flow_of(i: int, s: int) -> Flow:
        asked.append((i, s))
        return Flow(torch.zeros(1, 2, 2, 2))

    path = along_path(6)
    part = Alignment(path.backward, path.forward, flow_of, lambda i, s: (i, s) == (4, 2)).part(2, 5)
    assert [(i, s) for i in range(3) for s in range(3) if part.near(i, s)] == [(2, 0)]
    assert (part.backward, part.forward) == ((1, 2, None), (None, 0, 1))
    part.flow_of(0, 1)
    doubled = part.mapped(lambda flow: Flow(flow.px + 1))
    assert float(doubled.flow_of(2, 1).px.mean()) == 1
    assert asked == [(2, 3), (4, 3)]
    assert along_path(3).mapped(lambda flow: flow).flow_of is None


# --- features that wait ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_come_back_from_a_file_bit_by_bit_in_their_layout(tmp_path, dtype, layout):
    draw = torch.Generator().manual_seed(0)
    made = {i: torch.randn(1, 8, 5, 6, generator=draw).to(dtype, memory_format=layout) for i in (3, 0, 7)}
    with Features() as kept, Features(tmp_path) as filed:
        for i, feature in made.items():
            kept[i], filed[i] = torch.zeros_like(feature), torch.zeros_like(feature)
            kept[i], filed[i] = feature, feature  # overwritten, as a second round does
        assert os.listdir(tmp_path) == []  # the file has no name: nothing is left even by a kill
        for i, feature in made.items():
            for found in (kept[i], filed.pop(i)):
                assert torch.equal(found, feature)
                assert found.stride() == feature.stride()
        with pytest.raises(KeyError):
            filed[3]


def test_features_that_find_no_room_are_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="features cannot wait there"):
        Features(tmp_path / "file" / "below")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            Features(tmp_path) as features,
            pytest.raises(UserError, match=r"features cannot be written .*raise --max_memory"),
        ):
            features[0] = torch.zeros(1, 8, 50, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- networks ---


@pytest.fixture(scope="module")
def views():
    """Five views of a ball on a table: cameras, frames [5, 3, 14, 18], depths, angles between the cameras."""
    places = [(0, 40), (8, 42), (20, 36), (33, 45), (52, 40)]
    cameras = [look_at(str(i), *place, (18, 14)) for i, place in enumerate(places)]
    frames = torch.stack([torch.from_numpy(colour(c)).float() for c in cameras])
    depths = [depth(c).astype(np.float32) for c in cameras]
    unit = np.stack([c.centre / np.linalg.norm(c.centre) for c in cameras])
    return cameras, frames, depths, np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))


@pytest.fixture(scope="module")
def basicvsr():
    """A made BasicVSR of two blocks, and its state."""
    state = slow.made(slow.basicvsr_shapes(BLOCKS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("upsampling.basicvsr.BLOCKS", BLOCKS)
        net = BasicVSR().eval().requires_grad_(False)
    net.load_state_dict(state)
    return net, state


def fast_flow(views):
    cameras, _, depths, _ = views
    z = [torch.from_numpy(d) for d in depths]
    return lambda i, s: flow_between(z[i], cameras[i], z[s], cameras[s], 0.03)


def exact_flow(views):
    cameras, _, depths, _ = views

    def flow_of(i: int, s: int) -> tuple[torch.Tensor, torch.Tensor]:
        flow, visible = slow_flow(depths[i], cameras[i], depths[s], cameras[s], 0.03)
        return torch.from_numpy(flow), torch.from_numpy(visible).double()

    return flow_of


def graph_of(views, flow_of, passes: int = 2, **more) -> Graph:
    angles, n = views[3], len(views[0])
    factors, usable = np.exp(-angles / 8), angles <= 30
    backward, forward = (graph_visits(angles, usable, factors, o, 3, passes) for o in (range(n)[::-1], range(n)))
    return Graph(backward, forward, flow_of, **more)


@pytest.mark.parametrize("passes", [1, 2])
def test_basicvsr_in_a_graph_is_its_second_writing(views, basicvsr, passes):
    net, state = basicvsr
    frames, angles = views[1], views[3]
    result = torch.stack(list(net.upsample(frames, graph_of(views, fast_flow(views), passes))))
    arrival = slow.graph_arrival(angles.tolist(), exact_flow(views))
    expected = slow.basicvsr(state, frames.double(), arrival, passes, BLOCKS)
    assert float((result - expected).abs().max()) < 2e-3  # flow in float32, moved by 1e-4 px
    alone = torch.stack(list(net.upsample(frames, Graph(*([tuple(map(Visit, range(5)))] * 2)))))
    assert float((alone - expected).abs().max()) > 0.02


def test_basicvsr_in_a_graph_with_its_own_flow_is_its_second_writing(views, basicvsr):
    net, state = basicvsr
    frames, angles = views[1], views[3]
    result = torch.stack(list(net.upsample(frames, graph_of(views, None))))
    s, double = slow.doubled(state), frames.double()
    one = torch.ones((), dtype=torch.float64)
    arrival = slow.graph_arrival(angles.tolist(), lambda i, j: (slow.spynet(s, double[i], double[j]), one))
    assert float((result - slow.basicvsr(state, double, arrival, 2, BLOCKS)).abs().max()) < 1e-4


def test_basicvsr_on_a_path_with_geometry_is_its_second_writing(views, basicvsr):
    """Whatever a support does not show arrives as zero."""
    net, state = basicvsr
    frames, flow_of = views[1], exact_flow(views)
    path = Alignment((1, 2, None, 4, None), (None, 0, 1, None, 3), fast_flow(views))

    def arrival(i: int, features: dict[int, torch.Tensor]) -> torch.Tensor | None:
        sources = [s for s in (i - 1, i + 1) if s in features and {i, s} != {2, 3}]
        if not sources:
            return None
        flow, visible = flow_of(i, sources[0])
        return visible * slow.warped(features[sources[0]], flow)

    expected = slow.basicvsr(state, frames.double(), arrival, 1, BLOCKS)
    assert float((torch.stack(list(net.upsample(frames, path))) - expected).abs().max()) < 2e-3
    assert min(float(flow_of(1, 0)[1].mean()), float(flow_of(1, 2)[1].mean())) < 0.99  # something is hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_in_a_file_change_no_bit(views, basicvsr, tmp_path, dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("upsampling.basicvsr.BLOCKS", BLOCKS)
        net = BasicVSR().eval().requires_grad_(False)
    net.load_state_dict(basicvsr[1])
    net = net.in_precision(dtype)
    in_memory = torch.stack(list(net.upsample(views[1], graph_of(views, fast_flow(views)))))
    in_file = torch.stack(list(net.upsample(views[1], graph_of(views, fast_flow(views), folder=tmp_path))))
    assert torch.equal(in_memory, in_file)
    assert os.listdir(tmp_path) == []


def made_flow(i: int, s: int) -> torch.Tensor:
    """A smooth flow [2, 8, 12] that is no sum of two others."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    return torch.stack([3 * torch.sin(x / 9 + i) + s / 2, 2 * torch.cos(y / 7 - s) - (i - s) ** 2 / 3])


@pytest.mark.parametrize("name", ["basicvsr_pp", "psrt"])
def test_second_order_networks_ask_for_both_flows_directly(name):
    state = slow.made(slow.basicvsr_pp_shapes() if name == "basicvsr_pp" else slow.psrt_shapes())
    net = (BasicVSRpp if name == "basicvsr_pp" else PSRT)().eval().requires_grad_(False)
    net.load_state_dict(without_indices(state))
    frames = moving_texture(3, 8, 12)
    asked = set()

    def flow_of(i: int, s: int) -> Flow:
        asked.add((i, s))
        return Flow(made_flow(i, s)[None])

    path = along_path(3)
    result = torch.stack(list(net.upsample(frames, Alignment(path.backward, path.forward, flow_of))))
    assert asked == {(i, s) for i in range(3) for s in range(3) if i != s}
    expected = getattr(slow, name)(state, frames.double(), lambda i, s: made_flow(i, s).double())
    assert float((result - expected).abs().max()) < 1e-4
    learned = torch.stack(list(net.upsample(frames)))
    assert float((learned - expected).abs().max()) > 0.01


@pytest.mark.parametrize("known", [False, True])
def test_a_source_of_a_source_that_is_too_far_hands_nothing_on(known):
    flow = Flow(torch.zeros(1, 2, 2, 2))
    near = lambda i, s: (i, s) != (2, 0)  # noqa: E731
    path = Alignment((1, 2, 3, None), (None, 0, 1, 2), (lambda i, s: flow) if known else None, near)
    with torch.inference_mode():
        flows = all_flows(SPyNet(), torch.rand(4, 3, 8, 8), path)
    found = {}
    for branch in ("forward_1", "backward_2"):

        def advance(i: int, first: object, second: object, branch: str = branch) -> torch.Tensor:
            found[branch, i] = (first is not None) + (second is not None)
            return torch.zeros(1, 1, 8, 8) if not known else torch.zeros(1, 1, 2, 2)

        assert len(list(propagate(sources_of(branch, path), flows[branch], advance))) == 4
    assert [found["forward_1", i] for i in range(4)] == [0, 1, 1, 2]
    assert [found["backward_2", i] for i in range(4)] == [2, 2, 1, 0]


class Mover:
    """Each frame becomes what its neighbour hands to it."""

    scale, num_neighbours, overlap = 1, 1, 16

    def working_bytes(self, t: int, h: int, w: int) -> int:
        return 1000 * t * h * w

    def upsample(self, frames: torch.Tensor, alignment: Alignment) -> Iterator[torch.Tensor]:
        for visit in alignment.visits(reverse=False):
            arrivals = [handed(frames[s][None], alignment.flow_of(visit.frame, s))[0] for s in visit.sources]
            yield arrivals[0] if arrivals else frames[visit.frame]


def test_tiles_and_chunks_take_their_part_of_known_flow(monkeypatch):
    monkeypatch.setattr("upsampling.tiling.SMALLEST_TILE", 8)
    draw = torch.Generator().manual_seed(0)
    frames = torch.rand(7, 3, 40, 56, generator=draw)
    px = [F.interpolate(torch.randn(1, 2, 3, 4, generator=draw), (40, 56), mode="bicubic") for _ in range(7)]
    shown = [(torch.rand(1, 1, 40, 56, generator=draw) > 0.3).float() for _ in range(7)]
    assert max(float(p.abs().max()) for p in px) < Mover.overlap / 2
    path = along_path(7)
    known = Alignment(path.backward, path.forward, lambda i, s: Flow(px[i] + s / 10, shown[s]))
    whole, cut = (
        dict(upsample(Mover(), frames, frozenset(range(7)), bound, known))  # type: ignore[arg-type]
        for bound in (1 << 40, SLACK_BYTES + 6 * 10**6)
    )
    plan_of_cut = plan(Mover(), 7, 40, 56, SLACK_BYTES + 6 * 10**6)  # type: ignore[arg-type]
    assert len(plan_of_cut.chunks) > 1
    assert plan_of_cut.tiles != (1, 1)
    assert all(torch.allclose(cut[i], whole[i], atol=2e-5) for i in range(7))
    assert not torch.allclose(whole[3], frames[3], atol=0.1)
