"""What a benchmark leaves: Markdown tables, and a JSON file with everything that the numbers depend on."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from diff_gaussian_rasterization import _native, isa

from benchmarks.cases import STAGES, Case, Measured, ratio
from utils.provenance import PROJECT, package_versions

FORMAT = "seqsplat-rasterizer-benchmark-1"
NATIVE_STAGES = ("preprocess", "sort_bin", "forward", "loss", "blend_backward", "geometry", "whole")
RESULTS = "benchmarks/results"  # where measurements are committed
Ratio = tuple[str, str, str, str]  # label, runner, other, stage


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What the numbers depend on.

    `native` is the SHA-256 of the compiled kernels that ran; `dirty` = tracked files differ from the commit, earlier
    results aside.
    """
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){RESULTS}")),
        "native": hashlib.sha256(Path(str(_native.__file__)).read_bytes()).hexdigest(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
        "load": load(),
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The machine in one line."""
    commit = facts["commit"][:12] + (" with changes" if facts["dirty"] else "")
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}, load average {facts['load']}, commit {commit}, "
        f"torch {facts['versions'].get('torch', '?')}\n"
    )


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def command(module: str = "benchmarks.rasterizer") -> str:
    """The words of this run, without the folders of this machine."""
    words = [f".../{Path(word).name}" if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join([f"python -m {module}", *words])


def our_name(threads: int, most: int) -> str:
    """The name of the fused runner with so many threads."""
    return "ours" if threads == most else f"ours, {threads} thr."


def our_runners(threads: list[int]) -> dict[str, int]:
    """Names and threads of the fused runners, fewest threads first."""
    return {our_name(t, max(threads)): t for t in sorted(set(threads))}


def json_text(value: Any, indent: str = "") -> str:
    """JSON with every list or object that holds only plain values on one line: small, and readable as a difference."""
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(child, dict | list) for child in children):
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(k)}: {json_text(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + json_text(v, inner) for v in value) + f"\n{indent}]"


def rounded(measured: Measured) -> Measured:
    """The same to a microsecond, so that files stay small."""
    return {
        runner: {statistic: {k: round(v, 3) for k, v in times.items()} for statistic, times in both.items()}
        for runner, both in measured.items()
    }


def rounded_values(value: Any) -> Any:
    """Any JSON value with six digits of its numbers, small ones as well: distances of 1e-7 are results too."""
    if isinstance(value, dict):
        return {k: rounded_values(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded_values(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def table(case: Case, results: Measured, ratios: list[Ratio]) -> str:
    """Markdown: one row a runner and statistic, then the ratios of the minima and of the medians."""
    columns = [stage for stage in STAGES if any(stage in both["min"] for both in results.values())]
    lines = [f"### {case}, ms", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, both in results.items():
        for statistic, times in both.items():
            cells = (f"{times[k]:.2f}" if k in times else "-" for k in columns)
            lines.append(f"| {name}, {statistic} | " + " | ".join(cells) + " |")
    lines += ["", "| ratio | stage | of minima | of medians |", "|---|---|---|---|"] if ratios else []
    for label, runner, other, stage in ratios:
        cells = (f"{ratio(results, runner, other, stage, statistic):.3f}" for statistic in ("min", "median"))
        lines.append(f"| {label} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary_table(cases: list[dict[str, Any]], runners: dict[str, int]) -> str:
    """Markdown: a row a scene, minima of our runners, fewest threads first, and ours over the prototype in whole steps.

    Parameters
    ----------
    cases, runners : as in `scaling`.
    """
    counts = " / ".join(str(threads) for threads in runners.values())
    lines = [f"### Summary, minima in ms, threads {counts}", ""]
    lines.append("| scene | instances / drawn | " + " | ".join(NATIVE_STAGES) + " | ours / prototype |")
    lines.append("|---" * (len(NATIVE_STAGES) + 3) + "|")
    for case in cases:
        minima = [case["ms"][name]["min"] for name in runners]
        cells = [" / ".join(f"{times[stage]:.1f}" for times in minima) for stage in NATIVE_STAGES]
        facts, versus = case["facts"]["ours"], "not measured"
        if "prototype" in case["ms"]:
            versus = f"{ratio(case['ms'], 'ours', 'prototype'):.2f}"
        per = f"{facts['instances'] / max(facts['drawn'], 1):.1f}"
        scene = str(Case(case["kind"], case["n"], case["size"]))
        lines.append("| " + " | ".join([scene, per, *cells, versus]) + " |")
    return "\n".join(lines) + "\n"


def scaling(cases: list[dict[str, Any]], runners: dict[str, int]) -> list[dict[str, Any]]:
    """Whole steps over threads and N.

    Parameters
    ----------
    cases : entries of the report, see `case_entry`. runners : name and threads of the runners that are ours.

    Returns
    -------
    One entry for each scene: kind, n, size, ms {threads: minimum}, microseconds per thousand Gaussians, and how many
    times faster than with the fewest threads.
    """
    rows = []
    for case in cases:
        whole = {threads: case["ms"][name]["min"]["whole"] for name, threads in runners.items()}
        fewest = whole[min(whole)]
        rows.append(
            {
                **{k: case[k] for k in ("kind", "n", "size")},
                "ms": {str(t): ms for t, ms in whole.items()},
                "us_per_1000": {str(t): round(ms * 1e6 / case["n"], 2) for t, ms in whole.items()},
                "speed_up": {str(t): round(fewest / ms, 3) for t, ms in whole.items()},
            }
        )
    return rows


def scaling_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `scaling`."""
    threads = list(rows[0]["ms"])
    head = [f"{t} threads" for t in threads] + [f"us per 1000, {t} thr." for t in threads]
    head += [f"{t} threads / {threads[0]}" for t in threads[1:]]
    lines = ["### Scaling, whole step, minimum, ms", "", "| scene | " + " | ".join(head) + " |"]
    lines.append("|---" * (len(head) + 1) + "|")
    for row in rows:
        cells = [f"{row['ms'][t]:.2f}" for t in threads] + [f"{row['us_per_1000'][t]:.1f}" for t in threads]
        cells += [f"{row['speed_up'][t]:.2f}x" for t in threads[1:]]
        lines.append(f"| {Case(row['kind'], row['n'], row['size'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
