"""Tables of results, `python -m evaluation.tables OUT...`: Markdown, LaTeX, CSV or TSV; protocols are never mixed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from arguments.evaluation import EXTRA_METRICS, TableParams
from arguments.flags import parse_groups
from arguments.steps import DEPTH_STEPS
from evaluation.formats import FORMATS, Table
from evaluation.protocols import FIELDS, Protocol, from_json, require_equal
from evaluation.published import PublishedSet, load_published
from evaluation.saved import step_records
from utils import errors
from utils.atomic import write_text
from utils.errors import UserError
from utils.log import say

FRAMES = {"frame_PSNR": "PSNR", "bicubic_PSNR": "bicubic_PSNR", "single_PSNR": "single_PSNR"}  # keys of "frames"
METRICS = ("PSNR", "SSIM", "LPIPS", "LPIPS_vgg", "LPIPS_alex", "LR_PSNR", *EXTRA_METRICS, *FRAMES)
ORDER = ("jump_PSNR", "jumps", "mean_step_deg", "worst_step_deg", "step_px")  # of the schedule that made the frames
FACTS = ("splats", "iteration", "seed", "seconds", "peak_MB")
DECIMALS = {"PSNR": 2, **dict.fromkeys(FRAMES, 2), "jump_PSNR": 2, "mean_step_deg": 1, "worst_step_deg": 1}
DECIMALS |= {"LR_PSNR": 2, "fit_PSNR": 2, "fit_LR_PSNR": 2, "step_px": 1, "seconds": 0, "peak_MB": 0}
AS_IT_IS = ("scale",)
COLUMNS = ("name", *METRICS, *ORDER, *FIELDS, *FACTS)
STEPS = ("order", "upsample", "train", "render")  # not metrics: one run of it measures many folders


@dataclass
class Row:
    """One result: its name, how it was made, and every value that a column can show."""

    name: str
    protocol: Protocol
    values: dict[str, Any] = field(default_factory=dict)

    def cell(self, column: str) -> str:
        """Return the text of a column; "-" where there is no such value."""
        if column == "name":
            return self.name
        value = getattr(self.protocol, column) if column in FIELDS else self.values.get(column)
        return cell_text(column, value)


def cell_text(column: str, value: Any) -> str:
    """Format a value as its column wants it: PSNR with 2 decimals, SSIM and LPIPS with 4."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:g}" if column in AS_IT_IS else f"{value:.{DECIMALS.get(column, 4)}f}"
    return str(value)


def read_row(folder: Path, name: str, split: str = "test", iteration: int = -1) -> Row:
    """Read what metrics.py wrote into a folder.

    Raises
    ------
    UserError : not measured yet, or not this split or iteration.
    """
    from evaluation.results import read_metrics  # imports PyTorch: not needed for --help or a wrong flag

    content = read_metrics(folder)
    methods = {key.split("/", 1)[1]: value for key, value in content["methods"].items() if key.startswith(f"{split}/")}
    numbers = {int(m.rpartition("_")[2]): m for m in methods if m.rpartition("_")[2].isdigit()}
    chosen = numbers.get(max(numbers, default=-1) if iteration == -1 else iteration)
    if chosen is None:
        raise UserError(
            f"{folder}: no {split} results of iteration {iteration}; measured: {', '.join(methods) or 'none'}"
        )
    frames = content.get("frames") or {}
    values = {**methods[chosen]["mean"], **{column: frames.get(key) for column, key in FRAMES.items()}}
    order = frames.get("order") or {}
    jumps = order.get("jumps") or {}
    values |= {key: order.get(key) for key in ORDER} | {"jump_PSNR": jumps.get("PSNR"), "jumps": jumps.get("steps")}
    protocol = from_json(methods[chosen]["protocol"], f"{folder}/metrics.json")
    return Row(
        name, protocol, values | run_facts(folder) | {"iteration": max(numbers) if iteration == -1 else iteration}
    )


def run_facts(folder: Path) -> dict[str, Any]:
    """Sum up the records of the steps that led to a folder: seconds, peak memory in MB, seed, splats."""
    found = step_records(folder)
    aligned = found.get("upsample", {}).get("notes", {}).get("flow") == "geometry"
    records = [found[name] for name in (*STEPS, *(DEPTH_STEPS if aligned else ())) if name in found]
    splats = [m.get("splats") for m in found.get("render", {}).get("notes", {}).get("methods", {}).values()]
    return {
        "seconds": sum(r["seconds"] for r in records) if records else None,
        "peak_MB": max(r["peak_bytes"] for r in records) / 1e6 if records else None,
        "seed": next((r["seed"] for r in records), None),
        "splats": next(iter(splats), None),
    }


def short_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by their paths without what all have in common at the start."""
    parts = [folder.resolve().parts for folder in folders]
    shared = 0
    while min(len(p) for p in parts) > shared + 1 and len({p[shared] for p in parts}) == 1:
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def build(rows: Sequence[Row], columns: Sequence[str], published: PublishedSet | None, with_mean: bool) -> Table:
    """Put rows into a table.

    Raises
    ------
    UserError : an unknown column, or protocols that differ in a field that is not a column.
    """
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise UserError(f"--columns {unknown[0]}: choose among {', '.join(COLUMNS)}")
    require_equal([(row.name, row.protocol) for row in rows], columns)
    table = Table(list(columns), [[row.cell(column) for column in columns] for row in rows])
    if with_mean:
        from evaluation.metrics import mean  # imports PyTorch

        numbers = [c for c in columns if all(isinstance(row.values.get(c), int | float) for row in rows)]
        average = mean([{c: row.values[c] for c in numbers} for row in rows])
        table.rows.append(["mean" if c == "name" else cell_text(c, average.get(c)) for c in columns])
    if published is not None:
        backgrounds = {row.protocol.background for row in rows}
        for entry in published.entries:
            number = table.add_note(published.note(entry, backgrounds, {row.protocol.views for row in rows}))
            table.below.append([f"{entry.name} [{number}]", *(cell_text(c, entry.cell(c)) for c in columns[1:])])
        table.caption = f"{published.title}. {published.general}"
    return table


def main() -> None:
    """Read OUT... and the flags, print or write the table."""
    words = sys.argv[1:]
    outs = list(takewhile(lambda word: not word.startswith("-"), words))
    (params,) = parse_groups(
        "python -m evaluation.tables OUT...",
        "Put results side by side; refuses to mix protocols, naming the field that differs.",
        (TableParams,),
        words[len(outs) :],
        section="tables",
    )
    if not outs:
        raise UserError("python -m evaluation.tables OUT...: name one or more folders that metrics.py measured")
    folders = [Path(out) for out in outs]
    rows = [
        read_row(folder, name, params.split, params.iteration)
        for folder, name in zip(folders, short_names(folders), strict=True)
    ]
    columns = params.columns if params.columns[0] == "name" else ("name", *params.columns)
    published = load_published(params.published, {row.protocol.scene for row in rows}) if params.published else None
    text = FORMATS[params.format](build(rows, columns, published, params.mean))
    if params.output:
        write_text(params.output, text + "\n")
        say(f"wrote {params.output}")
    else:
        say(text)


if __name__ == "__main__":
    errors.run(main)
