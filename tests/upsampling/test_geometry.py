"""Flow from depth: against exact geometry, against plain loops, what is hidden, silhouettes, and bad files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.upsampling.made_views import RADIUS, TABLE, colour, depth, look_at, rays, slow_flow
from upsampling.geometry import FILL_PX, Flow, Geometry, filled, flow_between
from upsampling.spynet import warp
from utils.errors import UserError

CPU = torch.device("cpu")


def tensor(z: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(z.astype(np.float32))


def exact(camera, support, **kinds: bool) -> Flow:
    return flow_between(tensor(depth(camera, **kinds)), camera, tensor(depth(support, **kinds)), support, 0.01)


def project(camera, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel position (corner origin) and depth of world points [..., 3]."""
    local = point @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    uvw = local @ camera.K.T
    return uvw[..., :2] / uvw[..., 2:], local[..., 2]


@given(st.floats(-60, 60), st.floats(10, 70), st.floats(10, 70), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_flow_is_that_of_the_loops(turn, low, high, seed):
    a, b = look_at("a", 0, low, (18, 15)), look_at("b", turn, high, (21, 14), 2.5)
    noise = np.random.default_rng(seed)
    z, z_support = (depth(c) * (1 + 0.01 * noise.standard_normal((c.height, c.width))) for c in (a, b))
    flow = flow_between(tensor(z), a, tensor(z_support), b, 0.03)
    expected, visible = slow_flow(tensor(z).double().numpy(), a, tensor(z_support).double().numpy(), b, 0.03)
    np.testing.assert_allclose(flow.px[0].numpy(), expected, atol=2e-4)
    differs = (flow.visible[0, 0].numpy() > 0) != visible
    assert differs.mean() < 0.01  # a depth on the very edge of the tolerance may fall on either side in float32


@pytest.mark.parametrize("angle", [5, 25, 60])
def test_the_flow_of_a_plane_is_its_homography(angle):
    a, b = look_at("a", 0, 50, (40, 30)), look_at("b", angle, 40, (40, 30))
    flow = exact(a, b, ball=False)
    solid = depth(a, ball=False) > 0
    normal, R = np.array([0.0, 0.0, 1.0]), a.world_to_camera[:3, :3]
    n, d = R @ normal, (TABLE - a.centre[2])  # the plane n . x = d in a's axes
    pose = b.world_to_camera @ np.linalg.inv(a.world_to_camera)
    H = b.K @ (pose[:3, :3] + np.outer(pose[:3, 3], n) / d) @ np.linalg.inv(a.K)
    v, u = np.mgrid[0:30, 0:40] + 0.5
    moved = np.stack([u, v, np.ones_like(u)], -1) @ H.T
    expected = moved[..., :2] / moved[..., 2:] - np.stack([u, v], -1)
    np.testing.assert_allclose(flow.px[0].permute(1, 2, 0).numpy()[solid], expected[solid], atol=1e-3)


def test_the_flow_of_a_ball_leads_to_the_same_point_of_it():
    a, b = look_at("a", 0, 30, (60, 50)), look_at("b", 45, 35, (60, 50))
    flow, z = exact(a, b, table=False), depth(a, table=False)
    seen = (z > 0) & (flow.visible[0, 0].numpy() > 0)
    centre, ray = rays(a)
    point = centre + z[..., None] * ray
    assert np.abs(np.linalg.norm(point[seen], axis=1) - RADIUS).max() < 1e-9
    there, _ = project(b, point)
    v, u = np.mgrid[0:50, 0:60] + 0.5
    np.testing.assert_allclose((flow.px[0].numpy() + np.stack([u, v]))[:, seen], there[seen].T, atol=1e-3)
    # what faces away from b is hidden from it
    away = (point * (b.centre - point)).sum(-1) < -0.2
    assert away[z > 0].sum() > 10
    assert not (seen & away).any()


@pytest.mark.parametrize("angle", [4, 12, 25])
def test_the_warped_support_is_the_target_where_it_is_visible(angle):
    """The conventions as a whole: axes, pixel centres, direction and order of the channels."""
    a, b = look_at("a", 0, 40, (80, 70)), look_at("b", angle, 45, (80, 70))
    flow, image = exact(a, b), torch.from_numpy(colour(a)).float()
    seen = (flow.visible[0, 0] > 0) & tensor(depth(a)).gt(0)
    inner = ~torch.nn.functional.max_pool2d((~seen).float()[None], 5, 1, 2)[
        0
    ].bool()  # off the rims, which have no blur

    def error(px: torch.Tensor) -> float:
        return float((warp(torch.from_numpy(colour(b)).float()[None], px)[0] - image)[:, inner].square().mean().sqrt())

    assert inner.float().mean() > 0.2
    right = error(flow.px)
    assert right < 0.012
    for wrong in (-flow.px, flow.px.flip(1), flow.px + 0.5, 0 * flow.px):
        assert error(wrong) > 2 * right


def test_what_lies_behind_something_is_not_visible():
    a, b = look_at("a", 0, 60, (60, 60)), look_at("b", 0, 15, (60, 60))
    flow = exact(a, b)
    centre, ray = rays(a)
    z = depth(a)
    point = centre + z[..., None] * ray
    on_table = (z > 0) & (np.abs(point[..., 2] - TABLE) < 1e-6)
    to_b = b.centre - point
    along = np.clip(-(point * to_b).sum(-1) / (to_b**2).sum(-1), 0, 1)  # nearest point of the line of sight to the ball
    nearest = np.linalg.norm(point + along[..., None] * to_b, axis=-1)
    there, _ = project(b, point)
    inside = ((there > 1) & (there < 59)).all(-1)
    off_rim = np.hypot(point[..., 0], point[..., 1]) < 1.1
    hidden, free = on_table & (nearest < RADIUS - 0.08), on_table & inside & off_rim & (nearest > RADIUS + 0.08)
    assert min(hidden.sum(), free.sum()) > 40
    visible = flow.visible[0, 0].numpy() > 0
    assert not visible[hidden].any()
    assert visible[free].all()


def test_a_scene_without_background_and_one_that_is_all_background():
    a, b = look_at("a", 0, 80, (20, 20), 1.2), look_at("b", 3, 80, (20, 20), 1.2)
    assert (depth(a) > 0).all()
    assert float(exact(a, b).visible.mean()) > 0.8
    nothing = torch.zeros(20, 20)
    flow = flow_between(nothing, a, nothing, b, 0.01)
    assert float(flow.px.abs().max()) == 0
    assert float(flow.visible.min()) == 1


def test_points_behind_the_support_and_outside_it_are_not_visible_and_finite():
    a = look_at("a", 0, 30, (20, 20))
    b = look_at("b", 0, 30, (20, 20), -3.0)  # it looks the other way, away from everything
    flow = flow_between(tensor(depth(a)), a, torch.ones(20, 20), b, 0.5)
    solid = depth(a) > 0
    assert torch.isfinite(flow.px).all()
    assert float(flow.visible[0, 0][torch.from_numpy(solid)].max()) == 0


def test_the_fill_reaches_three_pixels_and_takes_the_mean_of_what_is_near():
    known = torch.zeros(9, 12, dtype=torch.bool)
    known[4, 2], known[4, 3] = True, True
    flow = torch.zeros(2, 9, 12)
    flow[:, 4, 2], flow[:, 4, 3] = torch.tensor([1.0, 5.0]), torch.tensor([3.0, -5.0])
    result = filled(flow, known)
    assert result[:, 3, 2].tolist() == [2.0, 0.0]
    assert result[:, 4, 4].tolist() == [3.0, -5.0]
    far = (torch.arange(12) - 3).clamp(min=0) > FILL_PX
    assert float(result[:, :, far].abs().max()) == 0
    assert float(result[0, 4, : 3 + FILL_PX + 1].min()) > 0
    assert torch.equal(result[:, known], flow[:, known])


def test_a_cropped_flow_is_the_tile_of_the_flow():
    a, b = look_at("a", 0, 40, (20, 16)), look_at("b", 9, 40, (20, 16))
    flow = exact(a, b)
    tile = flow.cropped(2, 11, 5, 20)
    assert torch.equal(tile.px, flow.px[:, :, 2:11, 5:20])
    v, u = torch.meshgrid(torch.arange(9), torch.arange(15), indexing="ij")
    x, y = tile.px[0, 0] + u, tile.px[0, 1] + v
    leaves = (x < 0) | (y < 0) | (y > 8)  # the right edge is the image's own
    assert leaves.any()
    assert (x > 14).any()
    assert torch.equal(tile.visible[0, 0], torch.where(leaves, 0.0, flow.visible[0, 0, 2:11, 5:20]))
    assert torch.equal(Flow(flow.px).cropped(2, 11, 5, 20).visible[0, 0], (~leaves).float())


# --- files ---


def saved(folder: Path, **arrays: np.ndarray) -> Geometry:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "a.npz", **arrays)
    return Geometry(folder, {"a": look_at("a", 0, 30, (8, 6))}, 0.03)


