"""`make demo`: five ways from the same LR views to a 3D scene, side by side, on a scene of our own.

    bicubic   frames enlarged by a filter          single   BasicVSR, every frame alone
    video     BasicVSR along a greedy ordering     hr       no frames: trained on the HR truth, the bound
    seqsplat  BasicVSR among the nearest views, along flow from geometry; trained from a model of the LR views

Every step is one of the project's scripts in a process of its own, so that its time and memory are its own. All of
them skip what is done: the same command continues where it was stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arguments.flags import opt, parse_groups, read_toml
from arguments.loading import CommonParams
from utils import errors, log
from utils.atomic import read_json, write_json
from utils.child import run_child
from utils.record import read_record, step

ROOT = Path(__file__).resolve().parent.parent
CODE = ("ordering", "upsampling", "training", "gaussian_renderer", "submodules", "evaluation", "examples")
BACKGROUNDS = ("white", "black")
SCALE = 4
HEADLINE = "seqsplat"
INITIAL_POINTS = "exact points of the surface in the mean colours of their LR pixels; seqsplat: a model of the LR views"
PAPER = ("--init_points=scene", "--lambda_tex_final=-1")  # training as in Sequence Matters
VARIANTS = {
    "bicubic": ("--ordering=file", "--upsampler=bicubic", *PAPER),
    "single": ("--ordering=file", "--upsampler=basicvsr", "--propagation=none", *PAPER),
    "video": ("--ordering=greedy", "--upsampler=basicvsr", "--flow=learned", "--propagation=path", *PAPER),
    "seqsplat": ("--ordering=greedy", "--upsampler=basicvsr"),  # the method and the settings file say the rest
    "hr": PAPER,
}
STEPS = {
    "seqsplat": ("order", "lr_model", "geometry", "upsample", "train"),
    "hr": ("train",),
}  # of run.py; the others order, upsample and train


@dataclass(frozen=True)
class DemoParams:
    """The demo"""

    output_path: str = opt("output/demo", "output folder", "-o", result=False)
    settings: str = opt(str(ROOT / "configs" / "demo.toml"), "TOML file with the settings of the steps", result=False)


class Budget:
    """Wall-clock seconds of each stage, as the user waited for them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *command: str) -> None:
        """Run one of the project's scripts; on failure end with its exit code, its own message is on stderr."""
        begin = time.monotonic()
        log.note(f"== {stage}")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        code = run_child([sys.executable, *command], environment)
        if code:
            log.note(f"demo: stopped at '{stage}'; the same command continues from here")
            sys.exit(code)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - begin


def main() -> None:
    """Make the scene, run the variants, write table and report."""
    begin = time.monotonic()
    common, params = parse_groups("demo", "The whole method on a small scene.", (CommonParams, DemoParams))
    from examples.demo_scene.write import COMPLETE, SceneSettings, cached_scene  # imports PyTorch: not for --help

    common = replace(common, skip_done=True, overwrite=True)
    out = Path(params.output_path)
    settings = SceneSettings()
    hr = cached_scene(settings)
    inputs = {"scene": [hr / COMPLETE], "settings": [Path(params.settings)]}
    with step(out, "demo", asdict(settings), inputs, CODE, common) as run:
        if not run.up_to_date:
            budget = Budget()
            budget.seconds["demo scene"] = time.monotonic() - begin
            where = ["--device", common.device, "--threads", str(common.threads)]
            run.outputs += make(out, hr, params.settings, budget, where)
            run.notes["budget"] = {stage: round(seconds, 1) for stage, seconds in budget.seconds.items()}
    show(out)


