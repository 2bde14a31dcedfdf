"""How long each kernel of a training step takes on a GPU, by PyTorch's profiler, which sees all that CUDA runs."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from benchmarks.floors import OTHERS, Counts, Rates, floor_ms, kernel_work

WARM_UP, STEPS = 5, 20
Row = dict[str, Any]


class Launches(NamedTuple):
    """All launches of one kernel in some steps: its full name, their number, and their time [us]."""

    name: str
    times: int
    us: float


def base_name(name: str) -> str:
    """`blend_kernel` of `void splat::cuda::(anonymous namespace)::blend_kernel<0, true>(Blend)`.

    Copies and fills by the runtime keep their name.
    """
    plain = name.replace("(anonymous namespace)", "").replace("<unnamed>", "")
    found = re.match(r"(?:void )?(?:\w*::)*(\w+)\s*[<(]", plain)
    return found[1] if found else name


def profiled(step: Callable[[], Any], steps: int = STEPS) -> list[Launches]:
    """Of `steps` steps after a warm-up; needs a GPU."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = (e for e in found.key_averages() if e.device_type == DeviceType.CUDA)
    return [Launches(e.key, e.count, e.self_device_time_total) for e in events]


def table_of(launches: Iterable[Launches], steps: int, counts: Counts, rates: Rates) -> list[Row]:
    """A row a kernel that has a floor, in the order of the pipeline, then the rest by time; times of one step.

    Returns
    -------
    rows : kernel, stage ("" where it has no floor), launches and ms a step, floor_ms and share = floor / time, both
        None where there is no floor.
    """
    found: dict[str, Row] = {}
    for launch in launches:
        name = base_name(launch.name)
        row = found.setdefault(
            name, {"kernel": name, "stage": "", "launches": 0.0, "ms": 0.0, "floor_ms": None, "share": None}
        )
        row["launches"] += launch.times / steps
        row["ms"] += launch.us / steps / 1e3
    rows = []
    for stage, kernels in kernel_work(counts).items():
        for name, what in kernels.items():
            if name != OTHERS and name in found:
                rows.append(found.pop(name) | {"stage": stage, "floor_ms": floor_ms(what, rates)})
    for row in rows:
        row["share"] = row["floor_ms"] / row["ms"] if row["ms"] else None
    return rows + sorted(found.values(), key=lambda row: -row["ms"])


def table(scene: str, rows: list[Row]) -> str:
    """Markdown: a row a kernel."""
    lines = [f"### {scene}, kernels", "", "| kernel | stage | launches a step | ms | floor | floor / ms |"]
    lines.append("|---" * 6 + "|")
    for row in rows:
        floor = "-" if row["floor_ms"] is None else f"{row['floor_ms']:.3f}"
        share = "-" if row["share"] is None else f"{100 * row['share']:.0f} %"
        cells = (row["kernel"], row["stage"] or "-", f"{row['launches']:g}", f"{row['ms']:.4f}", floor, share)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
