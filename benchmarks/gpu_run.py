"""`python -m benchmarks.rasterizer --device cuda`: measure all scenes on a GPU, as tables and as a report."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import device, floors, gpu, kernel_times
from benchmarks.cases import Measured
from benchmarks.gpu import DETERMINISTIC, GSPLAT, OURS, Case
from utils.errors import UserError

CASES = (
    *("10k/400x400", "10k/800x800", "100k/400x400", "100k/800x800", "300k/800x800"),
    *("1000k/800x800", "1000k/1920x1080"),
)
SPREAD_CASES = ("100k/800x800",)
SEEDS = (1, 2, 3)
STAGES = ("preprocess", "sort_bin", "forward", "loss", "blend_backward", "geometry", "whole")
SUMS = ("render", "loss", "backward", "adam", "whole")
Report = dict[str, Any]


def case_of(text: str, kind: str, seed: int = 1) -> Case:
    """`100k/800x800`: so many Gaussians, in thousands, before a picture of that size [px].

    Raises
    ------
    UserError : written in another way.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})k/([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise UserError(f"--case {text}: thousands of Gaussians and the picture's size are expected, as 100k/800x800")
    thousands, width, height = map(int, found.groups())
    return Case(kind, 1000 * thousands, width, height, seed)


def peer_problem() -> str | None:
    """Why there is no gsplat to compare with; None where there is. Its kernels are compiled when first imported."""
    if importlib.util.find_spec("gsplat") is None:
        return "gsplat is not installed"
    try:
        from gsplat.cuda._backend import _C
    except (ImportError, OSError, RuntimeError) as error:
        return f"gsplat cannot be used ({str(error).partition(chr(10))[0]})"
    return None if _C is not None else "gsplat has no kernels here"


def peer(problem: str | None) -> str:
    """Which gsplat, with which loss and optimizer, or that there is none."""
    if problem:
        return f"{problem}: not compared"
    loss = gpu.loss_of_others()[1]
    return f"gsplat {importlib.metadata.version('gsplat')}, {loss}, torch.optim.Adam(fused=True), no statistics"


def run(kinds: list[str], texts: list[str], rounds: int, tell: Callable[[str], None]) -> Report:
    """Measure; `tell` gets each table as soon as it is there.

    Raises
    ------
    UserError : no GPU that the kernels can use.
    """
    device.required("--device cuda")
    on = torch.device("cuda:0")
    rates, problem = floors.measured_rates(on), peer_problem()
    found: Report = {
        "gpu": device.facts(),
        "rates": {"copy_GB_per_s": rates.bytes_per_s / 1e9, "float32_TFLOP_per_s": rates.flops_per_s / 1e12},
        "peer": peer(problem),
        "cases": [],
    }
    tell(heading(found))
    for case in [case_of(text, kind) for kind in kinds for text in texts]:
        entry = measured_case(case, on, rates, rounds, with_peer=problem is None)
        found["cases"].append(entry)
        tell("\n".join([stages_table(entry), sums_table(entry), kernel_times.table(entry["scene"], entry["kernels"])]))
    spread = [gpu.spread(case_of(text, kind, s), on) for kind in kinds for text in SPREAD_CASES for s in SEEDS]
    found["spread"] = spread
    tell(summary_table(found["cases"]) + "\n" + spread_table(spread))
    return found


def measured_case(case: Case, on: torch.device, rates: floors.Rates, rounds: int, *, with_peer: bool) -> Report:
    """Times of all runners on one scene, and the floors of its stages."""
    ours = gpu.Ours(case, on)
    runners: dict[str, gpu.Runner] = {OURS: ours, DETERMINISTIC: gpu.Ours(case, on, deterministic=True)}
    if with_peer:
        runners[GSPLAT] = gpu.Gsplat(case, on)
    ms, counts = gpu.measure(runners, rounds), ours.counts()
    kernels = kernel_times.table_of(kernel_times.profiled(ours.step), kernel_times.STEPS, counts, rates)
    return {**case_entry(case, counts, ms, rates), "kernels": kernels}


def case_entry(case: Case, counts: floors.Counts, ms: Measured, rates: floors.Rates) -> Report:
    """What the report keeps of a scene."""
    work = floors.work(counts)
    least = floors.floors(work, rates)
    return {
        "scene": str(case),
        **{name: getattr(counts, name) for name in ("n", "drawn", "instances", "pairs", "width", "height")},
        "ms": ms,
        "floors": {
            name: {
                "MB": work[name].bytes / 1e6,
                "MFLOP": work[name].flops / 1e6,
                "ms": least[name],
                "share": least[name] / ms[OURS]["median"][name],
            }
            for name in STAGES
        },
    }


def heading(found: Report) -> str:
    """The GPU and what it was compared with."""
    facts, rates = found["gpu"], found["rates"]
    copy, product = f"{rates['copy_GB_per_s']:.0f} GB/s", f"{rates['float32_TFLOP_per_s']:.1f} TFLOP/s"
    return (
        f"{facts['name']}, driver {facts['driver']}, torch {facts['torch']}, CUDA {facts['cuda']}; copy {copy}, "
        f"float32 product {product}; {found['peer']}\n"
    )


def stages_table(entry: Report) -> str:
    """Markdown: a row a stage, times of our two paths beside what the device's memory and arithmetic allow."""
    ms, lines = entry["ms"], [f"### {entry['scene']}, ms", ""]
    lines.append("| stage | median | minimum | deterministic, median | MB | MFLOP | floor | floor / median |")
    lines.append("|---" * 8 + "|")
    for name in STAGES:
        floor = entry["floors"][name]
        times = (ms[OURS]["median"][name], ms[OURS]["min"][name], ms[DETERMINISTIC]["median"][name])
        cells = [*(f"{t:.3f}" for t in times), f"{floor['MB']:.1f}", f"{floor['MFLOP']:.0f}"]
        lines.append("| " + " | ".join([name, *cells, f"{floor['ms']:.3f}", f"{100 * floor['share']:.0f} %"]) + " |")
    return "\n".join(lines) + "\n"


def sums_table(entry: Report) -> str:
    """Markdown: a row a runner, medians; ours has Adam in `backward`."""
    lines = ["| median, ms | " + " | ".join(SUMS) + " |", "|---" * (len(SUMS) + 1) + "|"]
    for name, both in entry["ms"].items():
        cells = (f"{both['median'][k]:.3f}" if k in both["median"] else "-" for k in SUMS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary_table(cases: list[Report]) -> str:
    """Markdown: a row a scene, whole steps."""
    lines = ["| scene | instances / drawn | ours | deterministic | gsplat | gsplat / ours | floor / ours |"]
    lines.append("|---" * 7 + "|")
    for entry in cases:
        ms = entry["ms"]
        ours, still = (f"{ms[k]['median']['whole']:.3f} ({ms[k]['min']['whole']:.3f})" for k in (OURS, DETERMINISTIC))
        theirs, ratio = "not measured", "not measured"
        if GSPLAT in ms:
            theirs = f"{ms[GSPLAT]['median']['whole']:.3f} ({ms[GSPLAT]['min']['whole']:.3f})"
            ratio = f"{ms[GSPLAT]['median']['whole'] / ms[OURS]['median']['whole']:.2f}x"
        per = f"{entry['instances'] / max(entry['drawn'], 1):.1f}"
        share = f"{100 * entry['floors']['whole']['share']:.0f} %"
        lines.append("| " + " | ".join([entry["scene"], per, ours, still, theirs, ratio, share]) + " |")
    return "\n".join(lines) + "\n"


def spread_table(rows: list[Report]) -> str:
    """Markdown: how far runs of the same step lie apart, a row a scene and seed."""
    fields = list(rows[0]["fast"]) if rows else []
    lines = ["| scene, seed | deterministic runs equal | fast images equal | " + " | ".join(fields) + " | largest |"]
    lines.append("|---" * (len(fields) + 4) + "|")
    for row in rows:
        words = ["yes" if row[k] else "NO" for k in ("deterministic_equal", "fast_image_equal")]
        numbers = [f"{v:.1e}" for v in (*row["fast"].values(), row["largest"])]
        lines.append("| " + " | ".join([f"{row['case']}, {row['seed']}", *words, *numbers]) + " |")
    return "\n".join(lines) + "\n"
