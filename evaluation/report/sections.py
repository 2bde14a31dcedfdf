"""The parts of the report of one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from evaluation.report.charts import line_chart, sorted_bars, stacked_bars
from evaluation.report.data import RunData, curves, default_settings, settings_text
from evaluation.report.html import Html, join, section, table, tag, void
from evaluation.report.pictures import Pictures
from evaluation.tables import METRICS, cell_text
from scene.sequences import Sequences, Subsequence
from utils.log import duration

LABELS = {
    "PSNR": "PSNR [dB] ↑",
    "SSIM": "SSIM ↑",
    "LPIPS": "LPIPS ↓ (as 3DGS)",
    "LPIPS_vgg": "LPIPS-VGG ↓",
    "LPIPS_alex": "LPIPS-Alex ↓",
    "LR_PSNR": "PSNR at LR size [dB] ↑",
}
STEP_NAMES = {
    "order": "ordering",
    "lr_model": "model of the LR views",
    "upsample": "upsampling",
    "train": "training",
    "geometry": "geometry",
    "render": "rendering",
    "metrics": "metrics",
}
MAX_STRIPS = 12
Layers = Mapping[str, tuple[str, UInt8[np.ndarray, "h w 3"], bool]]


def tiles(items: Sequence[tuple[str, str, str]]) -> Html:
    """Show key figures: (value, label, small print)."""
    cells = []
    for value, label, more in items:
        parts = [tag("span", value, class_="value"), tag("span", label, class_="label")]
        cells.append(tag("li", *parts, tag("span", more, class_="more") if more else ""))
    return tag("ul", *cells, class_="tiles")


def header(eyebrow: str, title: str, lead: str, *children: object) -> Html:
    """Show the top of the page."""
    parts = [tag("p", eyebrow, class_="eyebrow"), tag("h1", title), tag("p", lead, class_="lead")]
    return tag("header", *parts, *children, class_="top")


def chips(data: RunData) -> Html:
    """List the settings that differ from their defaults."""
    words = (
        f"{step}: {k} = {settings_text(v)}"
        for step, values in data.changed_settings().items()
        for k, v in values.items()
    )
    items = [tag("li", word, class_="mono") for word in dict.fromkeys(words)]
    return (
        tag("ul", *items, class_="chips", aria_label="settings that differ from their defaults") if items else Html("")
    )


def facts(data: RunData) -> Html:
    """Say seed, versions and when."""
    last = next(reversed(data.records.values()), None)
    if last is None:
        return Html("")
    versions = " · ".join(f"{k} {v}" for k, v in last["versions"].items())
    return tag("p", f"seed {last['seed']} · {last['started']} · {last['machine']} · {versions}", class_="facts")


def results(data: RunData) -> Html:
    """Show the table of means with its baselines, and the protocol below."""
    methods, frames = data.metrics["methods"], data.metrics["frames"]
    present = [m for m in METRICS if m in LABELS and any(m in r["mean"] for r in methods.values())]
    rows: list[list[object]] = []
    for name, result in methods.items():
        split, method = name.split("/", 1)
        label = f"3D model, {split} views ({method}, {result['protocol']['views']} views)"
        rows.append([label, *(cell_text(m, result["mean"].get(m)) for m in present)])
    if frames:
        views = f"{frames['views']} of {frames['of']} training views"
        names = {"PSNR": "pseudo-HR frames", "single_PSNR": "without neighbours", "bicubic_PSNR": "bicubic upsampling"}
        for key, label in ((key, label) for key, label in names.items() if key in frames):
            cells = (cell_text("PSNR", frames[key]) if m == "PSNR" else "-" for m in present)
            rows.append([f"2D baseline: {label} ({views})", *cells])
    protocol = next(iter(methods.values()))["protocol"]
    listed = table(["field", "value"], [[k, settings_text(v)] for k, v in protocol.items()], classes="text")
    return section(
        "Results",
        table(
            ["", *(LABELS[m] for m in present)], rows, "means over the views; ↑ larger is better, ↓ smaller is better"
        ),
        tag("details", tag("summary", "Protocol: how these numbers were made"), listed),
        note="3D rows are renders of the trained model from views it has never seen, unless they say train. "
        "2D rows compare images before any 3D model, on training views: not comparable with the rows above them.",
        id_="results",
    )


def per_view(name: str, result: Mapping[str, Any]) -> Html:
    """Show each metric's bars, worst first, and the table of all views."""
    views = {v["name"]: v for v in result["views"].values()}
    present = [m for m in METRICS if m in LABELS and m in result["mean"]]
    charts = (
        sorted_bars(m, {k: v[m] for k, v in views.items()}, m in ("PSNR", "SSIM"), 2 if m == "PSNR" else 4)
        for m in present
    )
    worst_first = sorted(views, key=lambda k: views[k]["PSNR"])
    rows = ([k, *(cell_text(m, views[k][m]) for m in present)] for k in worst_first)
    listed = table(["view", *(LABELS[m] for m in present)], rows, "all views, lowest PSNR first")
    return section(
        "View by view",
        tag("div", *charts, class_="charts"),
        tag("details", tag("summary", f"All {len(views)} views as a table"), listed),
        note=f"{name}: one bar a view, the worst first. Point at a bar to see which view it is.",
        id_="views",
    )


