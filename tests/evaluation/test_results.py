"""metrics.py on folders of renders: the original's files to the letter, frames, broken folders, the printed table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation.frames import bicubic_upsampled
from evaluation.metrics import as_tensor
from evaluation.protocols import Protocol
from evaluation.results import find_rendered, lr_kernel
from evaluation.run_metrics import measure_models
from tests.evaluation_factory import HR_PX, LR_PX, render, write_frames, write_model, write_scenes
from tests.scene_factory import picture
from upsampling.interpolation import Interpolation
from utils.errors import UserError
from utils.psnr import psnr
from utils.ssim import ssim


def write_foreign(folder, views=3, size=16):
    """What another program's render.py leaves: no run.json, a render one grey level off its truth."""
    for kind, level in (("renders", 101), ("gt", 100)):
        path = folder / "test" / "ours_30000" / kind
        path.mkdir(parents=True)
        for i in range(views):
            Image.fromarray(np.full((size, size, 3), level + i * (kind == "renders"), np.uint8)).save(
                path / f"{i:05d}.png"
            )
    return folder


def measure(*folders, **options):
    options = {"no_lpips": True, "no_report": True} | options
    return measure_models(CommonParams(quiet=True), MetricsParams(tuple(map(str, folders)), **options))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A model with frames whose colours are off by one grey level, rendered on white and black."""
    root = tmp_path_factory.mktemp("rendered")
    lr, _ = write_scenes(root)
    out = write_model(root / "out", lr)
    write_frames(out / "hr", noise=1)
    for background in ("white", "black"):
        render(out, lr, background=background, output_path=str(out / background), skip_train=True)
    return out


def test_original_layout(tmp_path):
    folder = write_foreign(tmp_path / "lego")
    measure(folder)
    files = ["00000.png", "00001.png", "00002.png"]
    per_view = json.loads((folder / "per_view.json").read_text())
    assert list(per_view) == ["ours_30000"]
    assert list(per_view["ours_30000"]) == ["SSIM", "PSNR"]  # LPIPS was left out
    assert all(list(values) == files for values in per_view["ours_30000"].values())
    expected = [20 * np.log10(255 / (i + 1)) for i in range(3)]
    assert list(per_view["ours_30000"]["PSNR"].values()) == pytest.approx(expected, abs=1e-4)
    results = json.loads((folder / "results.json").read_text())
    assert list(results["ours_30000"]) == ["SSIM", "PSNR"]
    assert results["ours_30000"]["PSNR"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_lpips_takes_the_originals_place(rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    try:
        measure(rendered / "white", no_lpips=False, lpips=("LPIPS", "LPIPS_alex"))
    except UserError as error:
        pytest.skip(str(error))
    results = json.loads((rendered / "white" / "results.json").read_text())
    assert list(results["ours_7"]) == ["SSIM", "PSNR", "LPIPS"]
    metrics = json.loads((rendered / "white" / "metrics.json").read_text())
    assert set(metrics["methods"]["test/ours_7"]["mean"]) == {"PSNR", "SSIM", "LPIPS", "LPIPS_alex", "LR_PSNR"}
    assert set(metrics["weights"]) == {"vgg", "alex"}


def test_metrics_name_the_protocol(rendered):
    measure(rendered / "black", no_frames=True)
    protocol = json.loads((rendered / "black" / "metrics.json").read_text())["methods"]["test/ours_7"]["protocol"]
    expected = {"scene": "toy", "split": "test", "views": 2, "background": "black", "scale": 4.0}
    expected |= {"lr_kernel": "bicubic, renormalise", "lr_rounding": "round", "rasterizer": "native"}
    assert {k: protocol[k] for k in expected} == expected
    assert protocol["resolution"] == f"{HR_PX}x{HR_PX}"


def test_values_are_those_of_the_png_files(rendered):
    measure(rendered / "black", no_frames=True)
    views = json.loads((rendered / "black" / "metrics.json").read_text())["methods"]["test/ours_7"]["views"]
    method = rendered / "black" / "test" / "ours_7"
    a, b = (as_tensor(np.asarray(Image.open(method / kind / "00001.png"))) for kind in ("renders", "gt"))
    assert views["00001.png"]["name"] == "test/r_1"
    assert views["00001.png"]["PSNR"] == pytest.approx(float(psnr(a.double(), b.double())), abs=1e-4)
    assert views["00001.png"]["SSIM"] == pytest.approx(float(ssim(a.double(), b.double())), abs=1e-5)
    size = (LR_PX, LR_PX)
    small = [
        torch.nn.functional.interpolate(x.double()[None], size=size, mode="bicubic", antialias=True)[0] for x in (a, b)
    ]
    assert views["00001.png"]["LR_PSNR"] == pytest.approx(float(psnr(*small)), abs=1e-4)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (Protocol(lr_kernel="bicubic, mirror", scale=4.0), ("bicubic", "mirror")),
        (Protocol(lr_kernel="area", scale=4.0), ("area", "renormalise")),
        (Protocol(lr_kernel="area", scale=1.0), None),
        (Protocol(lr_kernel="unknown", scale=4.0), None),
        (Protocol(lr_kernel="my/kernel.json", scale=4.0), None),
    ],
)
def test_lr_psnr_needs_a_kernel_that_the_protocol_names(protocol, expected):
    found = lr_kernel(protocol, 40, 24)
    if expected is None:
        assert found is None
    else:
        assert (found.kernel, found.border, found.lr_size) == (*expected, (10, 6))


@pytest.mark.parametrize("background", ["white", "black"])
def test_frames_are_measured_on_the_protocols_background(rendered, background):
    measure(rendered / background)
    frames = json.loads((rendered / background / "metrics.json").read_text())["frames"]
    assert (frames["views"], frames["of"], frames["background"]) == (4, 4, background)
    assert set(frames["per_view"]) == {f"train/r_{i}" for i in range(4)}
    # one grey level of noise under the disc, nothing outside: above 48.13 dB = noise everywhere
    assert 48.13 < frames["PSNR"] < 58
    assert frames["bicubic_PSNR"] < 40


def test_printed_table_holds_every_folder(rendered, capsys):
    measure(rendered / "white", rendered / "black", tsv=True, no_frames=True)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["folder", "views", "background", "PSNR", "SSIM", "LR_PSNR"]
    assert [line[:3] for line in lines[1:]] == [[b, "test/ours_7", b] for b in ("white", "black")]


def break_missing_gt(method):
    for path in (method / "gt").iterdir():
        path.unlink()
    (method / "gt").rmdir()


def break_size(method):
    Image.new("RGB", (5, 5)).save(method / "renders" / "00001.png")


def break_one_missing(method):
    (method / "gt" / "00002.png").unlink()


def break_empty(method):
    for path in [*(method / "gt").iterdir(), *(method / "renders").iterdir()]:
        path.unlink()


def break_truncated(method):
    path = method / "gt" / "00000.png"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing_gt, "gt: no such folder"),
        (break_size, "00001.png: 5x5 px, its truth has 16x16"),
        (break_one_missing, "00002.png is in renders but not in gt"),
        (break_empty, "no PNG in it"),
        (break_truncated, "00000.png"),
    ],
)
def test_broken_folders_are_refused_and_leave_no_results(tmp_path, damage, message):
    folder = write_foreign(tmp_path / "out")
    damage(folder / "test" / "ours_30000")
    with pytest.raises(UserError, match=message):
        measure(folder)
    assert not (folder / "results.json").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_renders_is_refused(tmp_path, exists):
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"render\.py"):
        find_rendered(tmp_path / "out")


def test_no_folder_given():
    with pytest.raises(UserError, match="-m DIR"):
        measure()


def test_frames_of_another_size_are_refused(tmp_path):
    lr, _ = write_scenes(tmp_path)
    out = render(write_model(tmp_path / "out", lr), lr, skip_train=True)
    write_frames(out / "hr")
    Image.new("RGB", (5, 5)).save(out / "hr" / "train" / "r_2.png")
    with pytest.raises(UserError, match=r"r_2.png: 5x5 px"):
        measure(out)


def test_up_to_date_results_are_kept(rendered):
    measure(rendered / "black", no_frames=True)
    stamp = (rendered / "black" / "metrics.json").stat().st_mtime_ns
    again = CommonParams(quiet=True, skip_done=True)
    measure_models(again, MetricsParams((str(rendered / "black"),), no_lpips=True, no_report=True, no_frames=True))
    assert (rendered / "black" / "metrics.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("size", [(16, 12), (15, 11)])
def test_bicubic_enlargement_keeps_flat_and_transparent_areas(size):
    image = np.full((4, 5, 4), (10, 200, 90, 255), np.uint8)
    np.testing.assert_array_equal(bicubic_upsampled(image, *size), np.full((*size[::-1], 4), (10, 200, 90, 255)))
    image[..., 3] = 0
    assert not bicubic_upsampled(image, *size).any()


def test_bicubic_baseline_is_the_bicubic_upsampler():
    image = picture(1, LR_PX, LR_PX)[..., :3].copy()
    upsampler = Interpolation("bicubic", 4, torch.device("cpu"))
    (expected,) = upsampler.upsample(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    ours = bicubic_upsampled(image, 4 * LR_PX, 4 * LR_PX)
    np.testing.assert_array_equal(ours, (expected.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy())
