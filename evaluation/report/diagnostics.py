"""The part of the report that says, view by view, how the frames came about: why is a view good or bad?"""

from collections.abc import Mapping
from typing import Any

from evaluation.information import KINDS
from evaluation.report.charts import line_chart, sorted_bars
from evaluation.report.data import RunData
from evaluation.report.html import Html, section, table, tag

NEIGHBOURS_SHOWN = 3
# key: heading, decimals, whether larger is better (None: neither), what it is
COLUMNS: dict[str, tuple[str, int, bool | None, str]] = {
    "gain": ("gain over single [dB]", 2, True, "PSNR of the frame minus that of the frame made without neighbours"),
    "PSNR": ("PSNR [dB]", 2, True, "of the frame against the HR truth"),
    "consistency": ("LR consistency [dB]", 1, True, "the frame, made small again, against its LR view"),
    "rms_levels": (
        "LR error, rms [levels]",
        2,
        False,
        "the same as a root mean square in grey levels of 255, over LR values other than 0 and 255, which only bound",
    ),
    "max_levels": ("LR error, largest [levels]", 1, False, "the largest of these differences"),
    "disagreement": (
        "disagreement",
        4,
        False,
        "rms difference (0-1) of the LR view and its neighbours, warped onto it and blended, where they see the same",
    ),
    "flow_px": ("flow [px]", 2, False, "mean length of the flow to the neighbours, LR pixels"),
    "near": (
        "information, near views",
        3,
        True,
        "share of the HR samples of the surface that LR views within 30 degrees took",
    ),
    "all": ("information, all views", 3, True, "the same of all LR views: 1 = the data determine the frame"),
}
CHARTS = ("gain", "consistency", "disagreement", "flow_px", "near")
WORST_BY = ("gain", "PSNR", "disagreement", "consistency")


def view_rows(data: RunData) -> dict[str, dict[str, Any]]:
    """Put together what is known of each training view's frame: the keys of COLUMNS and "neighbours", where known."""
    rows: dict[str, dict[str, Any]] = {name: dict(facts) for name, facts in data.frames.items()}
    for name, values in ((data.metrics.get("frames") or {}).get("per_view") or {}).items():
        row = rows.setdefault(name, {})
        row["PSNR"] = values["PSNR"]
        if "single_PSNR" in values:
            row["gain"] = values["PSNR"] - values["single_PSNR"]
    for kind in KINDS:
        for name, mean in _information(data, kind).get("per_view", {}).items():
            rows.setdefault(name, {})[kind] = mean
    return rows


def worst_first(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Order views by the first measure of WORST_BY that any of them has, views without it last."""
    key = next((k for k in WORST_BY if any(is_number(row.get(k)) for row in rows.values())), None)
    if key is None:
        return sorted(rows)
    sign = 1 if COLUMNS[key][2] else -1
    return sorted(rows, key=lambda n: (sign * rows[n][key] if is_number(rows[n].get(key)) else float("inf"), n))


def is_number(value: Any) -> bool:
    """Tell whether a value of a JSON file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def frames_section(data: RunData) -> Html | None:
    """Show bars, and a table of all views; None where nothing is known of the frames."""
    rows = view_rows(data)
    present = [key for key in COLUMNS if any(is_number(row.get(key)) for row in rows.values())]
    neighbours = any(row.get("neighbours") for row in rows.values())
    if not present:
        return None
    charts = []
    for key in (key for key in CHARTS if key in present):
        heading, decimals, larger, _ = COLUMNS[key]
        values = {name: float(row[key]) for name, row in rows.items() if is_number(row.get(key))}
        charts.append(sorted_bars(heading, values, bool(larger), decimals))
    charts += _gain_chart(data)
    body = []
    for name in worst_first(rows):
        cells = [_number(rows[name].get(key), COLUMNS[key][1]) for key in present]
        body.append([name, *cells, *([tag("td", _neighbours(rows[name]), class_="left")] if neighbours else [])])
    header = ["view", *(COLUMNS[key][0] for key in present), *(["neighbours"] if neighbours else [])]
    listed = table(header, body, "all training views, the worst first; a heading sorts by its column", "sort")
    meaning = "; ".join(f"{COLUMNS[key][0]}: {COLUMNS[key][3]}" for key in present)
    return section(
        "The frames, view by view",
        tag("div", *charts, class_="charts"),
        _lr_errors(rows),
        _correlation(data),
        _confidence(data),
        tag("details", tag("summary", f"All {len(rows)} views as a table"), listed),
        note=f"How the pseudo-HR frames came about, before any 3D model. {meaning}.",
        id_="frames",
    )


def _number(value: Any, decimals: int) -> str:
    return f"{value:.{decimals}f}" if is_number(value) else "-"


def _neighbours(row: Mapping[str, Any]) -> str:
    """Name the neighbours of largest weight with angle, visible share and weight."""
    found = [n for n in row.get("neighbours") or () if isinstance(n, dict) and "name" in n]
    found.sort(key=lambda n: -(n["weight"] if is_number(n.get("weight")) else 0.0))
    words = []
    for n in found[:NEIGHBOURS_SHOWN]:
        facts = [f"{n['angle_deg']:.1f}°"] if is_number(n.get("angle_deg")) else []
        facts += [f"sees {100 * n['visible']:.0f} %"] if is_number(n.get("visible")) else []
        facts += [f"weight {n['weight']:.2f}"] if is_number(n.get("weight")) else []
        words.append(f"{n['name']} ({', '.join(facts)})" if facts else str(n["name"]))
    more = len(found) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "") if words else "none"


