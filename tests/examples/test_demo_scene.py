"""The demo scene: surfaces, textures, poses, files. Only the last test needs mitsuba."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from examples.demo_scene import meshes, scene, textures, write
from examples.demo_scene.poses import CAMERA_ANGLE_X, RADIUS, hemisphere_poses, look_at_origin, orbit_poses
from examples.demo_scene.render import Renderer, RenderSettings, View, axial_depth, to_srgb
from examples.demo_scene.write import SceneSettings
from scene import load_scene
from scene.ply import read_points
from utils.errors import UserError

SMALL = SceneSettings(train_views=4, test_views=2, cloud_points=200, cloud_block_px=2, render=RenderSettings(size=16))


@pytest.fixture(scope="module")
def parts():
    return scene.build()


class Plane:
    """Stands for the renderer: a unit ball's worth of picture, made of known numbers. Counts what it was asked."""

    def __init__(self, settings):
        self.settings, self.asked = settings, []

    def __call__(self, pose, number):
        self.asked.append(number)
        size = self.settings.size
        rgba = np.zeros((size, size, 4), np.uint8)
        rgba[4:12, 4:12] = [200, 100 + number, 50, 255]
        depth = np.where(rgba[..., 3] > 0, np.float32(RADIUS), np.float32(0))
        return View(rgba, depth)


def test_parts_are_finite_inside_the_box_and_named_once(parts):
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    for part in parts:
        mesh = part.mesh
        assert np.isfinite(mesh.vertices).all(), part.name
        assert np.abs(mesh.vertices).max() <= 1.2, part.name
        assert mesh.uv.min() >= -1e-9, part.name
        assert mesh.uv.max() <= 1 + 1e-9, part.name
        assert mesh.faces.min() >= 0, part.name
        assert mesh.faces.max() < len(mesh.vertices), part.name
        assert np.linalg.norm(meshes.face_normals(mesh), axis=1).min() > 0, part.name
        assert part.texture.dtype == np.uint8, part.name


@pytest.mark.parametrize("loop", [False, True])
def test_tubes_are_closed(loop):
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    path = np.stack([np.cos(angle), np.sin(angle), 0.1 * np.sin(3 * angle)], -1)
    assert meshes.boundary_edges(meshes.tube(path, 0.05, 7, loop)) == 0


def test_spheres_and_boxes_are_closed_and_face_outwards():
    for mesh in (meshes.sphere(0.7, 24), meshes.merge(meshes.box(0.3, 0.5, 0.7).values())):
        assert meshes.boundary_edges(mesh) == 0
        centres = mesh.vertices[mesh.faces].mean(1)
        assert ((meshes.face_normals(mesh) * centres).sum(1) > 0).all()
    assert meshes.boundary_edges(meshes.box(1, 1, 1)["top"]) == 4


@pytest.mark.parametrize("name", ["globe", "globe_ring", "basket", "fringe", "tyre", "spokes", "pot", "white_pawns"])
def test_solid_parts_of_the_scene_are_closed(parts, name):
    part = next(p for p in parts if p.name == name)
    assert meshes.boundary_edges(part.mesh) == 0


@pytest.mark.parametrize("side", ["front", "back", "left", "right"])
def test_print_on_a_box_is_upright_and_not_mirrored(side):
    mesh = meshes.box(2, 3, 4)[side]
    origin, right, up = (mesh.vertices[np.argmin(np.abs(mesh.uv - uv).sum(1))] for uv in ([0, 0], [1, 0], [0, 1]))
    assert up[2] > origin[2]
    outwards = np.cross(right - origin, up - origin)
    assert outwards @ mesh.vertices.mean(0) > 0


def test_print_in_the_scene_reads_upright(parts):
    for name in ("chart", "hours", "clock_face"):
        mesh = next(p.mesh for p in parts if p.name == name)
        v, z = mesh.uv[:, 1], mesh.vertices[:, 2]
        assert np.corrcoef(v, z)[0, 1] > 0.99, name


def test_shading_normals_are_smooth_on_a_ball_and_sharp_on_a_box():
    ball = meshes.sphere(1.0, 48)
    assert np.abs(meshes.corner_normals(ball) - ball.vertices[ball.faces]).max() < 0.03  # facets of 7.5 degrees
    box = meshes.merge(meshes.box(1, 1, 1).values())
    flat = meshes.face_normals(box)[:, None]
    assert np.allclose(meshes.corner_normals(box), flat, atol=1e-12)


