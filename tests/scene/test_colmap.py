"""COLMAP models and scenes: real files, both encodings, gaps in the ids, lenses, and broken input."""

import struct

import cv2
import numpy as np
import pytest

from scene import load_scene
from scene.cameras import rotation_from_quaternion
from scene.colmap_model import read_model
from scene.images import read_image, write_png
from tests.scene_factory import opengl_poses, picture, world_to_camera, write_colmap
from utils.errors import UserError


def project(camera, points):
    """COLMAP's PINHOLE, SIMPLE_RADIAL and OPENCV models, written out from their definition."""
    u, v = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    r2 = u * u + v * v
    if camera.model == "PINHOLE":
        fx, fy, cx, cy = camera.params
    elif camera.model == "SIMPLE_RADIAL":
        fx, cx, cy, k = camera.params
        fy, u, v = fx, u * (1 + k * r2), v * (1 + k * r2)
    else:
        fx, fy, cx, cy, k1, k2, p1, p2 = camera.params
        radial = 1 + k1 * r2 + k2 * r2 * r2
        u, v = (
            u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u),
            v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v),
        )
    return np.stack([fx * u + cx, fy * v + cy], axis=1)


def in_camera(model, image, point_ids):
    position = {int(key): i for i, key in enumerate(model.point_ids)}
    xyz = model.xyz[[position[int(key)] for key in point_ids]]
    return xyz @ rotation_from_quaternion(image.quaternion, "here").T + image.translation


def test_fixture_binary_and_text_are_equal(data_dir):
    binary, text = (read_model(data_dir / "colmap_fixture" / kind) for kind in ("bin", "txt"))
    assert set(binary.cameras) == set(text.cameras) == {2, 5, 9}
    assert set(binary.images) == set(text.images) == {3, 5, 6, 8, 9, 12}
    assert binary.cameras == text.cameras
    for key, image in binary.images.items():
        other = text.images[key]
        assert (image.name, image.camera_id) == (other.name, other.camera_id)
        assert image.quaternion == pytest.approx(other.quaternion, abs=1e-15)
        assert np.array_equal(image.point_ids, other.point_ids)
        assert np.allclose(image.keypoints, other.keypoints, atol=1e-12)
    order, other_order = np.argsort(binary.point_ids), np.argsort(text.point_ids)
    assert np.array_equal(binary.point_ids[order], text.point_ids[other_order])
    assert np.allclose(binary.xyz[order], text.xyz[other_order], atol=1e-12)
    assert np.array_equal(binary.rgb[order], text.rgb[other_order])


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_fixture_projects_onto_its_keypoints(data_dir, kind):
    model = read_model(data_dir / "colmap_fixture" / kind)
    observations = 0
    for image in model.images.values():
        matched = image.point_ids >= 0
        assert (~matched).any()  # unmatched keypoints are there, as -1
        pixels = project(model.cameras[image.camera_id], in_camera(model, image, image.point_ids[matched]))
        assert np.abs(pixels - image.keypoints[matched]).max() < 1e-9
        observations += int(matched.sum())
    assert observations == 533


def test_bonsai_reprojects(data_dir):
    model = read_model(data_dir / "bonsai_59/sparse/0")
    errors = []
    for image in model.images.values():
        matched = image.point_ids >= 0
        points = in_camera(model, image, image.point_ids[matched])
        assert (points[:, 2] > 0).all()
        pixels = project(model.cameras[image.camera_id], points)
        assert (pixels >= 0).all()
        assert (pixels <= [800, 533]).all()
        errors.append(np.linalg.norm(pixels - image.keypoints[matched], axis=1))
    assert len(np.concatenate(errors)) == 64_638
    assert np.concatenate(errors).mean() == pytest.approx(0.345, abs=5e-4)


def test_bonsai_scene_splits_and_agrees_with_transforms_json(data_dir):
    scene = load_scene(data_dir / "bonsai_59")
    other = load_scene(data_dir / "bonsai_59/transforms.json")
    assert (scene.kind, other.kind) == ("colmap", "transforms")
    assert (len(scene.train), len(scene.test)) == (51, 8)
    assert scene.test[0] == "images/DSCF5565"
    assert (scene.train, scene.test) == (other.train, other.test)
    for name, camera in scene.cameras.items():
        assert np.abs(camera.world_to_camera - other.cameras[name].world_to_camera).max() < 5e-9
        assert np.abs(camera.K - other.cameras[name].K).max() < 5e-9
    assert len(scene.points.xyz) == 15_186
    assert np.array_equal(scene.points.xyz, other.points.xyz)
    assert load_scene(data_dir / "bonsai_59", eval=False).test == []