def test_depths_come_from_the_files_of_render(tmp_path):
    z = np.linspace(0, 3, 48, dtype=np.float32).reshape(6, 8)
    geometry = saved(tmp_path, z=z, alpha=np.ones_like(z))
    assert torch.equal(geometry.depth("a", CPU), torch.from_numpy(z))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.ones((8, 6), np.float32)}, r"a\.npz: 6x8 px, view a has 8x6; make it anew"),
        ({"alpha": np.ones((6, 8), np.float32)}, "no geometry file"),
        ({"z": np.full((6, 8), math.nan, np.float32)}, "must be finite depths"),
        ({"z": np.full((6, 8), -1.0, np.float32)}, "must be finite depths"),
        ({"z": np.ones((6, 8), np.int64)}, "must be finite depths"),
        ({"z": np.array([None] * 3)}, "no geometry file"),
    ],
)
def test_bad_depths_are_refused(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        saved(tmp_path, **arrays).depth("a", CPU)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no archive at all"])
def test_files_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="no geometry file"):
        Geometry(tmp_path, {"a": look_at("a", 0, 30, (8, 6))}, 0.03).depth("a", CPU)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(UserError, match=r"not there; render\.py --geometry"):
        Geometry(tmp_path, {"a": look_at("a", 0, 30, (8, 6))}, 0.03).depth("a", CPU)