def test_no_two_parts_share_a_plane_where_both_are_seen(parts):
    """Faces that coincide flicker: large upward faces must lie at least 1e-3 apart where they overlap."""
    levels = []
    for part in parts:
        normals = meshes.face_normals(part.mesh)
        up = (normals[:, 2] > 0.999 * np.linalg.norm(normals, axis=1)) & (normals[:, 2] > 0.02)
        levels += [(part.name, part.mesh.vertices[face]) for face in part.mesh.faces[up]]
    assert len(levels) > 5
    for i, (name, a) in enumerate(levels):
        for other, b in levels[:i]:
            apart = (a[:, :2].max(0) < b[:, :2].min(0)).any() or (b[:, :2].max(0) < a[:, :2].min(0)).any()
            if name != other and not apart:
                assert abs(a[0, 2] - b[0, 2]) > 1e-3, (name, other)


@pytest.mark.parametrize("make", [textures.eye_chart, textures.timetable, textures.magazine, textures.dial])
def test_print_has_contrast_and_repeats(make):
    image = make()
    grey = image.mean(-1)
    assert grey.max() - grey.min() > 150
    assert np.abs(np.diff(grey, axis=1)).mean() > 1.0  # strokes, not a blank sheet
    assert np.array_equal(image, make())


def test_globe_closes_at_the_date_line():
    image = textures.globe_map().astype(int)
    bare = np.abs(image[:, 4:8].mean(1) - image[:, -8:-4].mean(1)).mean(-1)
    assert np.median(bare) < 12


def test_weave_has_threads():
    image = textures.tartan(512, 64).astype(float).mean(-1)
    spectrum = np.abs(np.fft.rfft(image - image.mean(1, keepdims=True), axis=1)).mean(0)
    assert 64 in np.argsort(spectrum)[-6:] or spectrum[64] > 3 * np.median(spectrum)