def make(out: Path, hr: Path, config: str, budget: Budget, where: Sequence[str] = ()) -> list[Path]:
    """Run all variants on the HR scene `hr`; return the files by which the demo is recognised as complete.

    where : flags that say on what the steps run; without them on a GPU where there is one.
    """
    lr = out / "lr"
    budget.run("LR views", "-m", "scene.downscale", "-s", str(hr), "-o", str(lr), "--scale", str(SCALE), "--overwrite")
    for variant, flags in VARIANTS.items():
        source, steps = hr if variant == "hr" else lr, STEPS.get(variant, ("order", "upsample", "train"))
        command = [str(ROOT / "run.py"), "-s", str(source), "-m", str(out / variant), "--config", config]
        budget.run(f"{variant}: {', '.join(steps)}", *command, "--steps", *steps, *flags, *where)
        for background in BACKGROUNDS:
            command = [
                str(ROOT / "render.py"),
                "-m",
                str(out / variant),
                "--output_path",
                str(out / variant / background),
            ]
            command += ["--background", background, "--skip_train", "--eval", "--skip_done", "--overwrite", *where]
            budget.run(f"{variant}: render", *command)
    folders = {variant: [str(out / variant / background) for background in BACKGROUNDS] for variant in VARIANTS}
    others = [folder for variant, some in folders.items() if variant != HEADLINE for folder in some]
    gains = ["--single_frames", str(out / "single" / "hr")]  # and a report of its own: how each frame came about
    for some, more in ((others, ["--no_report"]), (folders[HEADLINE], gains)):
        measure = [str(ROOT / "metrics.py"), "-m", *some, "--config", config, "--skip_done", "--overwrite"]
        budget.run("metrics", *measure, *more, *where)
    table = comparison(out, config)
    write_json(out / "table.json", table)
    from evaluation.report import write_comparison

    report = write_comparison(out, {variant: out / variant for variant in VARIANTS}, lr, table)
    return [out / "table.json", report, *(Path(f) / "results.json" for some in folders.values() for f in some)]


def comparison(out: Path, config: str) -> dict[str, Any]:
    """The demo's table: one row a variant and background, under one protocol.

    Returns
    -------
    {"protocol": {...}, "rows": [{"variant", "background", "PSNR" [dB], "SSIM", "LPIPS", "frame_PSNR" [dB, of the
    pseudo-HR training frames on this background; None for hr], "seconds" (of all steps),
    "peak_MB" (largest process)}]}

    Raises
    ------
    UserError : results are missing, or were made under protocols that differ in more than the background.
    """
    from evaluation.protocols import from_json, require_equal
    from evaluation.results import read_metrics

    rows, protocols = [], []
    for variant in VARIANTS:
        made = [
            record
            for name in ("order", "geometry", "upsample", "train")
            if (record := read_record(out / variant, name))
        ]
        made += [record for record in [read_record(out / variant / "lr_model", "train")] if record]
        for background in BACKGROUNDS:
            folder = out / variant / background
            metrics = read_metrics(folder)
            result = metrics["methods"][max(metrics["methods"], key=iteration_of)]
            records = [*made, *(record for record in [read_record(folder, "render")] if record)]
            row: dict[str, Any] = {"variant": variant, "background": background}
            row |= {key: round(result["mean"][key], 4) for key in ("PSNR", "SSIM", "LPIPS")}
            frames = metrics["frames"]
            row["frame_PSNR"] = round(frames["PSNR"], 4) if frames else None
            row["seconds"] = round(sum(record["seconds"] for record in records), 1)
            row["peak_MB"] = round(max(record["peak_bytes"] for record in records) / 1e6)
            rows.append(row)
            protocols.append((f"{variant}/{background}", from_json(result["protocol"], str(folder / "metrics.json"))))
    for background in BACKGROUNDS:  # hr comes from another folder: the same scene only if the truths are equal
        require_equal([(name, protocol) for name, protocol in protocols if protocol.background == background])
    require_equal(protocols[: len(BACKGROUNDS)], shown=("background",))
    shared = {key: value for key, value in protocols[0][1].to_json().items() if key not in ("background", "truth")}
    shared |= {"initial_points": INITIAL_POINTS, "settings": read_toml(config)}
    return {"protocol": shared, "rows": rows}


def iteration_of(method: str) -> int:
    """N of "test/ours_N", -1 for what is not named so."""
    number = method.rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def show(out: Path) -> None:
    """Print the time budget, the table, and where the report is."""
    from evaluation.formats import Table, aligned

    record = read_record(out, "demo")
    if record:
        budget = record["notes"]["budget"]
        budget |= {"total": sum(budget.values())}
        log.say(aligned(Table(["stage", "seconds"], [[stage, f"{seconds:.1f}"] for stage, seconds in budget.items()])))
        log.say()
    rows = read_json(out / "table.json")["rows"]
    text = [["-" if value is None else str(value) for value in row.values()] for row in rows]
    log.say(aligned(Table(list(rows[0]), text)))
    log.say(f"\nopen {out}/report/index.html")


if __name__ == "__main__":
    errors.run(main)
