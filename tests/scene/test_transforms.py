"""nerfstudio and instant-ngp scenes: every rule about which field wins, splits, worlds, and broken input."""

import json

import numpy as np
import pytest

from scene import load_scene
from scene.ply import write_points
from scene.points import PointCloud
from tests.scene_factory import opengl_poses, picture, world_to_camera, write_colmap, write_transforms
from utils.errors import UserError


def edit(root, change) -> None:
    path = root / "transforms.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def camera_of(root, **top):
    return load_scene(write_transforms(root, **top)).cameras["images/frame_001"]


def test_poses_names_and_hold_out(tmp_path):
    scene = load_scene(write_transforms(tmp_path))
    assert scene.kind == "transforms"
    assert scene.test == ["images/frame_000", "images/frame_008"]
    for i, pose in enumerate(opengl_poses(9)):
        camera = scene.cameras[f"images/frame_{i:03}"]
        assert np.allclose(camera.world_to_camera, world_to_camera(pose), atol=1e-12)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (40.0, 41.0, 24.5, 15.5)


def test_sizes_may_be_floats_and_missing_fields_have_defaults(tmp_path):
    write_transforms(tmp_path, w=48.0, h=32.0)
    edit(tmp_path, lambda d: [d.pop(key) for key in ("fl_y", "cx", "cy")])
    camera = load_scene(tmp_path).cameras["images/frame_001"]
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (40.0, 40.0, 24.0, 16.0)


def test_focal_length_from_the_angle_only_where_it_is_missing(tmp_path):
    assert camera_of(tmp_path, camera_angle_x=1.0).fx == 40.0
    edit(tmp_path, lambda d: [d.pop(key) for key in ("fl_x", "fl_y")])
    camera = load_scene(tmp_path).cameras["images/frame_001"]
    assert camera.fx == camera.fy == pytest.approx(24.0 / np.tan(0.5))


def test_fields_of_the_frame_win(tmp_path):
    write_transforms(tmp_path)
    edit(tmp_path, lambda d: d["frames"][1].update(fl_x=50.0, cx=20.0))
    cameras = load_scene(tmp_path).cameras
    assert (cameras["images/frame_001"].fx, cameras["images/frame_001"].cx) == (50.0, 20.0)
    assert cameras["images/frame_002"].fx == 40.0


def test_intrinsics_follow_the_image_in_hand(tmp_path):
    camera = camera_of(tmp_path, w=96, h=64, fl_x=80.0, fl_y=82.0, cx=49.0, cy=31.0)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (40.0, 41.0, 24.5, 15.5)


def test_matrix_of_three_rows_is_accepted(tmp_path):
    write_transforms(tmp_path)
    edit(tmp_path, lambda d: d["frames"][1]["transform_matrix"].pop())
    assert np.allclose(
        load_scene(tmp_path).cameras["images/frame_001"].world_to_camera, world_to_camera(opengl_poses(9)[1])
    )


def test_missing_extension_is_found(tmp_path):
    write_transforms(tmp_path)
    edit(tmp_path, lambda d: d["frames"][1].update(file_path="./images/frame_001"))
    assert "images/frame_001" in load_scene(tmp_path).cameras


def test_other_images_folder_keeps_the_names(tmp_path):
    write_transforms(tmp_path)
    (tmp_path / "images").rename(tmp_path / "images_1")
    scene = load_scene(tmp_path, images="images_1")
    assert scene.images.path("images/frame_001") == tmp_path / "images_1/frame_001.png"


def test_lists_in_the_file_win_over_the_hold_out(tmp_path):
    files = [f"images/frame_{i:03}.png" for i in range(9)]
    write_transforms(tmp_path, train_filenames=files[:5], val_filenames=files[5:6], test_filenames=files[6:8])
    scene = load_scene(tmp_path)
    assert scene.train == [f"images/frame_{i:03}" for i in range(5)]
    assert scene.test == ["images/frame_006", "images/frame_007"]
    edit(tmp_path, lambda d: d.pop("test_filenames"))
    assert load_scene(tmp_path).test == ["images/frame_005"]
    assert len(load_scene(tmp_path, eval=False).train) == 6


def test_distortion_is_taken_out(tmp_path):
    camera = camera_of(tmp_path, k1=0.1, k2=0.01)
    assert camera.fx > 40.0
    image = load_scene(tmp_path).images.raw("images/frame_001")
    assert image.shape == (32, 48, 3)
    assert not np.array_equal(image, picture(1, 48, 32)[..., :3])


def test_zero_distortion_leaves_the_image_alone(tmp_path):
    scene = load_scene(write_transforms(tmp_path, k1=0.0, p1=0.0, camera_model="OPENCV"))
    assert np.array_equal(scene.images.raw("images/frame_001"), picture(1, 48, 32)[..., :3])


