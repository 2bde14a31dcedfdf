"""Settings of metrics.py."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError

EXTRA_METRICS = ("CLIPIQA_tm", "CLIPIQA_pyiqa", "DISTS", "NIQE_fit")


@dataclass(frozen=True)
class MetricsParams:
    """What is measured"""

    model_paths: tuple[str, ...] = opt((), "folders that render.py wrote to, one or more", "-m", result=False)
    no_lpips: bool = opt(False, "leave LPIPS out (its weights are then not needed)")
    lpips: tuple[str, ...] = opt(
        ("LPIPS", "LPIPS_vgg", "LPIPS_alex"),
        "variants: LPIPS as the 3DGS code computes it, LPIPS_vgg and LPIPS_alex correctly scaled",
        choices=("LPIPS", "LPIPS_vgg", "LPIPS_alex"),
    )
    extra_metrics: tuple[str, ...] = opt(
        (),
        "also measure DISTS (needs --dists) and, without the truth, CLIPIQA_tm, CLIPIQA_pyiqa (--clip), NIQE_fit "
        "(--niqe_fit)",
        choices=EXTRA_METRICS,
    )
    clip: str = opt("", "folder of a CLIP model, or its name on the hub: of CLIP-IQA", result=False)
    download: bool = opt(False, "fetch the model that --clip names where it is not cached", result=False)
    dists: str = opt("", "file with the weights of DISTS (weights.pt of its authors)", result=False)
    niqe_fit: str = opt("", "folder of pristine images that NIQE_fit compares with", result=False)
    train: bool = opt(False, "also measure the train views, where they were rendered")
    frames: str = opt(
        "", "pseudo-HR frames to compare with the HR truth; default: hr/ of the model; none = no frames", result=False
    )
    no_frames: bool = opt(False, "do not measure pseudo-HR frames")
    jump_deg: float = opt(45.0, "frames beside a step of more degrees in sequences.json also get a mean of their own")
    single_frames: str = opt(
        "",
        "folder of the same views upsampled without neighbours: the frames' gain over them is measured",
        result=False,
    )
    hr_root: str = opt("", "folder with the high-resolution truth of the frames; default: as rendered", result=False)
    no_report: bool = opt(False, "do not write report/index.html", result=False)
    link: bool = opt(False, "keep the report's images beside it instead of inside it", result=False)
    tsv: bool = opt(False, "print the table tab-separated", result=False)

    def __post_init__(self) -> None:
        if len(set(self.model_paths)) < len(self.model_paths):
            raise UserError("--model_paths names a folder twice")
        if not 0 <= self.jump_deg <= 180:
            raise UserError(f"--jump_deg {self.jump_deg}: an angle from 0 to 180 degrees is expected")
        if self.no_frames and (self.frames or self.single_frames):
            raise UserError("--no_frames contradicts --frames and --single_frames; leave one away")
        of_flag = {"clip": EXTRA_METRICS[:2], "dists": ("DISTS",), "niqe_fit": ("NIQE_fit",)}
        for flag, metrics in of_flag.items():
            if getattr(self, flag) and not set(metrics) & set(self.extra_metrics):
                raise UserError(f"--{flag} has a meaning with --extra_metrics {' or '.join(metrics)} only")


@dataclass(frozen=True)
class TableParams:
    """What a table shows (python -m evaluation.tables OUT...)"""

    format: str = opt("markdown", "markdown, latex, csv or tsv", choices=("markdown", "latex", "csv", "tsv"))
    columns: tuple[str, ...] = opt(
        ("name", "scene", "PSNR", "SSIM", "LPIPS"),
        "name, any metric, any protocol field, jump_PSNR (frames beside jumps), jumps, mean_step_deg, worst_step_deg, "
        "step_px (mean geometric flow between consecutive views, LR px), "
        "splats, iteration, seed, seconds, peak_MB",
    )
    published: str = opt("", "published numbers below ours: blender, mip360, or one scene, blender:lego")
    split: str = opt("test", "test or train", choices=("test", "train"))
    iteration: int = opt(-1, "iteration of each model; -1 = the latest that was measured")
    mean: bool = opt(False, "add a row with the mean over all rows")
    output: str = opt("", "file to write; default: standard output", "-o", result=False)


@dataclass(frozen=True)
class FrameQualityParams:
    """On what frames are compared (python -m evaluation.frame_quality -s SCENE -m TASK; a task does)"""

    backgrounds: tuple[str, ...] = opt(("black",), "white, black", choices=("white", "black"))
    jump_deg: float = opt(45.0, "frames beside a step of more degrees also get a mean of their own")
    geometry: str = opt("", "folder of depths, for the flow between consecutive views")
