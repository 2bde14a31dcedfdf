"""The report of one run, FOLDER/report/index.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from evaluation.frames import bicubic_upsampled, composed, frame_paths
from evaluation.information import KINDS, map_path
from evaluation.rendering import truth_8bit
from evaluation.report import sections
from evaluation.report.data import RunData, load_run, lr_and_bicubic
from evaluation.report.diagnostics import frames_section
from evaluation.report.html import Html, page, section
from evaluation.report.pictures import Pictures, fitted
from evaluation.tables import cell_text
from scene import Scene
from scene.image_files import read_image
from upsampling import CONFIDENCE
from utils.atomic import write_text
from utils.log import duration, warn

MAX_CARDS = 12
MAX_FRAME_CARDS = 4
THUMB_PX = 84
LAYERS = {
    "lr": "LR",
    "bicubic": "bicubic",
    "ours": "ours",
    "truth": "truth",
    "near": "information, near views",
    "all": "information, all views",
    "confidence": "confidence",
}
BASELINES = {"bicubic": "bicubic", "single": "single frames"}
FOOTER = "Pictures are for display (WebP); every number comes from the 8-bit PNGs and is in metrics.json."


def write_report(folder: Path, link: bool = False) -> Path:
    """Write FOLDER/report/index.html from what metrics.py and the steps before it left on disk.

    Parameters
    ----------
    link : keep the pictures beside the page, so that all views fit; otherwise the page is one file below 15 MB.

    Raises
    ------
    UserError : the folder was not measured yet, or the report cannot be written.
    """
    data = load_run(folder)
    pictures = Pictures(folder / "report", link)
    parts = [_top(data), sections.results(data), _viewer(data, pictures, MAX_CARDS if not link else 10**9)]
    parts += [sections.per_view(name, result) for name, result in list(data.metrics["methods"].items())[:1]]
    parts += [part for part in [frames_section(data)] if part]
    if data.sequences is not None and data.scene is not None:
        names = {name for s in data.sequences.subsequences[: sections.MAX_STRIPS] for name in s.frames}
        parts.append(sections.film_strip(data.sequences, thumbnails(data.scene, names), pictures))
    parts += [
        part for part in (sections.training_curves(data), sections.timings(data), sections.all_settings(data)) if part
    ]
    path = folder / "report" / "index.html"
    write_text(path, page(f"{_title(data)} - report", parts, FOOTER))
    return path


def _title(data: RunData) -> str:
    scene = _first(data)["protocol"]["scene"]
    return data.folder.resolve().name if scene == "unknown" else str(scene)


def _first(data: RunData) -> dict[str, Any]:
    return next(iter(data.metrics["methods"].values()))


def _top(data: RunData) -> Html:
    result, frames = _first(data), data.metrics["frames"]
    protocol, average = result["protocol"], result["mean"]
    name = next(iter(data.metrics["methods"]))
    notes = data.notes.get("methods", {}).get(name, {})
    items = [(cell_text(m, average[m]), m, "") for m in ("PSNR", "SSIM", "LPIPS") if m in average]
    items[0] = (f"{items[0][0]} dB", "PSNR", f"{protocol['views']} {protocol['split']} views")
    if frames:
        gains = {name: frames["PSNR"] - frames[f"{name}_PSNR"] for name in BASELINES if f"{name}_PSNR" in frames}
        more = ", ".join(f"{gain:+.2f} dB against {BASELINES[name]}" for name, gain in gains.items())
        items.append((f"{frames['PSNR']:.2f} dB", "PSNR of the frames", more))
    if "splats" in notes:
        items.append((f"{notes['splats']:,}", "splats", f"iteration {notes['iteration']:,}"))
    if data.records:
        seconds = sum(r["seconds"] for r in data.records.values())
        items.append((duration(seconds), "all steps together", ""))
    lead = f"Rendered at {protocol['resolution']} px on {protocol['background']} background"
    if protocol["scale"] > 1:
        lead += f", from views {protocol['scale']:g} times smaller (LR kernel {protocol['lr_kernel']})"
    return sections.header(
        "seqsplat report", _title(data), f"{lead}.", sections.tiles(items), sections.chips(data), sections.facts(data)
    )


def _viewer(data: RunData, pictures: Pictures, limit: int) -> Html:
    cards, groups = [], {}
    name, result = next(iter(data.metrics["methods"].items()))
    chosen = spread_worst_first({file: v["PSNR"] for file, v in result["views"].items()}, limit)
    for file in chosen:
        if pictures.full:
            break
        cards.append(_view_card(data.folder / name, file, result, pictures))
        groups["test"] = f"the 3D model ({name})"
    shown = len(cards)
    if data.scene is not None and data.metrics["frames"] and (data.model / "hr").is_dir():
        cards += frame_cards(
            data.scene, data.model / "hr", data.metrics["frames"], data.folder, pictures, MAX_FRAME_CARDS
        )
        groups |= {"frames": "frames before 3D (training views)"} if len(cards) > shown else {}
    note = (
        f"Move the divider with the mouse or the arrow keys. {shown} of {len(result['views'])} views, the worst first"
    )
    note += "." if shown == len(result["views"]) else ", evenly over the rest; metrics.py --link shows all."
    present = {key for card in cards for key in LAYERS if f'data-layer="{key}"' in card}
    layers = {key: label for key, label in LAYERS.items() if key in present}
    left = "bicubic" if "bicubic" in layers else "truth"
    return section("Look", sections.viewer(cards, layers, (left, "ours"), groups), note=note, id_="look")


def _view_card(method: Path, file: str, result: Mapping[str, Any], pictures: Pictures) -> Html:
    render, truth = (read_image(method / kind / file)[..., :3] for kind in ("renders", "gt"))
    values = result["views"][file]
    stats = " · ".join(f"{m} {cell_text(m, values[m])}" for m in ("PSNR", "SSIM", "LPIPS") if m in values)
    layers: dict[str, tuple[str, UInt8[np.ndarray, "h w 3"], bool]] = {}
    small = lr_and_bicubic(truth, result["protocol"])
    if small is not None:
        layers |= {"lr": ("LR (truth, reduced)", small[0], True), "bicubic": ("bicubic", small[1], False)}
    layers |= {"ours": ("ours", render, False), "truth": ("truth", truth, False)}
    size = (truth.shape[1], truth.shape[0])
    return sections.card(values["name"], stats, layers, size, pictures, "test")


def frame_cards(
    scene: Scene, frames: Path, measured: Mapping[str, Any], folder: Path, pictures: Pictures, limit: int
) -> list[Html]:
    """Show pseudo-HR frames beside LR, bicubic, truth, and the maps that are there, worst first.

    Parameters
    ----------
    frames : folder of the frames, their confidence maps in confidence/. measured : "frames" of metrics.json.
    folder : with the information maps.
    """
    background, paths = measured["background"], frame_paths(scene, frames)
    values = {name: v for name, v in measured["per_view"].items() if name in paths}
    cards = []
    for name in spread_worst_first({name: v["PSNR"] for name, v in values.items()}, limit):
        if pictures.full:
            break
        truth, lr = truth_8bit(scene, name, background), scene.images.raw(name)
        large = bicubic_upsampled(lr, truth.shape[1], truth.shape[0])
        layers = {
            "lr": ("LR", composed(lr, background), True),
            "bicubic": ("bicubic", composed(large, background), False),
            "ours": ("pseudo-HR frame", composed(read_image(paths[name]), background), False),
            "truth": ("truth", truth, False),
        }
        maps = {kind: map_path(folder, kind, name) for kind in reversed(KINDS)}
        maps["confidence"] = frames / CONFIDENCE / f"{name}.png"
        layers |= {k: (LAYERS[k], composed(read_image(p), "black"), True) for k, p in maps.items() if p.is_file()}
        stats = " · ".join(f"{key.replace('_PSNR', '')} {value:.2f}" for key, value in values[name].items())
        cards.append(sections.card(name, stats, layers, (truth.shape[1], truth.shape[0]), pictures, "frames"))
    return cards


def spread_worst_first(quality: Mapping[str, float], limit: int) -> list[str]:
    """Choose at most `limit` keys, worst first: a third are the worst ones, the others lie evenly over the rest."""
    ordered = sorted(quality, key=lambda key: (quality[key], key))
    if len(ordered) <= limit:
        return ordered
    worst = max(1, limit // 3)
    rest = ordered[worst:]
    picks = np.linspace(0, len(rest) - 1, limit - worst).round().astype(int)
    return ordered[:worst] + [rest[i] for i in dict.fromkeys(picks.tolist())]


def thumbnails(scene: Scene, names: set[str]) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Return small pictures of LR views on black."""
    unknown = sorted(names - set(scene.cameras))
    if unknown:
        warn(f"report: sequences.json names {unknown[0]}, which the scene does not have")
    return {name: fitted(composed(scene.images.raw(name), "black"), THUMB_PX) for name in sorted(names - set(unknown))}
