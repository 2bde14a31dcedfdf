"""The report that sets variants of one scene side by side, OUT/report/index.html (the demo's)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from evaluation.metrics import as_tensor
from evaluation.rendering import scene_name
from evaluation.report import sections
from evaluation.report.charts import line_chart, stacked_bars
from evaluation.report.data import RunData, curves, load_run, lr_and_bicubic, settings_text
from evaluation.report.html import Html, page, section, table, tag
from evaluation.report.pictures import Pictures
from evaluation.report.single import FOOTER, thumbnails
from evaluation.tables import cell_text
from scene import load_scene
from scene.image_files import read_image
from utils.atomic import write_text
from utils.errors import UserError
from utils.ssim import ssim_map

BACKGROUNDS = ("white", "black")
BOUND = "hr"
HEADLINES = ("seqsplat", "video")  # which variant is put forward: the first that is there
PLAIN = "bicubic"  # and what it is set beside
CROP_PX = 72
CROP_VIEWS = 3
VISIBLE_LOSS = 0.01  # of local SSIM: below it there is nothing to show
MAX_VIEWS = 12
COLUMNS = ("PSNR", "SSIM", "LPIPS", "frame_PSNR", "seconds", "peak_MB")
HEADINGS = ("PSNR [dB] ↑", "SSIM ↑", "LPIPS ↓", "frame PSNR [dB] ↑", "seconds", "peak MB")
SMALLER_IS_BETTER = ("LPIPS",)
ABOUT = {
    "bicubic": "LR views enlarged by bicubic interpolation: no network",
    "single": "the video network, given one frame at a time",
    "video": "the video network on the ordered sequence of views",
    "seqsplat": "the video network among the nearest views along depth; from a model of the LR views, weight falling",
    "hr": "trained on the true HR views: the bound",
}
Image8 = UInt8[np.ndarray, "H W 3"]
Runs = Mapping[str, Mapping[str, RunData]]


def write_comparison(out: Path, variants: Mapping[str, Path], scene_root: Path, table: Mapping[str, Any]) -> Path:
    """Write OUT/report/index.html.

    Parameters
    ----------
    out : folder of the comparison.
    variants : model folder of each variant by name, in the order of the tables; each holds white/ and/or black/ with
        what render.py --output_path and metrics.py wrote. A variant "hr" is shown as the bound, it never wins a column.
    scene_root : the LR scene, for the film strip.
    table : {"protocol": {...}, "rows": [{"variant", "background", "PSNR", "SSIM", "LPIPS", "frame_PSNR", "seconds",
        "peak_MB"}]}.

    Returns
    -------
    The page's path.

    Raises
    ------
    UserError : a variant that was not rendered and measured.
    """
    runs = {name: _backgrounds(folder) for name, folder in variants.items()}
    pictures = Pictures(out / "report")
    own = _own_reports(out / "report", runs)
    parts = [_top(scene_root, table), _results(table, own), _viewer(runs, pictures), _close_look(runs, pictures)]
    ordered = next(
        (r for name in (*HEADLINES, *runs) if name in runs for r in runs[name].values() if r.sequences), None
    )
    if ordered is not None and ordered.sequences is not None:
        scene = ordered.scene or load_scene(scene_root)
        names = {name for s in ordered.sequences.subsequences[: sections.MAX_STRIPS] for name in s.frames}
        parts.append(sections.film_strip(ordered.sequences, thumbnails(scene, names), pictures))
    parts += [part for part in (_training(runs), _timings(runs)) if part is not None]
    path = out / "report" / "index.html"
    write_text(path, page(f"{scene_name(scene_root)} - comparison", parts, FOOTER))
    return path


def _backgrounds(folder: Path) -> dict[str, RunData]:
    found = {b: load_run(folder / b) for b in BACKGROUNDS if (folder / b / "metrics.json").is_file()}
    if not found:
        raise UserError(f"{folder}: neither white/ nor black/ holds metrics.json; run render.py and metrics.py first")
    return found


def _headline(names: Iterable[str]) -> str:
    """The variant that is put forward."""
    names = list(names)
    return next((name for name in (*HEADLINES, *reversed(names)) if name in names), "")


def _own_reports(folder: Path, runs: Runs) -> list[Html]:
    """Links from the page in `folder` to the reports of single variants, as far as metrics.py wrote them."""
    found = (
        (f"{name}, {background}", run.folder / "report" / "index.html")
        for name, by in runs.items()
        for background, run in by.items()
    )
    return [tag("a", text, href=os.path.relpath(path, folder)) for text, path in found if path.is_file()]


def _top(scene_root: Path, result: Mapping[str, Any]) -> Html:
    items = []
    shown = _headline(row["variant"] for row in result["rows"])
    for row in result["rows"]:
        if row["variant"] != shown:
            continue
        other = next((r for r in result["rows"] if (r["variant"], r["background"]) == (PLAIN, row["background"])), None)
        if other is None:
            continue
        on = f"on {row['background']}: {row['PSNR']:.2f} dB"
        items.append((f"{row['PSNR'] - other['PSNR']:+.2f} dB", f"PSNR, {shown} against {PLAIN}", on))
        if row.get("LPIPS") and other.get("LPIPS"):
            change = 100 * (row["LPIPS"] / other["LPIPS"] - 1)
            items.append(
                (f"{change:+.0f} %", "LPIPS, smaller is better", f"on {row['background']}: {row['LPIPS']:.4f}")
            )
    lead = (
        "Low-resolution views of a scene, made sharper in different ways, each turned into a 3D Gaussian "
        "splatting model and rendered from views that no model has seen. All numbers are measured against the "
        "high-resolution truth."
    )
    return sections.header("seqsplat comparison", scene_name(scene_root), lead, sections.tiles(items) if items else "")


def _results(result: Mapping[str, Any], own_reports: Sequence[Html]) -> Html:
    rows = list(result["rows"])
    best: dict[tuple[str, str], float] = {}
    for column in COLUMNS[:4]:
        for background in {r["background"] for r in rows}:
            values = [
                r[column]
                for r in rows
                if r["background"] == background and r["variant"] != BOUND and r.get(column) is not None
            ]
            if values:
                best[column, background] = min(values) if column in SMALLER_IS_BETTER else max(values)
    body = []
    for row in sorted(rows, key=lambda r: BACKGROUNDS.index(r["background"]) if r["background"] in BACKGROUNDS else 9):
        competes = row["variant"] != BOUND
        wins = {
            c for c in COLUMNS if competes and row.get(c) is not None and best.get((c, row["background"])) == row[c]
        }
        cells = (tag("td", cell_text(c, row.get(c)), class_="best" if c in wins else None) for c in COLUMNS)
        body.append([row["variant"], tag("td", row["background"]), *cells])
    meaning = (f"{name}: {text}" for name, text in ABOUT.items() if any(r["variant"] == name for r in rows))
    protocol = [[k, settings_text(v)] for k, v in result.get("protocol", {}).items()]
    return section(
        "Results",
        table(["variant", "background", *HEADINGS], body, "test views; the best of each background is bold"),
        tag(
            "details",
            tag("summary", "Protocol: how these numbers were made"),
            table(["field", "value"], protocol, classes="text"),
        ),
        tag("p", "How each frame came about: reports of ", *_joined(own_reports)) if own_reports else "",
        note="; ".join(meaning) + ".",
        id_="results",
    )


def _joined(links: Sequence[Html]) -> list[object]:
    """Links with "; " between them."""
    return [part for k, link in enumerate(links) for part in (["; ", link] if k else [link])]


def _viewer(runs: Runs, pictures: Pictures) -> Html:
    cards, names = [], list(runs)
    groups = {b: f"{b} background" for b in BACKGROUNDS if all(b in by for by in runs.values())}
    for background in groups:
        first = runs[names[0]][background]
        method, result = next(iter(first.metrics["methods"].items()))
        for file in list(result["views"])[:MAX_VIEWS]:
            if pictures.full:
                break
            truth, renders = _read_view(runs, background, method, file)
            stats = " · ".join(f"{n} {_value(runs[n][background], file, 'PSNR'):.2f}" for n in names) + " dB"
            layers: dict[str, tuple[str, Image8, bool]] = {}
            small = lr_and_bicubic(truth, _lr_protocol(runs, background))
            if small is not None:
                layers["lr"] = ("LR (truth, reduced)", small[0], True)
            layers |= {name: (name, image, False) for name, image in renders.items()}
            layers["truth"] = ("truth", truth, False)
            size = (truth.shape[1], truth.shape[0])
            cards.append(sections.card(result["views"][file]["name"], stats, layers, size, pictures, background))
    labels = {"lr": "LR", **{name: name for name in names}, "truth": "truth"}
    labels = {key: label for key, label in labels.items() if any(f'data-layer="{key}"' in card for card in cards)}
    left, right = (PLAIN if PLAIN in labels else names[0]), _headline(name for name in names if name in labels)
    note = (
        "Renders of held-out views. Move the divider with the mouse or the arrow keys; choose what lies on either side."
    )
    return section("Look", sections.viewer(cards, labels, (left, right), groups), note=note, id_="look")


def _read_view(runs: Runs, background: str, method: str, file: str) -> tuple[Image8, dict[str, Image8]]:
    """Read truth and renders of one view; variants may have been trained for different numbers of iterations."""
    renders: dict[str, Image8] = {}
    truth = None
    for name, by in runs.items():
        run = by[background]
        own = method if method in run.metrics["methods"] else next(iter(run.metrics["methods"]))
        renders[name] = read_image(run.folder / own / "renders" / file)[..., :3]
        truth = read_image(run.folder / own / "gt" / file)[..., :3] if truth is None else truth
    assert truth is not None, "there is at least one variant"
    return truth, renders


def _value(run: RunData, file: str, metric: str) -> float:
    return float(next(iter(run.metrics["methods"].values()))["views"][file][metric])


def _lr_protocol(runs: Runs, background: str) -> dict[str, Any]:
    """Return the protocol of a variant that was trained on LR views (the bound was not)."""
    protocols = [next(iter(by[background].metrics["methods"].values()))["protocol"] for by in runs.values()]
    return max(protocols, key=lambda p: float(p["scale"]))


def gain_map(truth: Image8, before: Image8, after: Image8) -> Float[np.ndarray, "H W"]:
    """Measure where `after` is closer to the truth than `before`: difference of local SSIM, mean over channels."""
    a, b, t = (as_tensor(x) for x in (after, before, truth))
    return (ssim_map(a, t) - ssim_map(b, t)).mean(0).numpy()


def best_window(score: Float[np.ndarray, "H W"], size: int) -> tuple[int, int]:
    """Find the upper-left corner (row, column) of the size x size window with the largest sum."""
    padded = np.pad(score.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = padded[size:, size:] - padded[:-size, size:] - padded[size:, :-size] + padded[:-size, :-size]
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(row), int(column)


def _close_look(runs: Runs, pictures: Pictures) -> Html:
    """Show crops chosen by rule, not by hand: where the headline gains most over bicubic, and where it loses most."""
    before, after = (PLAIN if PLAIN in runs else next(iter(runs))), _headline(runs)
    background = next(b for b in BACKGROUNDS if b in runs[before] and b in runs[after])
    method, result = next(iter(runs[before][background].metrics["methods"].items()))
    gains: list[tuple[float, str, int, int]] = []
    losses: list[tuple[float, str, int, int]] = []
    for file in list(result["views"])[:MAX_VIEWS]:
        truth, renders = _read_view({n: runs[n] for n in (before, after)}, background, method, file)
        size = min(CROP_PX, *truth.shape[:2])
        score = gain_map(truth, renders[before], renders[after])
        for sign, found in ((1, gains), (-1, losses)):
            y, x = best_window(sign * score, size)
            found.append((float((sign * score)[y : y + size, x : x + size].mean()), file, y, x))
    picks = [("gains most", p) for p in sorted(gains, reverse=True)[:CROP_VIEWS]]
    picks += [("loses most", p) for p in sorted(losses, reverse=True)[:1] if p[0] > VISIBLE_LOSS]
    rows = [_crop_row(runs, background, method, result, word, pick, pictures) for word, pick in picks]
    note = (
        f"Crops of {CROP_PX} px, enlarged without smoothing, chosen by a rule: where {after} gains most on {before} in "
        "local SSIM in the three views with the largest gain, and last where it loses most, if it does."
    )
    return section("A closer look", tag("div", *rows, class_="crops"), note=note, id_="crops")


def _crop_row(
    runs: Runs,
    background: str,
    method: str,
    result: Mapping[str, Any],
    word: str,
    pick: tuple[float, str, int, int],
    pictures: Pictures,
) -> Html:
    change, file, y, x = pick
    truth, renders = _read_view({n: by for n, by in runs.items() if background in by}, background, method, file)
    size = min(CROP_PX, *truth.shape[:2])
    small = lr_and_bicubic(truth, _lr_protocol(runs, background))
    shown: list[tuple[str, Image8]] = []
    if small is not None:
        scale = truth.shape[1] / small[0].shape[1]
        top, left, side = (max(0, round(v / scale)) for v in (y, x, size))
        shown.append(("LR", small[0][top : top + max(1, side), left : left + max(1, side)]))
    shown += [(name, image[y : y + size, x : x + size]) for name, image in [*renders.items(), ("truth", truth)]]
    view = result["views"][file]["name"]
    figures = (
        tag(
            "figure",
            pictures.img(crop, f"crop-{word}-{file}-{name}", f"{name}, detail of view {view}", exact=True),
            tag("figcaption", name),
        )
        for name, crop in shown
    )
    title = tag(
        "h3", f"View {view}: where it {word} (local SSIM {'+' if word == 'gains most' else '−'}{abs(change):.2f})"
    )
    return tag(
        "div", title, tag("div", *figures, class_="crop-row", tabindex=0, role="group", aria_label=f"details of {view}")
    )


def _training(runs: Runs) -> Html | None:
    by_chart: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for name, by in runs.items():
        for chart, series in curves(next(iter(by.values())).log).items():
            for curve, points in series.items():
                if chart == "objective" and curve != "loss":
                    continue
                title = {"objective": "loss"}.get(chart, chart if curve == chart else f"{chart}: {curve}")
                by_chart.setdefault(title, {})[name] = points
    if not by_chart:
        return None
    charts = (line_chart(title, series) for title, series in by_chart.items())
    return section(
        "Training", tag("div", *charts, class_="charts"), note="From each variant's log.jsonl.", id_="training"
    )


def _timings(runs: Runs) -> Html | None:
    rows: dict[str, dict[str, float]] = {}
    for name, by in runs.items():
        records = next(iter(by.values())).records
        rows[name] = {sections.STEP_NAMES[s]: float(r["seconds"]) for s, r in records.items() if s != "metrics"}
    if not any(rows.values()):
        return None
    stages = list(dict.fromkeys(stage for parts in rows.values() for stage in parts))
    listed = [[n, *(f"{p.get(s, 0):.0f}" for s in stages), f"{sum(p.values()):.0f}"] for n, p in rows.items()]
    return section(
        "Time",
        stacked_bars("seconds of each stage", rows, "s"),
        table(["seconds", *stages, "all"], listed),
        note="Rendering: of one background; metrics are measured for all variants together and left out.",
        id_="time",
    )
