"""Settings of a study's command line: where it runs, what part of it, what its table shows."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class StudyParams:
    """Which part of a study (python -m evaluation.study STUDY.toml {plan,run,status,table})"""

    out: str = opt("", "folder of all tasks; default: what the study says, or output/study, which studies may share")
    source: str = opt("", "one LR scene instead of the study's scenes; settings for it go after --")
    hr: str = opt("", "its HR scene, for variants that train on the truth; none = they are left out")
    scenes: tuple[str, ...] = opt((), "only these scenes")
    variants: tuple[str, ...] = opt((), "only these variants, and what they need")
    seeds: tuple[int, ...] = opt((), "these seeds instead of the study's", type=int)
    quiet: bool = opt(False, "no progress, results and errors only", result=False)


@dataclass(frozen=True)
class ExecutorParams:
    """How tasks are carried out (run)"""

    executor: str = opt("local", "local, or ray (package ray, requirements-study.txt)", choices=("local", "ray"))
    slots: int = opt(1, "tasks at the same time")
    threads: int = opt(0, "CPU threads of a task; 0 = cores / slots")
    devices: tuple[str, ...] = opt(
        ("auto",), "devices, handed out to the slots in turn: auto, cpu, cuda:0 ...; ray: one"
    )
    index: int = opt(-1, "only the run of this number in the plan, with what it needs (Slurm arrays)")
    stale: bool = opt(False, "also redo tasks that were made by other code, or from results redone since")
    retries: int = opt(2, "how often a task is started again whose worker was killed")
    gpus: float = opt(0.0, "ray: GPUs of a task, also fractions; 0 = none")
    address: str = opt("", "ray: address of a running cluster; default: one on this machine for the time of the study")
    keep_checkpoints: bool = opt(False, "keep the training checkpoints of finished tasks, 100 MB a model")

    def __post_init__(self) -> None:
        for name, low in (("slots", 1), ("threads", 0), ("index", -1), ("retries", 0), ("gpus", 0)):
            if not getattr(self, name) >= low:
                raise UserError(f"--{name} {getattr(self, name)}: {low} or more is expected")
        if self.executor == "ray" and len(self.devices) > 1:
            raise UserError(
                f"--devices {' '.join(self.devices)}: with --executor ray one device alone; Ray places tasks on GPUs "
                "by itself: --gpus 1 (or a fraction) for each task, instead of --devices"
            )


@dataclass(frozen=True)
class StudyTableParams:
    """What the table shows (table)"""

    metrics: tuple[str, ...] = opt(
        ("PSNR", "SSIM", "LPIPS_alex"), "metrics; the first one is compared with the baseline"
    )
    baseline: str = opt("", "variant that the others are compared with; default: the study's")
    background: tuple[str, ...] = opt((), "only these backgrounds")
    per_scene: bool = opt(False, "also one table a scene")
    compact: bool = opt(
        False,
        "one row a variant, scenes beside each other; * = clear: of a scene p (Holm) under 0.05, of all the interval",
    )
    facts: tuple[str, ...] = opt(
        (),
        "of the models, in the compact table: fit_PSNR: renders of the training views against the frames that the model"
        " was trained on, fit_LR_PSNR: reduced, against the LR views; splats",
        choices=("fit_PSNR", "fit_LR_PSNR", "splats"),
    )
    frames: bool = opt(False, "also a table of the frames: gain with interval, jumps of the order, flow")
    per_view: bool = opt(False, "also the difference of every view to the baseline")
    fresh: bool = opt(False, "only runs whose tasks all are what the present code and data would make")
    format: str = opt("markdown", "markdown, latex, csv or tsv", choices=("markdown", "latex", "csv", "tsv"))
    results: str = opt("", "read results from this file, which --json wrote, instead of from the tasks", result=False)
    json: str = opt("", "also write everything, every view included, to this file", result=False)
    output: str = opt("", "file to write the table to; default: standard output", "-o", result=False)
    confidence: float = opt(0.95, "of the intervals")
    resamples: int = opt(10_000, "bootstrap resamples")

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UserError(f"--confidence {self.confidence}: a number between 0 and 1 is expected")
        if self.resamples < 100:
            raise UserError(f"--resamples {self.resamples}: 100 or more is expected")


@dataclass(frozen=True)
class WorkerParams:
    """One task (python -m evaluation.study.tasks FOLDER; executors start it)"""

    device: str = opt("auto", "auto, cpu, cuda[:N]")
    threads: int = opt(0, "CPU threads, 0 = all")
    parent: int = opt(0, "end when this process, which started it, is gone; 0 = never")
    again: bool = opt(False, "redo a finished task")
    keep_checkpoints: bool = opt(False, "keep the training checkpoints")
