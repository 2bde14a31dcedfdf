"""NeRF-synthetic scenes: the real lego, and every way in which such a scene can be broken."""

import json

import numpy as np
import pytest

from scene import load_scene
from scene.images import write_png
from scene.ply import write_points
from scene.points import PointCloud, random_points
from tests.scene_factory import opengl_poses, picture, world_to_camera, write_blender
from utils.errors import UserError


def lego(data_dir, **kw):
    return load_scene(data_dir / "nerf_synthetic_lego/lr_200", hr_root=data_dir / "nerf_synthetic_lego/hr_800", **kw)


def test_lego_counts_names_and_radius(data_dir):
    scene = lego(data_dir)
    assert (len(scene.train), len(scene.test)) == (100, 25)
    assert scene.train[:2] == ["train/r_0", "train/r_1"]
    assert scene.test[:2] == ["test/r_0", "test/r_8"]
    radii = [np.linalg.norm(camera.centre) for camera in scene.cameras.values()]
    assert np.allclose(radii, 4.0311, atol=1e-4)
    assert {scene.cameras[name].width for name in scene.train} == {200}
    assert {scene.cameras[name].width for name in scene.test} == {800}
    camera = scene.cameras["train/r_0"]
    assert camera.fx == camera.fy == pytest.approx(0.5 * 200 / np.tan(0.5 * 0.6911112070083618))
    assert camera.fov_x == pytest.approx(0.6911112070083618)


def test_lego_hr_truth_exists_for_every_fourth_training_view(data_dir):
    scene = lego(data_dir)
    assert [name for name in scene.train if scene.hr_path(name)] == [f"train/r_{i}" for i in range(0, 100, 4)]
    assert all(scene.hr_path(name) for name in scene.test)
    hr = load_scene(data_dir / "nerf_synthetic_lego/hr_800")
    for name in hr.train:
        assert np.allclose(hr.cameras[name].world_to_camera, scene.cameras[name].world_to_camera, atol=1e-6)