def test_bonsai_tracks_are_the_points_that_reproject(data_dir):
    scene = load_scene(data_dir / "bonsai_59")
    name = scene.test[3]
    camera, seen = scene.cameras[name], scene.tracks.visible[name]
    points = scene.points.xyz[seen] @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    pixels = points @ camera.K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    assert len(seen) > 200
    assert ((pixels > 0) & (pixels < [800, 533])).all()
    shared = scene.tracks.covisibility(scene.train)
    a, b = scene.tracks.visible[scene.train[0]], scene.tracks.visible[scene.train[1]]
    assert shared[0, 1] == shared[1, 0] == len(np.intersect1d(a, b))
    assert shared[0, 0] == len(a)


def test_ids_with_gaps_poses_and_principal_point(tmp_path):
    scene = load_scene(write_colmap(tmp_path))
    assert scene.test == ["images/view_000", "images/view_008"]
    assert len(scene.train) == 7
    for i, pose in enumerate(opengl_poses(9)):
        camera = scene.cameras[f"images/view_{i:03}"]
        assert np.allclose(camera.world_to_camera, world_to_camera(pose), atol=1e-9)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (40.0, 41.0, 24.5, 15.5)
        assert scene.tracks.visible[camera.name].tolist() == list(range(i % 2, 20, 2))


def test_compat_centres_the_principal_point(tmp_path):
    camera = load_scene(write_colmap(tmp_path), compat="sequence_matters").cameras["images/view_003"]
    assert (camera.cx, camera.cy) == (24.0, 16.0)


def test_reduced_folder_gives_the_same_names_and_scaled_cameras(tmp_path):
    write_colmap(tmp_path)
    for i in range(9):
        write_png(tmp_path / f"images_2/view_{i:03}.png", picture(i, 24, 16)[..., :3])
    full, half = load_scene(tmp_path), load_scene(tmp_path, images="images_2")
    assert full.train == half.train
    assert np.allclose(half.cameras["images/view_001"].K[:2], full.cameras["images/view_001"].K[:2] / 2)
    assert half.images.load("images/view_001").shape == (3, 16, 24)


def test_resolution_flag_scales_image_and_camera(tmp_path):
    scene = load_scene(write_colmap(tmp_path), resolution=4)
    camera = scene.cameras["images/view_001"]
    assert scene.images.load(camera.name).shape == (3, 8, 12)
    assert (camera.width, camera.height, camera.cx) == (12, 8, 24.5 / 4)


def test_images_with_another_extension_are_found_by_stem(tmp_path):
    write_colmap(tmp_path)
    (tmp_path / "images/view_004.png").rename(tmp_path / "images/view_004.JPG")  # the content decides, not the name
    assert load_scene(tmp_path).images.path("images/view_004").name == "view_004.JPG"