def card(name: str, stats: str, layers: Layers, size: tuple[int, int], pictures: Pictures, group: str = "") -> Html:
    """Show one view as pictures that a slider lays over one another; `size` = (width, height) of the stage in px.

    Parameters
    ----------
    layers : {id: (label, image, is LR)}; LR pictures are enlarged as squares.
    """
    figures = []
    for key, (label, image, is_lr) in layers.items():
        file = f"{group}-{name}-{key}".strip("-")
        picture = pictures.img(image, file, f"{label}, view {name}", exact=is_lr, pixels=is_lr)
        figures.append(tag("figure", picture, tag("figcaption", label), data_layer=key))
    stage = tag("div", *figures, class_="stage", data_width=size[0], data_height=size[1])
    slider = void(
        "input",
        type="range",
        min=0,
        max=100,
        step="any",
        value=50,
        class_="stage-range",
        aria_label=f"divider of view {name}",
    )
    caption = tag(
        "figcaption",
        tag("strong", name),
        tag("span", stats),
        tag("button", "larger", type="button", aria_pressed="false"),
    )
    return tag("figure", stage, slider, caption, class_="view", data_group=group or None)


def viewer(
    cards: Sequence[Html], layers: Mapping[str, str], chosen: tuple[str, str], groups: Mapping[str, str]
) -> Html:
    """Put cards together with the controls that choose what lies left and right of every divider.

    Parameters
    ----------
    layers : label by id. chosen : ids shown first. groups : label by id; the first is shown first.
    """

    def select(id_: str, label: str, options: Mapping[str, str], value: str) -> Html:
        items = (tag("option", text, value=key, selected=key == value) for key, text in options.items())
        return tag("label", label, tag("select", *items, id=id_))

    controls = [
        select("left", "left of the divider", layers, chosen[0]),
        select("right", "right of it", layers, chosen[1]),
    ]
    controls.append(tag("button", "swap", type="button", id="swap"))
    if len(groups) > 1:
        controls.append(select("group", "pictures of", groups, next(iter(groups))))
    return join([tag("div", *controls, class_="controls"), tag("div", *cards, class_="views")])