def test_lego_visual_hull_falls_on_the_object_in_the_test_views(data_dir):
    scene = lego(data_dir)
    points = np.random.default_rng(0).uniform(-1.3, 1.3, (100_000, 3))

    def inside(name, points, least_alpha):
        camera = scene.cameras[name]
        seen = points @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
        pixels = seen @ camera.K.T
        x, y = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        valid = (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
        mask = np.zeros(len(points), bool)
        mask[valid] = scene.images.raw(name)[y[valid], x[valid], 3] >= least_alpha
        return mask

    hull = points
    for name in scene.train:
        hull = hull[inside(name, hull, 128)]
    assert len(hull) > 5000
    assert min(inside(name, hull, 1).mean() for name in scene.test) >= 0.997


def test_lego_without_hr_root_says_what_to_do(data_dir):
    with pytest.raises(UserError, match=r"frame 0 \(\.\./hr_800/test/r_0\).*leads out.*--hr_root DIR"):
        load_scene(data_dir / "nerf_synthetic_lego/lr_200")


def test_factory_scene_is_read_exactly(tmp_path):
    scene = load_scene(write_blender(tmp_path))
    assert scene.kind == "blender"
    assert scene.train == [f"train/r_{i}" for i in range(8)]
    assert scene.test == ["test/r_0", "test/r_1"]
    for i, pose in enumerate(opengl_poses(8)):
        assert np.allclose(scene.cameras[f"train/r_{i}"].world_to_camera, world_to_camera(pose), atol=1e-12)
        assert np.array_equal(scene.images.raw(f"train/r_{i}"), picture(i, 32, 32))
    assert scene.images.has_alpha("train/r_0")
    centres = np.array([pose[:3, 3] for pose in opengl_poses(8)])
    assert scene.extent == pytest.approx(1.1 * np.linalg.norm(centres - centres.mean(0), axis=1).max())


def test_without_eval_the_test_views_train(tmp_path):
    scene = load_scene(write_blender(tmp_path), eval=False)
    assert scene.train[-2:] == ["test/r_0", "test/r_1"]
    assert scene.test == []


def test_start_cloud_is_random_unless_the_scene_has_one(tmp_path):
    write_blender(tmp_path)
    points = load_scene(tmp_path).points
    assert len(points.xyz) == 100_000
    assert np.array_equal(points.xyz, random_points().xyz)
    assert np.abs(points.xyz).max() <= 1.3
    own = PointCloud(np.eye(3, dtype=np.float32), np.full((3, 3), 9, np.uint8))
    write_points(tmp_path / "points3d.ply", own)
    assert np.array_equal(load_scene(tmp_path).points.xyz, own.xyz)


def test_random_points_are_the_draws_of_the_original():
    np.random.seed(0)  # noqa: NPY002 - the oracle is the original's own three lines
    xyz = np.random.random((1000, 3)) * 2.6 - 1.3  # noqa: NPY002
    rgb = (np.random.random((1000, 3)) / 255.0) * 0.28209479177387814 + 0.5  # noqa: NPY002
    points = random_points(1000)
    assert np.array_equal(points.xyz, xyz.astype(np.float32))
    assert np.array_equal(points.rgb, (rgb * 255).astype(np.uint8))


def test_stray_files_are_not_views(tmp_path):
    write_blender(tmp_path)
    write_png(tmp_path / "test/r_0_depth_0001.png", picture(0, 32, 32))
    assert len(load_scene(tmp_path).test) == 2


def test_paths_with_extension_and_other_dots(tmp_path):
    write_blender(tmp_path, views=2)
    (tmp_path / "train/r_1.png").rename(tmp_path / "train/r_1.5.png")
    edit(tmp_path, lambda d: d["frames"][0].update(file_path="train/r_0.png"))
    edit(tmp_path, lambda d: d["frames"][1].update(file_path="train/r_1.5"))
    assert load_scene(tmp_path).train == ["train/r_0", "train/r_1.5"]


def test_users_own_links_inside_the_scene_work(tmp_path):
    write_blender(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real/train").rename(tmp_path / "real/train_v2")
    (tmp_path / "real/train").symlink_to(tmp_path / "real/train_v2")
    scene = load_scene(tmp_path / "link")
    assert scene.train[0] == "train/r_0"
    assert scene.images.raw("train/r_0").shape == (32, 32, 4)


def test_lr_scene_with_recorded_hr_root(tmp_path):
    write_blender(tmp_path / "hr", size=64)
    write_blender(tmp_path / "lr", size=16)
    for i in range(2):
        (tmp_path / f"lr/test/r_{i}.png").unlink()
        edit(tmp_path / "lr", lambda d, i=i: d["frames"][i].update(file_path=f"../hr/test/r_{i}"), "test")
    with pytest.raises(UserError, match="leads out of the scene"):
        load_scene(tmp_path / "lr")
    for recorded in ("../hr", str(tmp_path / "hr")):
        (tmp_path / "lr/lr_kernel.json").write_text(json.dumps({"kernel": "area", "hr_root": recorded}))
        scene = load_scene(tmp_path / "lr")
        assert scene.test == ["test/r_0", "test/r_1"]
        assert scene.cameras["test/r_0"].width == 64
        assert scene.hr_path("train/r_3").resolve() == tmp_path / "hr/train/r_3.png"
        assert scene.kernel_file.kernel == "area"


def edit(root, change, split: str = "train") -> None:
    path = root / f"transforms_{split}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def frame(**kw):
    return lambda root: edit(root, lambda d: d["frames"][3].update(kw))


def pose(change):
    def spoil(root):
        edit(
            root, lambda d: d["frames"][3].update(transform_matrix=change(np.array(d["frames"][3]["transform_matrix"])))
        )

    return spoil


def with_nan(matrix):
    matrix[0, 3] = np.nan
    return matrix.tolist()


def image(name: str, pixels: np.ndarray):
    return lambda root: write_png(root / name, pixels)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pose(with_nan), r"transforms_train\.json: frame 3 \(\./train/r_3\): transform_matrix holds nan"),
        (pose(lambda m: m[:3].tolist()), r"frame 3 .*: transform_matrix is 3x4; a 4x4"),
        (pose(lambda m: (m * [0.5, 0.5, 0.5, 1]).tolist()), "frame 3 .* scaled by 0.5"),
        (pose(lambda m: (m * [-1, 1, 1, 1]).tolist()), "frame 3 .* mirrored"),
        (pose(lambda m: (m + [[0, 0.1, 0, 0]] + 0).tolist()), "frame 3 .* (last row|not orthonormal)"),
        (pose(lambda m: "x"), "frame 3 .* transform_matrix is 0x0"),
        (pose(lambda m: [["1"] * 4] * 4), "frame 3 .* not a number"),
        (frame(file_path="./train/r_99"), r"1 of 10 images are missing, the first is train/r_99\.png .*frame 3"),
        (frame(file_path="/etc/hostname"), "frame 3 .* is absolute"),
        (frame(file_path="../../etc/x"), "frame 3 .* leads out of the scene"),
        (frame(file_path="./train/r_2"), "frame 3 .* a second view is called train/r_2"),
        (frame(file_path=3), "frame 3: `file_path` must be a text, found int"),
        (lambda root: edit(root, lambda d: d.update(camera_angle_x="wide")), "`camera_angle_x` must be a number"),
        (lambda root: edit(root, lambda d: d.update(camera_angle_x=40.0)), "camera_angle_x is 40; radians"),
        (lambda root: edit(root, lambda d: d.pop("frames")), "`frames` must be a list"),
        (lambda root: edit(root, lambda d: d["frames"].clear()), "no training views"),
        (lambda root: (root / "transforms_test.json").unlink(), r"transforms_test\.json: no such file"),
        (lambda root: (root / "transforms_train.json").write_text("{"), "not valid JSON"),
        (image("train/r_3.png", picture(3, 16, 16)), r"frame 3 .*r_3\.png is 16x16 px, but .*r_0\.png .* is 32x32"),
        (image("train/r_3.png", picture(3, 32, 32)[..., :3]), r"frame 3 .*r_3\.png is RGB, but .*r_0\.png .* RGBA"),
        (lambda root: (root / "train/r_3.png").write_bytes(b""), r"r_3\.png: is empty"),
    ],
)
def test_broken_scenes_have_one_message_naming_file_and_frame(tmp_path, spoil, message):
    spoil(write_blender(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        load_scene(tmp_path)
    assert "\n" not in str(caught.value)


def test_truncated_image_is_found_when_the_scene_is_loaded(tmp_path):
    write_blender(tmp_path)
    path = tmp_path / "train/r_3.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"r_3\.png: cut short"):
        load_scene(tmp_path)


def test_folder_without_a_scene_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"looked for sparse/0/images\.bin or \.txt, transforms_train\.json"):
        load_scene(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_scene(tmp_path / "nowhere")
    write_blender(tmp_path)
    with pytest.raises(UserError, match=r"--hr_root .*: no such folder"):
        load_scene(tmp_path, hr_root=tmp_path / "nowhere")
    with pytest.raises(UserError, match="--compat"):
        load_scene(tmp_path, compat="other")


def test_nothing_is_written_into_the_scene(tmp_path):
    write_blender(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    scene = load_scene(tmp_path)
    scene.images.load("train/r_0")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
