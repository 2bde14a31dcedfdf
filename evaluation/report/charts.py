"""Curves and bars as inline SVG: no library, readable without colour (dashes, labels, titles)."""

import math
from collections.abc import Mapping, Sequence

from evaluation.report.html import Html, join, tag

WIDTH, HEIGHT, WIDE = 360, 190, 820
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24
MAX_POINTS = 400
Points = Sequence[tuple[float, float]]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose round numbers that cover [low, high], a step of 1, 2 or 5 times a power of ten."""
    if not high > low:
        margin = 0.1 * abs(low) or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(i * step) for i in range(first, last + 1)]


def short(value: float) -> str:
    """Write a number briefly: 30k, 1.2M, 0.05."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.4g}"


def thinned(points: Points) -> Points:
    """Keep at most MAX_POINTS points: each is the mean of its bucket, the last point stays."""
    if len(points) <= MAX_POINTS:
        return points
    size = -(-len(points) // MAX_POINTS)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets]
    return [*means[:-1], points[-1]]


def line_chart(title: str, series: Mapping[str, Points], x_label: str = "iteration") -> Html:
    """Draw curves over a common x axis.

    Parameters
    ----------
    series : points (x, y) by name, at least one point in all.
    """
    series = {name: thinned(points) for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys))
    x_low, x_high, y_low, y_high = min(xs), max(max(xs), min(xs) + 1e-9), y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid_line(py(y), short(y)) for y in y_ticks]
    inside = [x for x in x_ticks if x_low <= x <= x_high]
    parts += [tag("text", short(x), x=f"{px(x):.1f}", y=HEIGHT - 6, text_anchor="middle") for x in inside]
    for i, points in enumerate(series.values()):
        path = "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        parts.append(tag("path", d=path, class_=f"curve k{i % 6}"))
        if len(points) == 1:
            parts.append(
                tag("circle", cx=f"{px(points[0][0]):.1f}", cy=f"{py(points[0][1]):.1f}", r=3, class_=f"f{i % 6}")
            )
    ends = ", ".join(f"{name} {short(points[0][1])} to {short(points[-1][1])}" for name, points in series.items())
    legend = [] if len(series) < 2 else [_legend(list(series))]
    return _figure(title, f"{title} over {x_label}: {ends}", parts, legend)


def _grid_line(y: float, label: str) -> Html:
    line = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return join([line, tag("text", label, x=LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end")])


def _legend(names: Sequence[str]) -> Html:
    items = (tag("span", tag("i", class_=f"k{i % 6}"), name) for i, name in enumerate(names))
    return tag("div", *items, class_="legend")


def _figure(
    title: str,
    label: str,
    parts: Sequence[object],
    legend: Sequence[object] = (),
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Html:
    svg = tag("svg", *parts, viewBox=f"0 0 {size[0]} {size[1]}", role="img", aria_label=label)
    return tag("figure", tag("figcaption", title), *legend, svg, class_="chart")


def sorted_bars(title: str, values: Mapping[str, float], larger_is_better: bool, decimals: int) -> Html:
    """Draw one thin bar a view, worst first; each says its view and value when pointed at."""
    ordered = sorted(values.items(), key=lambda item: item[1], reverse=not larger_is_better)
    numbers = [value for _, value in ordered]
    spread = max(numbers) - min(numbers)
    start = min(numbers) - 0.35 * spread
    ticks = nice_ticks(max(0.0, start) if min(numbers) >= 0 else start, max(numbers), 4)
    low, high = ticks[0], ticks[-1]
    step = (WIDTH - LEFT - RIGHT) / len(ordered)
    parts = []
    for y in ticks:
        parts.append(_grid_line(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), short(y)))
    for i, (name, value) in enumerate(ordered):
        height = max((value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)
        shape = {"x": f"{LEFT + (i + 0.1) * step:.2f}", "y": f"{HEIGHT - BOTTOM - height:.2f}"}
        size = {"width": f"{step * 0.8:.2f}", "height": f"{height:.2f}"}
        parts.append(tag("rect", tag("title", f"{name}: {value:.{decimals}f}"), **shape, **size, class_="bar"))
    parts.append(tag("text", "worst", x=LEFT, y=HEIGHT - 6))
    parts.append(tag("text", "best", x=WIDTH - RIGHT, y=HEIGHT - 6, text_anchor="end"))
    worst, best = ordered[0], ordered[-1]
    ends = (f"{name} {value:.{decimals}f}" for name, value in (worst, best))
    label = f"{title} of {len(ordered)} views, worst {next(ends)}, best {next(ends)}"
    return _figure(title, label, parts)


def stacked_bars(title: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> Html:
    """Draw one horizontal bar a row, cut into named parts (seconds of each stage of each variant)."""
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    longest = max((sum(parts.values()) for parts in rows.values()), default=0) or 1
    row_height, left = 30, 84
    shapes = []
    for i, (name, parts) in enumerate(rows.items()):
        x, y = float(left), i * row_height + 6
        shapes.append(tag("text", name, x=left - 8, y=y + 13, text_anchor="end", class_="name"))
        for part, value in parts.items():
            width = value / longest * (WIDE - left - 62)
            title_ = tag("title", f"{name}, {part}: {value:.0f} {unit}")
            size = {"x": f"{x:.1f}", "y": y, "width": f"{width:.1f}", "height": 18}
            shapes.append(tag("rect", title_, **size, class_=f"f{names.index(part) % 6}"))
            x += width
        shapes.append(tag("text", f"{sum(parts.values()):.0f} {unit}", x=f"{x + 6:.1f}", y=y + 13))
    legend = tag(
        "div", *(tag("span", tag("i", class_=f"block f{i % 6}"), n) for i, n in enumerate(names)), class_="legend"
    )
    label = "; ".join(f"{row}: {sum(parts.values()):.0f} {unit}" for row, parts in rows.items())
    return _figure(title, f"{title}: {label}", shapes, [legend], (WIDE, len(rows) * row_height + 8))