def _information(data: RunData, kind: str) -> dict[str, Any]:
    """What is known of the information maps of a kind; {} without."""
    return (data.metrics.get("information") or {}).get(kind) or {}


def _gain_chart(data: RunData) -> list[Html]:
    """Draw the gain of five groups of blocks over their mean information."""
    curves = {}
    for kind in KINDS:
        gain = _information(data, kind).get("gain") or {"groups": []}
        curves[f"{kind} views"] = [(group["information"], group["gain_db"]) for group in gain["groups"]]
    if max(map(len, curves.values())) < 2:
        return []
    return [line_chart("gain over single [dB] by information", curves, "information of the blocks")]


def _lr_errors(rows: Mapping[str, Mapping[str, Any]]) -> Html:
    """Say in words how far the frames are from what the LR views say."""
    found = [row for row in rows.values() if is_number(row.get("rms_levels")) and is_number(row.get("max_levels"))]
    if not found:
        return Html("")
    rms, largest = sum(row["rms_levels"] for row in found) / len(found), max(row["max_levels"] for row in found)
    text = (
        f"Made small again, a frame differs from its LR view by {rms:.2f} of 255 grey levels (root mean square, mean "
        f"over {len(found)} frames), and nowhere by more than {largest:.1f}."
    )
    return tag("p", text, class_="note")


def _correlation(data: RunData) -> Html:
    """Say in words how well the information maps foretell the gain."""
    words = []
    for kind in KINDS:
        gain = _information(data, kind).get("gain") or {}
        numbers = [gain.get(f"rank_correlation{key}") for key in ("", "_relative", "_views")]
        if all(map(is_number, numbers)):
            words.append(f"{kind} views " + ", ".join(_number(value, 2) for value in numbers))
    if not words:
        return Html("")
    text = (
        "Rank correlation of the information with the reduction of the squared error of 8 x 8 px blocks, with the "
        f"ratio of that error, and of the views' means with their gains in dB: {'; '.join(words)}."
    )
    return tag("p", text, class_="note")


def _confidence(data: RunData) -> Html:
    """Say in words how well the frames' confidence knows where they err."""
    measured = (data.metrics.get("frames") or {}).get("confidence") or {}
    if not all(is_number(measured.get(key)) for key in ("pixel", "block")):
        return Html("")
    text = (
        "Rank correlation of the estimates' deviation (hr/confidence) with the squared error of the frames: "
        f"{measured['pixel']:.2f} by pixel, {measured['block']:.2f} by block of 8 x 8 px."
    )
    return tag("p", text, class_="note")
