"""PLY: bit-exact round trips, foreign layouts, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.gaussians import FIELDS, Gaussians
from scene.ply import read_gaussians, read_points, write_gaussians, write_points
from scene.points import PointCloud, random_points
from utils.errors import UserError

ORDER = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(45))]
ORDER += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def some_gaussians(n: int = 7, degree: int = 3, seed: int = 0) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (1,), "sh0": (1, 3)}
    shapes["shN"] = ((degree + 1) ** 2 - 1, 3)
    return Gaussians(**{name: torch.randn(n, *shape, generator=draw) for name, shape in shapes.items()})


def assert_same(a: Gaussians, b: Gaussians) -> None:
    for name in FIELDS:
        assert getattr(b, name).is_contiguous()
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@given(st.integers(0, 20), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_round_trip_is_bit_exact(tmp_path_factory, n, degree, seed):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    gaussians = some_gaussians(n, degree, seed)
    write_gaussians(path, gaussians)
    back = read_gaussians(path)
    assert_same(gaussians, back)
    assert back.sh_degree == degree


def test_header_and_record_are_those_of_the_original(tmp_path):
    gaussians = some_gaussians(2)
    write_gaussians(tmp_path / "a.ply", gaussians)
    data = (tmp_path / "a.ply").read_bytes()
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 2\n"
    header += "".join(f"property float {name}\n" for name in ORDER) + "end_header\n"
    assert data.startswith(header.encode())
    assert len(data) == len(header) + 2 * 248
    row = dict(zip(ORDER, np.frombuffer(data, "<f4", offset=len(header)).reshape(2, 62)[1], strict=True))
    assert row["nx"] == row["ny"] == row["nz"] == 0
    assert row["rot_0"] == gaussians.quats[1, 0]
    assert row["opacity"] == gaussians.logit_opacities[1, 0]
    assert row["f_dc_2"] == gaussians.sh0[1, 0, 2]
    assert row["f_rest_16"] == gaussians.shN[1, 1, 1]  # channel-major: 15 + 1 = coefficient 2 of green


def foreign(path, gaussians: Gaussians, kind: str, seed: int = 1) -> None:
    """The same splats as another tool would write them: shuffled, no normals, extra properties, another format."""
    write_gaussians(path, gaussians)
    data = path.read_bytes()
    values = np.frombuffer(data, "<f4", offset=data.index(b"end_header\n") + 11).reshape(gaussians.num, len(ORDER))
    columns = {name: values[:, i] for i, name in enumerate(ORDER) if not name.startswith("n")}
    columns["filter_3D"] = np.arange(gaussians.num)
    columns["red"] = np.arange(gaussians.num) % 256
    names = list(columns)
    np.random.default_rng(seed).shuffle(names)
    types = {name: ("u1", "uchar") if name == "red" else ("f8", "double") for name in names}
    order = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}[kind]
    head = [f"ply\nformat {kind} 1.0", "comment by someone else", f"element vertex {gaussians.num}"]
    head += [f"property {types[name][1]} {name}" for name in names]
    head += ["element face 0", "property list uchar int vertex_indices", "end_header"]
    table = np.empty(gaussians.num, [(name, order + types[name][0]) for name in names])
    for name in names:
        table[name] = columns[name]
    body = table.tobytes()
    if kind == "ascii":
        body = "".join(" ".join(repr(v.item()) for v in row) + "\r\n" for row in table).encode()
    path.write_bytes("\n".join(head).encode() + b"\n" + body)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_shuffled_foreign_files_read_the_same(tmp_path, kind):
    gaussians = some_gaussians(9)
    foreign(tmp_path / "a.ply", gaussians, kind)
    assert_same(gaussians, read_gaussians(tmp_path / "a.ply"))


def test_points_round_trip(tmp_path):
    points = random_points(50)
    write_points(tmp_path / "p.ply", points)
    back = read_points(tmp_path / "p.ply")
    assert np.array_equal(points.xyz, back.xyz)
    assert np.array_equal(points.rgb, back.rgb)


def test_invalid_splats_are_refused_and_counted_or_dropped(tmp_path, capsys):
    gaussians = some_gaussians(9)
    gaussians.means[4, 1] = float("nan")
    gaussians.shN[6, 3, 2] = float("inf")
    gaussians.quats[7] = 0.0
    write_gaussians(tmp_path / "a.ply", gaussians)
    with pytest.raises(UserError, match=r"a\.ply: 3 of 9 splats .* the first is number 4; export"):
        read_gaussians(tmp_path / "a.ply")
    kept = read_gaussians(tmp_path / "a.ply", drop_invalid=True)
    assert torch.equal(kept.means, gaussians.means[[0, 1, 2, 3, 5, 8]])
    assert "3 of 9" in capsys.readouterr().err


def test_double_beyond_float32_is_not_finite(tmp_path):
    lines = ["ply", "format ascii 1.0", "element vertex 1", *(f"property double {n}" for n in "xyz")]
    lines += [*(f"property uchar {n}" for n in ("red", "green", "blue")), "end_header", "1e300 0 0 1 2 3"]
    (tmp_path / "p.ply").write_text("\n".join(lines))
    with pytest.raises(UserError, match="1 of 1 points"):
        read_points(tmp_path / "p.ply")


def replaced(old: bytes, new: bytes):
    return lambda data: data.replace(old, new, 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data + b"\0", "cut short or damaged"),
        (lambda data: data[:100], "without end_header"),
        (lambda data: b"", "not a PLY"),
        (replaced(b"element vertex 3", b"element vertex -3"), "not understood"),
        (replaced(b"element vertex 3", b"element vertex 99999999999"), "cut short"),
        (replaced(b"property float rot_0", b"property float rot_9"), "rot_0 is missing"),
        (replaced(b"property float nx", b"property float x"), "'x' stands twice"),
        (replaced(b"property float nx", b"property quad nx"), "not understood"),
        (replaced(b"property float nx", b"property list uchar int nx"), "list property"),
        (replaced(b"f_rest_44", b"g_rest_44"), "44 f_rest properties"),
        (replaced(b"1.0\n", b"2.0\n"), "not understood"),
        (replaced(b"element vertex", b"element splats"), "first element"),
    ],
)
def test_broken_files_have_one_message(tmp_path, spoil, message):
    path = tmp_path / "a.ply"
    write_gaussians(path, some_gaussians(3))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        read_gaussians(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("row", ["1 2 3 4 5", "1 2 3 4 5 6 7", "1 2 x 4 5 6", "1 2 3 4 5 256", "1 2 3 4 5 -1"])
def test_broken_ascii_rows_are_refused(tmp_path, row):
    head = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {n}\n" for n in "xyz")
    head += "".join(f"property uchar {n}\n" for n in ("red", "green", "blue")) + "end_header\n"
    (tmp_path / "p.ply").write_text(head + "1 2 3 4 5 6\n" + row + "\n")
    with pytest.raises(UserError):
        read_points(tmp_path / "p.ply")


def test_missing_file_and_colourless_cloud(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_points(tmp_path / "none.ply")
    (tmp_path / "p.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    with pytest.raises(UserError, match="red is missing"):
        read_points(tmp_path / "p.ply")


def test_start_from_points_follows_the_original():
    points = PointCloud(np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([[0, 128, 255], [10, 20, 30]], np.uint8))
    gaussians = Gaussians.from_points(points, 2, torch.tensor([0.25, 0.0]))
    assert torch.allclose(gaussians.scales[0], torch.full((3,), 0.5))
    assert torch.allclose(gaussians.scales[1], torch.full((3,), 1e-7**0.5))  # clamped: coincident points
    assert torch.allclose(gaussians.opacities, torch.full((2, 1), 0.1))
    assert torch.equal(gaussians.quats, torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1))
    colours = gaussians.sh0[:, 0] * 0.28209479177387814 + 0.5
    assert torch.allclose(colours, torch.from_numpy(points.rgb) / 255.0, atol=1e-6)
    assert gaussians.shN.shape == (2, 8, 3)
    assert gaussians.sh_degree == 2
    with pytest.raises(UserError, match="empty"):
        Gaussians.from_points(PointCloud(points.xyz[:0], points.rgb[:0]), 3, torch.zeros(0))
