"""Reports: valid, self-contained, accessible HTML that shows what is on disk and escapes what is hostile."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation.report import write_comparison, write_report
from evaluation.report.charts import line_chart, nice_ticks, sorted_bars
from evaluation.report.comparison import best_window
from evaluation.report.html import Html, tag, text
from evaluation.report.single import spread_worst_first
from evaluation.run_metrics import measure_models
from evaluation.tables import read_row
from scene.sequences import Sequences, Subsequence, write_sequences
from tests.evaluation_factory import render, write_frames, write_model, write_scenes
from utils.errors import UserError

VOID = {"meta", "img", "input", "br"}
HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Checks nesting and collects what tests ask for."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.ids = [], [], set()
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        assert len(values) == len(attributes), f"an attribute of {name} stands twice"
        self.elements.append((name, values))
        if "id" in values:
            assert values["id"] not in self.ids, f"id {values['id']} stands twice"
            self.ids.add(values["id"])
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def all(self, name):
        return [values for element, values in self.elements if element == name]


def check(path):
    """Everything a page must hold to; returns it parsed."""
    content = path.read_text()
    assert content.startswith("<!doctype html>")
    assert "http:" not in content
    assert "https:" not in content
    assert len(content) < 15e6
    page = Page(content)
    assert not page.all("link")
    assert not page.all("iframe")
    images = page.all("img")
    assert images
    assert all(values["src"].startswith("data:image/webp;base64,") for values in images)
    assert all(values["alt"].strip() for values in images)
    assert all("src" not in values for values in page.all("script"))
    for name, values in page.elements:
        if values.get("role") == "img":
            assert values["aria-label"].strip(), name
    assert all("aria-label" in values for values in page.all("input"))
    return page


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two variants on two backgrounds, measured, with frames, log and schedule."""
    root = tmp_path_factory.mktemp("report")
    lr, _ = write_scenes(root)
    for noise, name in ((6, "bicubic"), (1, "video")):
        out = write_model(root / name, lr)
        write_frames(out / "hr", noise)
        views = [f"train/r_{i}" for i in range(4)]
        call = Subsequence(tuple(views), (0, 1, 2, 3), True, (3.0, None, 9.0), (10.0, 20.0, 30.0))
        write_sequences(out / "sequences.json", Sequences((call,), "greedy", {}, "orb", "bits"))
        lines = [{"step": "train", "iteration": i, "loss": 1 / i, "gaussians": 10 * i} for i in range(1, 40)]
        lines.append({"step": "train", "iteration": 39, "views": "test", "l1": 0.1, "psnr": 20.0})
        (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
        for background in ("white", "black"):
            render(out, lr, background=background, output_path=str(out / background), skip_train=True)
    folders = tuple(str(root / name / b) for name in ("bicubic", "video") for b in ("white", "black"))
    measure_models(CommonParams(quiet=True), MetricsParams(folders, no_lpips=True, no_report=True))
    return root


def test_report_of_one_run(models):
    page = check(write_report(models / "video" / "white"))
    assert {"results", "look", "views", "order", "training", "time", "settings", "left", "right", "group"} <= page.ids
    stages = [values for values in page.all("div") if values.get("class") == "stage"]
    assert len(stages) == 2 + 4  # test views, frames
    strip = [values for name, values in page.elements if name == "span" and values.get("role") == "img"]
    assert len(strip) == 4


def test_report_shows_the_numbers_on_disk(models):
    row = read_row(models / "video" / "white", "video")
    content = write_report(models / "video" / "white").read_text()
    assert f"{row.values['PSNR']:.2f} dB" in content
    assert f"{row.values['frame_PSNR']:.2f} dB" in content


def test_linked_pictures_lie_beside_the_page(models):
    path = write_report(models / "video" / "black", link=True)
    sources = [values["src"] for values in Page(path.read_text()).all("img")]
    assert sources
    assert all((path.parent / source).is_file() for source in sources)


def test_comparison(models):
    rows = []
    for variant in ("bicubic", "video"):
        for background in ("white", "black"):
            values = read_row(models / variant / background, variant).values
            row = {"variant": variant, "background": background, "LPIPS": None}
            rows.append(row | {k: values[k] for k in ("PSNR", "SSIM", "frame_PSNR", "seconds", "peak_MB")})
    rows.append(rows[-1] | {"variant": "hr", "PSNR": 99.0, "frame_PSNR": None})
    folders = {name: models / name for name in ("bicubic", "video")}
    path = write_comparison(models, folders, models / "toy" / "lr", {"protocol": {"scene": "toy"}, "rows": rows})
    assert path == models / "report" / "index.html"
    page = check(path)
    assert {"results", "look", "crops", "order", "training", "time"} <= page.ids
    options = [values["value"] for values in page.all("option")]
    assert {"lr", "bicubic", "video", "truth", "white", "black"} <= set(options)
    best = f"{max(r['frame_PSNR'] for r in rows[:-1] if r['background'] == 'white'):.2f}"
    content = path.read_text()
    assert f'<td class="best">{best}</td>' in content
    assert '<td class="best">99.00</td>' not in content  # the bound never wins
    assert "PSNR, video against bicubic" in content


def test_a_comparison_puts_seqsplat_forward_and_leads_to_its_report(models, tmp_path):
    names = {"bicubic": "bicubic", "video": "bicubic", "seqsplat": "video"}
    rows = [
        {"variant": name, "background": "white", "LPIPS": None, "frame_PSNR": None, "seconds": 1.0, "peak_MB": 1}
        | {k: read_row(models / folder / "white", folder).values[k] for k in ("PSNR", "SSIM")}
        for name, folder in names.items()
    ]
    for name, folder in names.items():
        shutil.copytree(models / folder, tmp_path / name)
    write_report(tmp_path / "seqsplat" / "white")
    folders = {name: tmp_path / name for name in names}
    path = write_comparison(tmp_path, folders, models / "toy" / "lr", {"protocol": {"scene": "toy"}, "rows": rows})
    content = path.read_text()
    assert "PSNR, seqsplat against bicubic" in content
    assert "where seqsplat gains most on bicubic" in content
    assert 'href="../seqsplat/white/report/index.html">seqsplat, white</a>' in content
    assert (path.parent / "../seqsplat/white/report/index.html").is_file()


def test_comparison_of_an_unmeasured_variant_is_refused(tmp_path):
    with pytest.raises(UserError, match="white/ nor black/"):
        write_comparison(tmp_path, {"video": tmp_path / "video"}, tmp_path, {"protocol": {}, "rows": []})


def test_hostile_names_are_escaped(models, tmp_path):
    folder = models / "video" / "white"
    original = (folder / "metrics.json").read_text()
    content = json.loads(original)
    result = content["methods"]["test/ours_7"]
    result["protocol"]["scene"] = HOSTILE
    result["views"]["00000.png"]["name"] = f'"{HOSTILE}'
    (folder / "metrics.json").write_text(json.dumps(content))
    try:
        page_text = write_report(folder).read_text()
    finally:
        (folder / "metrics.json").write_text(original)
    assert HOSTILE not in page_text
    assert "&lt;script&gt;alert" in page_text
    assert len(Page(page_text).all("script")) == 1


def test_elements_escape_texts_and_keep_markup():
    assert tag("p", "<b>", Html("<i></i>"), title='"') == '<p title="&quot;">&lt;b&gt;<i></i></p>'
    assert text("&") == "&amp;"


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (29.7, 31.2), (1e-4, 3e-4), (-5.0, 120000.0), (2.0, 2.0), (0.0, 0.0)]
)
def test_ticks_are_even_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_charts_are_balanced_and_labelled():
    chart = line_chart("loss", {"a": [(1.0, 2.0), (5.0, 1.0)], "b": [(1.0, 1.0)]})
    assert Page(chart).all("svg")[0]["aria-label"] == "loss over iteration: a 2 to 1, b 1 to 1"
    bars = sorted_bars("PSNR", {"x": 31.0, "y": 29.0}, larger_is_better=True, decimals=2)
    assert bars.index("y: 29.00") < bars.index("x: 31.00")  # worst first
    assert Page(bars).all("rect")


def test_worst_views_come_first():
    quality = {f"v{i}": float(i) for i in range(100)}
    chosen = spread_worst_first(quality, 12)
    assert chosen[:4] == ["v0", "v1", "v2", "v3"]
    assert len(chosen) == 12
    assert chosen[-1] == "v99"
    assert spread_worst_first({"b": 2.0, "a": 1.0}, 12) == ["a", "b"]


def test_best_window_is_the_definition():
    score = np.random.default_rng(0).normal(size=(13, 17))
    sums = {(y, x): score[y : y + 5, x : x + 5].sum() for y in range(9) for x in range(13)}
    assert best_window(score, 5) == max(sums, key=sums.get)


def test_unmeasured_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.py"):
        write_report(tmp_path)
