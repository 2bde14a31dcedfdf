"""The sub-pixel information map against cameras of known sampling phases, and against its definition in loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.cameras import Camera, intrinsics, world_to_camera_from
from upsampling.information import SurfaceView, information_maps, inverse_depth_slope

SIZE, FOCAL, DEPTH, SCALE = 16, 20.0, 4.0, 4
INNER = (slice(5, 11), slice(5, 11))  # every shifted view sees these


def camera(R=None, t=(0.0, 0.0, 0.0), size=SIZE):
    K = intrinsics(FOCAL, FOCAL, size / 2, size / 2)
    return Camera("view", size, size, K, world_to_camera_from(np.eye(3) if R is None else R, np.array(t, float)))


def turn_y(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def plane_depth(view, normal=(0.0, 0.0, 1.0), offset=DEPTH):
    """z [h, w] of the plane normal . X = offset in a camera, by intersecting every ray."""
    y, x = np.mgrid[: view.height, : view.width] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(view.K).T
    R = view.world_to_camera[:3, :3]
    return (offset - np.dot(normal, view.centre)) / (rays @ (R @ np.asarray(normal)))


def seen(view, *plane):
    return SurfaceView(view, torch.tensor(plane_depth(view, *plane), dtype=torch.float32))


def shifted(dx_px, dy_px):
    """A camera that sees the plane z = DEPTH moved by that many pixels."""
    return seen(camera(t=(dx_px * DEPTH / FOCAL, dy_px * DEPTH / FOCAL, 0.0)))


def first_map(*views, **options):
    return next(information_maps({f"v{i}": view for i, view in enumerate(views)}, SCALE, **options))[1]


SHIFTS = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), max_size=12)


@settings(max_examples=30, deadline=None)
@given(SHIFTS)
def test_quarter_pixel_shifts_fill_as_many_cells_as_they_have_phases(shifts):
    found = first_map(shifted(0, 0), *(shifted(x / 4, y / 4) for x, y in shifts))
    phases = {(0, 0), *((x % 4, y % 4) for x, y in shifts)}
    np.testing.assert_allclose(found[INNER], len(phases) / 16, atol=1e-4)


def test_all_sixteen_phases_are_full_information():
    grid = [shifted(x / 4, y / 4) for x in range(4) for y in range(4)]
    np.testing.assert_allclose(first_map(*grid)[INNER], 1.0, atol=1e-4)


def test_a_view_alone_and_the_background():
    view = shifted(0, 0)
    view.z[:, :4] = 0
    found = first_map(view)
    assert found.dtype == torch.float32
    assert not found[:, :4].any()
    np.testing.assert_allclose(found[:, 4:], 1 / 16)


def test_a_view_from_twice_the_distance_counts_half():
    far = seen(camera(t=(0.0, 0.0, DEPTH)))
    np.testing.assert_allclose(first_map(shifted(0, 0), far)[INNER], 1.5 / 16, atol=1e-4)


def test_an_oblique_view_counts_by_its_foreshortening():
    """Turned about the point on the axis: the surface is squeezed by cos 60 degrees across, not along."""
    around = turn_y(60)
    oblique = seen(camera(around, (0.12 * DEPTH / FOCAL, 0.0, DEPTH) - around @ [0.0, 0.0, DEPTH]))
    found = first_map(shifted(0, 0), oblique)[7:9, 8]
    # half a pixel off the axis the squeeze differs by 5 %
    np.testing.assert_allclose(found, (1 + 0.5) / 16, atol=0.05 / 16)


def test_what_hides_the_surface_takes_its_samples_away():
    other = shifted(0.25, 0)
    other.z[:, 8:] = DEPTH / 2
    found = first_map(shifted(0, 0), other)
    np.testing.assert_allclose(found[5:11, 2:7], 2 / 16, atol=1e-4)
    np.testing.assert_allclose(found[5:11, 9:14], 1 / 16)


def test_views_behind_and_outside_add_nothing():
    behind = seen(camera(np.diag([-1.0, 1.0, -1.0]), (0.0, 0.0, 2 * DEPTH)))  # faces this way from the far side
    away = seen(camera(np.diag([-1.0, 1.0, -1.0])))
    away.z[:] = DEPTH
    aside = shifted(100, 0)
    behind.z[:] = 0.5
    np.testing.assert_allclose(first_map(shifted(0, 0), away, aside, behind), 1 / 16)


def test_only_the_views_that_are_named_count():
    views = (shifted(0, 0), shifted(0.25, 0), shifted(0.5, 0))
    found = first_map(*views, among={"v0": ["v0", "v2"]})
    np.testing.assert_allclose(found[INNER], 2 / 16, atol=1e-4)


def by_definition(view, others, normal, offset):
    """The map in loops and float64: rays intersected with the plane, J by differences, J^-1 by solving."""
    K_inverse, to_world = np.linalg.inv(view.K), np.linalg.inv(view.world_to_camera)
    centre = view.centre

    def position(other, u, v):
        ray = to_world[:3, :3] @ K_inverse @ [u, v, 1.0]
        point = centre + ray * (offset - np.dot(normal, centre)) / np.dot(normal, ray)
        h = other.K @ (other.world_to_camera[:3, :3] @ point + other.world_to_camera[:3, 3])
        return h[:2] / h[2]

    found = np.zeros((view.height, view.width))
    for row in range(view.height):
        for column in range(view.width):
            u, v, best, e = column + 0.5, row + 0.5, {(0, 0): 1.0}, 1e-4
            for other in others:
                x, y = position(other, u, v)
                if not (0 < x < other.width and 0 < y < other.height):
                    continue
                step = [position(other, u + e, v) - position(other, u - e, v)]
                step.append(position(other, u, v + e) - position(other, u, v - e))
                J = np.stack(step, 1) / (2 * e)
                d = np.linalg.solve(J, np.floor([x, y]) + 0.5 - [x, y])
                cell = tuple(np.round(SCALE * d).astype(int) % SCALE)
                best[cell] = max(best.get(cell, 0.0), min(1.0, np.linalg.svd(J)[1][1]))
            found[row, column] = sum(best.values()) / SCALE**2
    return found


def test_tilted_plane_from_many_sides_is_the_definition():
    rng, normal, offset = np.random.default_rng(0), np.array([0.3, -0.2, 0.93]), 3.5
    cameras = [camera()]
    for _ in range(6):
        around = turn_y(rng.uniform(-35, 35))
        pivot, move = np.array([0.0, 0.0, DEPTH]), rng.normal(0, 0.1, 3)
        cameras.append(camera(around, pivot - around @ pivot + move))
    found = first_map(*(seen(c, normal, offset) for c in cameras)).numpy()
    expected = by_definition(cameras[0], cameras[1:], normal, offset)
    wrong = np.abs(found - expected) > 1e-3
    assert np.ptp(expected) > 3 / 16  # the example tells something
    assert wrong.mean() < 0.02  # a sample within 1e-4 of a cell's border falls on either side


def test_slope_is_exact_on_planes_up_to_their_silhouette():
    view = camera()
    z = plane_depth(view, (0.4, 0.1, 0.9))
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = np.hypot(x - 7.5, y - 7.5) < 6
    slope = inverse_depth_slope(torch.tensor(np.where(disc, z, 0.0), dtype=torch.float32))
    for found, value in zip(slope, (1 / z[0, 1] - 1 / z[0, 0], 1 / z[1, 0] - 1 / z[0, 0]), strict=True):
        np.testing.assert_allclose(found[torch.tensor(disc)], value, atol=1e-5)
        assert not found[torch.tensor(~disc)].any()


def test_a_step_in_depth_does_not_tilt_the_surface():
    z = torch.full((9, 9), 2.0)
    z[:, 5:] = 3.0
    assert inverse_depth_slope(z).abs().max() < 1e-7


def test_scale_one_has_nothing_between_the_pixels():
    with pytest.raises(ValueError, match="scale 1"):
        next(information_maps({"v": shifted(0, 0)}, 1))