def test_distorted_camera_becomes_a_pinhole_of_the_same_size(tmp_path):
    model = (4, (40.0, 41.0, 24.5, 15.5, 0.1, 0.02, 1e-3, -1e-3))
    scene = load_scene(write_colmap(tmp_path, model=model))
    camera = scene.cameras["images/view_002"]
    assert (camera.width, camera.height, camera.cx, camera.cy) == (48, 32, 24.5, 15.5)
    assert camera.fx / 40.0 == pytest.approx(camera.fy / 41.0)
    assert camera.fx > 40.0
    K, K_new = np.array([[40, 0, 24.0], [0, 41, 15.0], [0, 0, 1]]), camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    maps = cv2.initUndistortRectifyMap(K, np.array(model[1][4:]), None, K_new, (48, 32), cv2.CV_32FC1)
    file = read_image(tmp_path / "images/view_002.png").astype(np.float32)
    expected = cv2.remap(file, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(scene.images.raw(camera.name) - expected.clip(0, 255)).max() <= 0.51


def test_zero_distortion_is_a_pinhole(tmp_path):
    scene = load_scene(write_colmap(tmp_path, model=(2, (40.0, 24.5, 15.5, 0.0))))
    assert np.array_equal(scene.images.raw("images/view_000"), picture(0, 48, 32)[..., :3])


def test_points_that_are_not_finite_are_dropped_and_counted(tmp_path, capsys):
    write_colmap(tmp_path)
    path = tmp_path / "sparse/0/points3D.bin"
    data = bytearray(path.read_bytes())
    struct.pack_into("<d", data, 8 + 2 * (51 + 8) + 8, float("nan"))  # x of point 2 (id 110)
    path.write_bytes(data)
    scene = load_scene(tmp_path)
    assert len(scene.points.xyz) == 19
    assert "1 points are not finite" in capsys.readouterr().err
    # Indices after the dropped point move up, and nobody sees it any more.
    assert scene.tracks.visible["images/view_000"].tolist() == [0, *range(3, 19, 2)]


def as_text(model, folder) -> None:
    """Write a model as COLMAP's text files."""
    folder.mkdir(parents=True)
    cameras = [f"{k} {c.model} {c.width} {c.height} {' '.join(map(repr, c.params))}" for k, c in model.cameras.items()]
    (folder / "cameras.txt").write_text("# comment\n" + "\n".join(cameras) + "\n")
    lines = ["# comment"]
    for key, image in model.images.items():
        lines.append(
            f"{key} {' '.join(map(repr, image.quaternion + image.translation))} {image.camera_id} {image.name}"
        )
        lines.append(" ".join(f"{x} {y} {p}" for (x, y), p in zip(image.keypoints, image.point_ids, strict=True)))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    points = zip(model.point_ids, model.xyz, model.rgb, strict=True)
    rows = [f"{key} {' '.join(map(str, xyz))} {' '.join(map(str, rgb))} 0.5 3 0" for key, xyz, rgb in points]
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")


def test_text_with_an_empty_keypoint_line_and_spaces_in_names(tmp_path):
    write_colmap(tmp_path / "a")
    as_text(read_model(tmp_path / "a/sparse/0"), tmp_path / "t")
    lines = (tmp_path / "t/images.txt").read_text().split("\n")
    lines[2] = ""  # the first image has no keypoints
    lines[3] = lines[3].replace("view_001.png", "sub folder/view one.png")
    (tmp_path / "t/images.txt").write_text("\n".join(lines))
    model = read_model(tmp_path / "t")
    assert len(model.images) == 9
    assert len(model.images[3].point_ids) == 0
    assert model.images[6].name == "sub folder/view one.png"
    assert len(model.images[6].point_ids) == 11


def spoil_bytes(name: str, change):
    def spoil(root):
        path = root / "sparse/0" / name
        path.write_bytes(change(bytearray(path.read_bytes())))

    return spoil


def put(layout: str, offset: int, value):
    def change(data):
        struct.pack_into(layout, data, offset, value)
        return data

    return change


def remove_image(root):
    (root / "images/view_003.png").unlink()


def shrink_image(root):
    write_png(root / "images/view_005.png", picture(5, 24, 16)[..., :3])


def stretch_all(root):
    for i in range(9):
        write_png(root / f"images/view_{i:03}.png", picture(i, 48, 40)[..., :3])


def empty_image(root):
    (root / "images/view_003.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_bytes("images.bin", lambda data: data[:-30]), r"images\.bin: .* cut short"),
        (spoil_bytes("cameras.bin", lambda data: data[:-1]), r"cameras\.bin: cut short"),
        (spoil_bytes("points3D.bin", lambda data: data[:-1]), r"points3D\.bin: cut short"),
        (spoil_bytes("points3D.bin", lambda data: data + b"\0"), r"points3D\.bin: 1 bytes follow"),
        (spoil_bytes("cameras.bin", put("<i", 12, 99)), "camera 7 .* unknown model id 99"),
        (spoil_bytes("cameras.bin", put("<d", 32, float("nan"))), "camera 7 has parameters that are not finite"),
        (spoil_bytes("cameras.bin", put("<d", 32, -40.0)), "camera 7: focal lengths -40, 41 must be positive"),
        (spoil_bytes("cameras.bin", put("<i", 8, 8)), r"image 3 \(view_000.png\) names camera 7"),
        (spoil_bytes("images.bin", put("<d", 44, float("nan"))), r"image 3 \(view_000.png\): the pose is not finite"),
        (spoil_bytes("images.bin", put("<Q", 0, 10**11)), "100000000000 images at byte 0 cannot stand in"),
        (remove_image, r"1 of 9 images are missing, the first is images/view_003\.png"),
        (shrink_image, r"view_005\.png is 24x16 px, but .*view_000\.png of the same set is 48x32"),
        (stretch_all, r"view_000\.png is 48x40 px, which is not the 48x32 of its camera"),
        (empty_image, r"view_003\.png: is empty"),
    ],
)
def test_broken_scenes_have_one_message(tmp_path, spoil, message):
    spoil(write_colmap(tmp_path))
    with pytest.raises(UserError, match=message):
        load_scene(tmp_path)


def test_lens_that_opencv_lacks_is_refused_with_advice(tmp_path):
    write_colmap(tmp_path, model=(7, (40.0, 41.0, 24.5, 15.5, 0.9)))
    with pytest.raises(UserError, match="camera 7: FOV is not read; run `colmap image_undistorter`"):
        load_scene(tmp_path)


def test_missing_images_can_be_skipped(tmp_path, capsys):
    remove_image(write_colmap(tmp_path))
    scene = load_scene(tmp_path, allow_missing=True)
    assert len(scene.cameras) == 8
    assert "images/view_003" not in scene.cameras
    assert "skipped" in capsys.readouterr().err


def test_hr_truth_in_another_scene(tmp_path):
    hr = write_colmap(tmp_path / "hr")
    lr = write_colmap(tmp_path / "lr")
    assert load_scene(lr).hr_path("images/view_001") is None
    for root in (hr, hr / "images"):
        scene = load_scene(lr, hr_root=root)
        assert scene.hr_path("images/view_001") == hr / "images/view_001.png"
        assert scene.hr_path("images/other") is None