@pytest.mark.parametrize("top", [{"is_fisheye": True}, {"camera_model": "OPENCV_FISHEYE"}])
def test_fisheye_is_taken_out_even_with_zero_coefficients(tmp_path, top):
    camera_of(tmp_path, **top)
    image = load_scene(tmp_path).images.raw("images/frame_001")
    assert not np.array_equal(image, picture(1, 48, 32)[..., :3])


def test_points_of_ply_file_path_live_in_the_world_of_the_poses(tmp_path):
    cloud = PointCloud(np.array([[1, 2, 3]], np.float32), np.array([[4, 5, 6]], np.uint8))
    write_points(tmp_path / "sparse_pc.ply", cloud)
    write_transforms(tmp_path, ply_file_path="sparse_pc.ply", applied_transform=np.eye(4)[[1, 0, 2]].tolist())
    assert np.array_equal(load_scene(tmp_path).points.xyz, cloud.xyz)


def test_colmap_points_are_brought_into_the_world_of_the_poses(tmp_path):
    write_colmap(tmp_path)
    own = load_scene(tmp_path).points
    turn = np.array([[1.0, 0, 0, 0.5], [0, 0, 1, 0], [0, -1, 0, -2.0]])  # (x, z, -y), as exporters do, and a shift
    write_transforms(tmp_path, applied_transform=turn.tolist(), applied_scale=2.0)
    points = load_scene(tmp_path / "transforms.json").points
    assert np.allclose(points.xyz, 2.0 * (own.xyz @ turn[:, :3].T + turn[:, 3]), atol=1e-5)
    assert np.array_equal(points.rgb, own.rgb)


def test_without_points_they_are_random_in_the_box_of_the_cameras(tmp_path):
    scene = load_scene(write_transforms(tmp_path))
    centres = np.array([camera.centre for camera in scene.cameras.values()])
    low, high = scene.points.xyz.min(0), scene.points.xyz.max(0)
    assert len(scene.points.xyz) == 100_000
    assert np.allclose((low + high) / 2, (centres.min(0) + centres.max(0)) / 2, atol=1e-2)
    assert np.allclose(high - low, np.ptp(centres, axis=0).max(), rtol=1e-2)


def test_training_hints_of_instant_ngp_are_ignored(tmp_path):
    hints = {"aabb_scale": 4, "scale": 0.33, "offset": [0.5, 0.5, 0.5], "n_extra_learnable_dims": 16}
    assert camera_of(tmp_path, **hints).fx == 40.0


def with_frame(**kw):
    return lambda d: d["frames"][3].update(kw)


NAN_POSE = [[float("nan"), 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_frame(transform_matrix=NAN_POSE), r"transforms\.json: frame 3 \(images/frame_003\.png\): .* nan"),
        (with_frame(transform_matrix=[[1, 0, 0, 1]]), "frame 3 .* is 1x4"),
        (with_frame(file_path="images/none.png"), r"1 of 9 images are missing, the first is images/none\.png"),
        (with_frame(file_path="../x.png"), "frame 3 .* leads out"),
        (with_frame(fl_x="long"), "frame 3 .*`fl_x` must be a number"),
        (with_frame(fl_x=-1.0), "frame 3 .* must be positive"),
        (with_frame(w=40.5), "frame 3 .* is not a size in pixels"),
        (with_frame(w=48, h=48), "frame 3 .* which is not the 48x48 of its camera"),
        (with_frame(camera_model="EQUIRECTANGULAR"), "frame 3 .* 'EQUIRECTANGULAR' is not read"),
        (with_frame(k4=0.1), "k4 = 0.1 belongs to a fisheye"),
        (lambda d: d.pop("fl_x"), "`fl_x` must be a number, found NoneType"),
        (lambda d: d.update(frames={}), "`frames` must be a list, found dict"),
        (lambda d: d.update(ply_file_path="../x.ply"), "ply_file_path .* leads out"),
        (lambda d: d.update(ply_file_path="/x.ply"), "ply_file_path: .* is absolute"),
        (lambda d: d.update(ply_file_path="none.ply"), r"none\.ply: cannot be read"),
        (lambda d: d.update(train_filenames=[1]), "`train_filenames` must hold file paths"),
        (lambda d: d.update(train_filenames=[]), "no training views"),
    ],
)
def test_broken_files_have_one_message(tmp_path, change, message):
    edit(write_transforms(tmp_path), change)
    with pytest.raises(UserError, match=message):
        load_scene(tmp_path)


def test_bonsai_points_come_from_the_model_beside_it(data_dir):
    assert len(load_scene(data_dir / "bonsai_59/transforms.json").points.xyz) == 15_186
