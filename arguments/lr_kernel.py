"""Who needs to know how the LR views were made, as far as settings say it, and what is said where nothing tells.

The operator itself is in scene.lr_kernel. An LR scene names it in KERNEL_FILE, or says in DEGRADATION_FILE that there
is none.
"""

from pathlib import Path

from arguments.training import OptimizationParams, TrainingParams
from arguments.upsampling import PRIORS, PROJECTING
from utils.errors import UserError

KERNELS = ("bicubic", "area")
KERNEL_FILE = "lr_kernel.json"
DEGRADATION_FILE = "degradation.json"


def check_flag(flag: str) -> None:
    """Raise UserError where --lr_kernel names neither a kernel nor a file; "" = not given."""
    if flag and flag not in KERNELS and not Path(flag).is_file():
        raise UserError(f"--lr_kernel {flag}: bicubic, area, or an existing JSON file is expected")


def kernel_files(flag: str) -> dict[str, list[Path]]:
    """The file that --lr_kernel names, as a group of a step's inputs; no group where it names none."""
    return {} if flag in ("", *KERNELS) else {"lr_kernel": [Path(flag)]}


def unknown(degraded: bool) -> str:
    """Why there is no operator from frames to LR views."""
    if degraded:
        return f"the LR views were degraded ({DEGRADATION_FILE}: blur, noise, JPEG), no linear operator made them"
    return "no LR kernel is known; say with --lr_kernel how the LR views were made: bicubic, area or a JSON file"


def projecting(project: bool, upsampler: str, project_lr: str) -> str:
    """The flag by which frames must be projected onto their LR views; "" where none asks for it."""
    if project:
        return "--project"
    if upsampler in PRIORS and project_lr in ("hard", "soft"):
        return f"--project_lr {project_lr}"
    return f"--upsampler {upsampler}, which works by projection" if upsampler in PROJECTING else ""


def refuse_unknown(asked: str, kernel: tuple[str, str] | None, degraded: bool) -> None:
    """Raise UserError where a flag, `asked` ("" = none), needs the operator of the LR views and there is none."""
    if asked and kernel is None:
        raise UserError(f"{asked}: {unknown(degraded)}" + ("; leave it out" if degraded else ""))


def compares(optimisation: OptimizationParams, training: TrainingParams, frames: bool) -> bool:
    """Whether training compares renders with LR views through the operator that made these.

    Parameters
    ----------
    frames : whether there are pseudo-HR frames, or will be.
    """
    larger = frames or training.scale > 1
    return larger and not optimisation.subpixel and (optimisation.uses_lr or training.choose_lambda)


def unsaid(root: Path) -> UserError:
    """The error of training where neither --lr_kernel nor the scene in `root` says how its LR views were made."""
    if (root / DEGRADATION_FILE).is_file():
        return UserError(
            f"{root}: {unknown(degraded=True)}; for the LR loss of training --lr_kernel bicubic is an approximation, "
            "--lambda_tex 1 --lambda_tex_final -1 leave it out"
        )
    return UserError(
        f"{root}: no {KERNEL_FILE} says how its LR views were made; give --lr_kernel bicubic, area or a JSON file"
    )