@pytest.mark.parametrize("poses", [hemisphere_poses(48, 7), orbit_poses(12)])
def test_poses_look_at_the_origin_from_the_sphere(poses):
    for pose in poses:
        rotation, centre = pose[:3, :3], pose[:3, 3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert np.linalg.norm(centre) == pytest.approx(RADIUS)
        assert np.allclose(rotation[:, 2], centre / RADIUS)  # the camera looks along its -z
        assert rotation[2, 1] > 0  # up is up
        elevation = np.degrees(np.arcsin(centre[2] / RADIUS))
        assert 5 <= elevation <= 80


def test_train_poses_are_seeded_and_spread():
    a, b, c = hemisphere_poses(48, 7), hemisphere_poses(48, 7), hemisphere_poses(48, 8)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    centres = np.stack([pose[:3, 3] for pose in a]) / RADIUS
    assert len(np.unique(np.floor(np.arctan2(centres[:, 1], centres[:, 0]) / (np.pi / 4)))) == 8  # all octants
    assert np.median(centres[:, 2]) == pytest.approx(np.sin(np.radians([5, 80])).mean(), abs=0.15)  # uniform by area


def test_orbit_is_smooth():
    centres = np.stack([pose[:3, 3] for pose in orbit_poses(60)])
    steps = np.linalg.norm(np.roll(centres, -1, 0) - centres, axis=1)
    assert steps.max() < 1.5 * steps.min()


def test_colours_become_straight_srgb():
    colour = np.array([[[0.5 * 0.25, 0, 0, 0.25], [2.0, 1.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.0]]])
    assert to_srgb(colour).tolist() == [[[188, 0, 0, 64], [255, 255, 0, 255], [0, 0, 0, 0]]]


def test_axial_depth_of_a_plane_is_constant():
    size, z = 64, 3.0
    focal = 0.5 * size / np.tan(0.5 * CAMERA_ANGLE_X)
    offset = (np.arange(size) + 0.5 - size / 2) / focal
    slant = np.sqrt(1 + offset[None] ** 2 + offset[:, None] ** 2)
    ranges = (z - 0.1) * slant  # counted from the near plane at 0.1
    ranges[0, 0] = 0
    depth = axial_depth(ranges, size)
    assert depth[0, 0] == 0
    assert np.allclose(depth.ravel()[1:], z, atol=1e-6)


def test_key_follows_the_settings():
    keys = [
        write.scene_key(settings)
        for settings in (
            SMALL,
            replace(SMALL, pose_seed=8),
            replace(SMALL, cloud_points=0),
            replace(SMALL, render=replace(SMALL.render, samples=49)),
        )
    ]
    assert len(set(keys)) == 4
    assert write.scene_key(SMALL) == keys[0]


def test_key_follows_the_code(tmp_path, monkeypatch):
    for source in write.Path(write.__file__).parent.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    before = write.scene_key(SMALL)
    monkeypatch.setattr(write, "__file__", str(tmp_path / "write.py"))
    assert write.scene_key(SMALL) == before
    (tmp_path / "scene.py").write_text((tmp_path / "scene.py").read_text() + "\n# a change\n")
    assert write.scene_key(SMALL) != before


def test_scene_folder_is_read_as_nerf_synthetic(tmp_path):
    folder = write.write_scene(tmp_path / "hr", SMALL, Plane)
    loaded = load_scene(folder, eval=True)
    assert loaded.train == [f"train/r_{k}" for k in range(4)]
    assert loaded.test == ["test/r_0", "test/r_1"]
    camera = loaded.cameras["test/r_0"]
    assert camera.fov_x == pytest.approx(CAMERA_ANGLE_X)
    assert np.allclose(camera.centre, orbit_poses(2)[0][:3, 3])
    content = json.loads((folder / "transforms_test.json").read_text())
    assert content["frames"][1]["file_path"] == "./test/r_1"
    assert np.load(folder / "depth/test/r_1.npy").dtype == np.float32


def test_cloud_lies_on_the_rendered_surface(tmp_path):
    folder = write.write_scene(tmp_path / "hr", SMALL, Plane)
    cloud = read_points(folder / "points3d.ply")
    assert len(cloud.xyz) == 200
    per_view = np.split(cloud.xyz, 4)  # each view gives its share, in order
    for view, xyz in enumerate(per_view):
        back = hemisphere_poses(4, SMALL.pose_seed)[view][:3, 2]
        assert np.allclose(xyz @ back, 0, atol=1e-5)  # depth = radius: the plane through the origin
        assert (np.abs(xyz) < 1.0).all()
    assert np.array_equal(np.unique(cloud.rgb, axis=0), [[200, 100 + k, 50] for k in range(4)])


def test_block_colours_ignore_what_is_transparent():
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[..., :3] = 255
    rgba[0, 0] = [100, 50, 0, 255]
    rgba[1, 1] = [200, 150, 0, 255]
    colours = write.block_colour(rgba, 4)
    assert colours.shape == (1, 2, 3)
    assert colours[0, 0].tolist() == [150, 100, 0]


def test_writing_goes_on_where_it_stopped(tmp_path):
    class Dies(Plane):
        def __call__(self, pose, number):
            if number == 3:
                raise UserError("stopped here")
            return super().__call__(pose, number)

    with pytest.raises(UserError, match="stopped here"):
        write.write_scene(tmp_path / "hr", SMALL, Dies)
    assert not (tmp_path / "hr" / write.COMPLETE).exists()
    made = []
    write.write_scene(tmp_path / "hr", SMALL, lambda settings: made.append(Plane(settings)) or made[-1])
    assert made[0].asked == [3, 4, 5]
    whole = write.write_scene(tmp_path / "whole", SMALL, Plane)
    for path in sorted(p for p in whole.rglob("*") if p.suffix in (".png", ".npy", ".ply", ".json")):
        if path.name != write.COMPLETE:
            assert path.read_bytes() == (tmp_path / "hr" / path.relative_to(whole)).read_bytes(), path.name


def test_a_complete_scene_needs_no_renderer(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    folder = tmp_path / "demo_scene" / write.scene_key(SMALL)
    write.write_scene(folder, SMALL, Plane)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setitem(__import__("sys").modules, "mitsuba", None)
    assert write.cached_scene(SMALL) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_lost_view_is_rendered_again(tmp_path):
    folder = write.write_scene(tmp_path, SMALL, Plane)
    (folder / "train/r_2.png").unlink()
    made = []
    write.write_scene(folder, SMALL, lambda settings: made.append(Plane(settings)) or made[-1])
    assert made[0].asked == [2]


def test_without_mitsuba_one_line_names_the_requirements(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mitsuba" else find(name, *a))
    with pytest.raises(UserError, match=r"requirements-demo\.txt"):
        Renderer(RenderSettings(size=8))


@pytest.mark.skipif(not importlib.util.find_spec("mitsuba"), reason="mitsuba is missing (requirements-demo.txt)")
@pytest.mark.slow
def test_real_rendering_agrees_with_its_depth():
    settings = RenderSettings(size=48, samples=4)
    view = Renderer(settings, "scalar_rgb")(look_at_origin(0.3, 0.6), 0)
    assert view.rgba.shape == (48, 48, 4)
    inside = view.rgba[..., 3] == 255
    assert 0.2 < inside.mean() < 0.7
    assert (view.depth[inside] > RADIUS - 1.3).all()
    assert (view.depth[inside] < RADIUS + 1.3).all()
    assert (view.depth[view.rgba[..., 3] == 0] == 0).all()
    assert 60 < read_luma(view.rgba[inside]) < 190


def read_luma(pixels):
    """Mean luma of [n, 4] pixels."""
    return float((pixels[:, :3] @ [0.299, 0.587, 0.114]).mean())