def film_strip(sequences: Sequences, thumbs: Mapping[str, UInt8[np.ndarray, "h w 3"]], pictures: Pictures) -> Html:
    """Show the calls of the video network as strips of frames, with the cost of each step between them."""
    names = list(dict.fromkeys(name for s in sequences.subsequences[:MAX_STRIPS] for name in s.frames))
    rules = [
        f".strip .t{i}{{background-image:url({pictures.source(thumbs[name], f'thumb-{name}')})}}"
        for i, name in enumerate(names)
        if name in thumbs
    ]
    costs, angles = sequences.step_costs(), sequences.step_angles_deg()
    dearest = max(costs, default=0) or 1
    far = sorted(costs)[int(0.9 * (len(costs) - 1))] if costs else 0
    strips = [
        join([_strip_title(i, s, len(sequences.subsequences)), _strip(s, names, dearest, far)])
        for i, s in enumerate(sequences.subsequences[:MAX_STRIPS])
    ]
    hidden = len(sequences.subsequences) - len(strips)
    about = [f"Ordering “{sequences.method}”: {len(sequences.subsequences)} call(s) of the network"]
    if costs:
        about.append(f"step cost ({sequences.cost}) mean {np.mean(costs):.1f}, worst {max(costs):.1f} {sequences.unit}")
    if angles:
        about.append(f"step angle mean {np.mean(angles):.1f}°, worst {max(angles):.1f}°")
    more = [tag("p", f"{hidden} more calls are in sequences.json.", class_="note")] if hidden else []
    text = (
        "; ".join(about) + ". Bars between frames: cost of the step; orange = among the dearest tenth. Framed = kept."
    )
    return section(
        "The order of the frames", tag("style", Html("".join(rules))), *strips, *more, note=text, id_="order"
    )


def _strip_title(i: int, s: Subsequence, count: int) -> Html:
    doubled = ", end frames doubled" if s.padded else ""
    return tag(
        "p", f"Call {i + 1} of {count}: {len(s.frames)} frames, {len(s.save)} kept{doubled}", class_="strip-title"
    )


def _strip(s: Subsequence, names: Sequence[str], dearest: float, far: float) -> Html:
    kept, parts = set(s.save), []
    for i, name in enumerate(s.frames):
        if i and s.costs:
            cost = s.costs[i - 1]
            height = 0 if cost is None else max(2, round(58 * cost / dearest))
            shown = "?" if cost is None else f"{cost:.3g}"
            marked = "step far" if cost is not None and cost > far else "step"
            parts.append(
                tag("div", shown, tag("i", style=f"height:{height}px"), class_=marked, title=f"step cost {shown}")
            )
        thumb = tag("span", class_=f"thumb t{names.index(name)}", role="img", aria_label=f"LR view {name}")
        label = tag("figcaption", f"{i + 1}. {Path(name).name}")
        parts.append(tag("figure", thumb, label, class_="kept" if i in kept else None))
    return tag("div", *parts, class_="strip", tabindex=0, role="group", aria_label="frames in their order")


def training_curves(data: RunData) -> Html | None:
    """Show loss, counts and whatever else the log holds."""
    charts = [line_chart(title, series) for title, series in curves(data.log).items()]
    if not charts:
        return None
    return section("Training", tag("div", *charts, class_="charts"), note="From log.jsonl.", id_="training")


def timings(data: RunData) -> Html | None:
    """Show seconds and peak memory of each step."""
    if not data.records:
        return None
    seconds = {STEP_NAMES[name]: float(r["seconds"]) for name, r in data.records.items()}
    rows = [[STEP_NAMES[n], duration(r["seconds"]), f"{r['peak_bytes'] / 1e6:.0f} MB"] for n, r in data.records.items()]
    rows.append(
        ["all", duration(sum(seconds.values())), f"{max(r['peak_bytes'] for r in data.records.values()) / 1e6:.0f} MB"]
    )
    return section(
        "Time and memory",
        stacked_bars("seconds of each step", {"this run": seconds}, "s"),
        table(["step", "time", "peak memory"], rows),
        id_="time",
    )


def all_settings(data: RunData) -> Html | None:
    """List every setting of every step; those that differ from their default are marked."""
    parts = []
    for step, record in data.records.items():
        defaults = default_settings(step)
        rows = []
        for k, v in sorted(record["settings"].items()):
            changed = k in defaults and v != defaults[k]
            rows.append([k, settings_text(v), f"default {settings_text(defaults[k])}" if changed else ""])
        weights = record["notes"].get("weights")
        rows += [["weights", settings_text(weights), ""]] if weights else []
        rows += [["code", record["code"][:12], ""]]
        rows += [[f"input {k}", f"{v['files']} files, {v['sha256'][:12]}", ""] for k, v in record["inputs"].items()]
        listed = table(["setting", "value", "changed"], rows, classes="text")
        parts.append(tag("details", tag("summary", f"{STEP_NAMES[step]}: seed {record['seed']}"), listed))
    return section("Settings", *parts, id_="settings") if parts else None
