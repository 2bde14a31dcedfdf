"""Draw the stages of a training step as horizontal bars, SVG as plain text, from the JSON that the benchmark wrote.

    python -m benchmarks.chart FILE.json OUT.svg

One bar a scene, with the stages side by side in the order of the pipeline. Colour never carries meaning alone: each
segment has its number where it is wide enough, and the order is the same in every bar. The picture has its own
background, so it reads the same on a light and on a dark page, and follows the reader's preference where that is known.
"""

import sys
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from utils import errors
from utils.atomic import read_json, write_text
from utils.errors import UserError

STAGES = {
    "preprocess": "project, colour",
    "sort_bin": "sort, bin",
    "forward": "blend",
    "loss": "L1 + SSIM, gradient",
    "blend_backward": "blend backward",
    "geometry": "geometry backward + Adam",
}
WIDTH, LEFT, RIGHT = 860, 150, 90  # px
BAR, GAP, TOP, LEGEND = 22, 10, 64, 54  # px
NUMBER_PX = 14  # a narrower segment goes without its number
STYLE = """
.page { fill: #ffffff } .text { fill: #1f2328 } .soft { fill: #59636e } .edge { stroke: #ffffff }
.s1 { fill: #9ecae1 } .s2 { fill: #fdd49e } .s3 { fill: #a1d99b } .s4 { fill: #dadaeb } .s5 { fill: #fcbba1 }
.s6 { fill: #d9d9d9 } .on { fill: #1f2328 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } .text { fill: #e6edf3 } .soft { fill: #9198a1 } .edge { stroke: #0d1117 }
}
text { font: 13px sans-serif } .small { font-size: 11px } .title { font-size: 15px; font-weight: 600 }
"""


def chart(report: dict[str, Any], runner: str = "ours") -> str:
    """The picture.

    Parameters
    ----------
    report : what `benchmarks.rasterizer --json` writes, with its `cases`. runner : whose minima are drawn.

    Raises
    ------
    UserError : the report has no cases, or the runner is not in it.
    """
    cases = report.get("cases")
    if not cases or any(runner not in case["ms"] for case in cases):
        raise UserError(f"the report has no cases with the runner {runner!r}")
    longest = max(case["ms"][runner]["min"]["whole"] for case in cases)
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + len(cases) * (BAR + GAP) + LEGEND
    machine, settings = report["machine"], report["settings"]
    title = f"One training step, ms, {max(settings['threads'])} threads, {machine['isa']}, {machine['cpu']}"
    parts = [
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        _text(16, 26, title, "text title"),
        _text(16, 46, "minimum of interleaved rounds; scene = kind, Gaussians / image side in px", "soft small"),
    ]
    for row, case in enumerate(cases):
        parts += bar(case, runner, TOP + row * (BAR + GAP), scale)
    parts += legend(height - LEGEND + 14)
    label = escape(f"{title}: " + ", ".join(f"{_scene(c)} {c['ms'][runner]['min']['whole']:.1f}" for c in cases))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def bar(case: dict[str, Any], runner: str, top: float, scale: float) -> list[str]:
    """One scene: its name, a segment a stage, the whole step's time. What no stage claims is left blank at the end."""
    times, x = case["ms"][runner]["min"], float(LEFT)
    parts = [_text(LEFT - 10, top + 15, _scene(case), "text", anchor="end")]
    for number, stage in enumerate(STAGES, 1):
        width = times[stage] * scale
        tip = escape(f"{number} {STAGES[stage]}: {times[stage]:.2f} ms")
        parts.append(
            f'<rect class="s{number} edge" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR}">'
            f"<title>{tip}</title></rect>"
        )
        if width >= NUMBER_PX:
            parts.append(_text(x + width / 2, top + 15, str(number), "on small", anchor="middle"))
        x += width
    end = max(x, LEFT + times["whole"] * scale)
    parts.append(_text(end + 8, top + 15, f"{times['whole']:.1f} ms", "text"))
    return parts


def legend(top: float) -> list[str]:
    """Number, sample and name of each stage, in two lines of three."""
    parts = []
    for k, name in enumerate(STAGES.values()):
        x, y = 16 + (k % 3) * 270, top + (k // 3) * 20
        parts.append(f'<rect class="s{k + 1} edge" x="{x}" y="{y - 12}" width="16" height="16"/>')
        parts.append(_text(x + 8, y, str(k + 1), "on small", anchor="middle"))
        parts.append(_text(x + 24, y, name, "text"))
    return parts


def _scene(case: dict[str, Any]) -> str:
    return str(Case(case["kind"], case["n"], case["size"]))


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def main() -> None:
    if len(sys.argv) != 3:
        raise UserError("usage: python -m benchmarks.chart FILE.json OUT.svg")
    write_text(Path(sys.argv[2]), chart(read_json(sys.argv[1])))


if __name__ == "__main__":
    errors.run(main)
