"""Settings of `python -m scene.downscale`."""

from dataclasses import dataclass

from arguments.flags import opt
from arguments.loading import COMPAT
from utils.errors import UserError


@dataclass(frozen=True)
class DownscaleParams:
    """How an LR scene is made from an HR scene"""

    source_path: str = opt("", "HR scene: NeRF-synthetic, COLMAP or transforms.json; only read", "-s", result=False)
    output_path: str = opt("", "folder of the LR scene", "-o", result=False)
    scale: int = opt(4, "HR px per LR px; sides that it does not divide lose their last px, right and bottom")
    kernel: str = opt("bicubic", "bicubic (antialiased, a = -0.5) or area (box mean)", choices=("bicubic", "area"))
    border: str = opt(
        "renormalise",
        "beyond the edge: renormalise (Pillow, torch) or mirror (MATLAB's imresize)",
        choices=("renormalise", "mirror"),
    )
    images: str = opt("images", "image folder of a COLMAP scene", "-i")
    white_background: bool = opt(False, "with --compat: compose on white instead of black", "-w")
    compat: str = opt(
        "",
        "sequence_matters: as the paper's release: composed before filtering, truncated to 8 bit; COLMAP scenes: LR = "
        "round(full / (2 scale)), truth = scale x LR, written beside it",
        choices=COMPAT,
    )
    allow_missing: bool = opt(False, "skip images that a scene lists and the disk lacks")
    overwrite: bool = opt(False, "replace an LR scene that was made with other settings", result=False)
    quiet: bool = opt(False, "no progress, results and errors only", result=False)

    def __post_init__(self) -> None:
        if not self.source_path or not self.output_path:
            raise UserError("-s HR_SCENE and -o LR_FOLDER are needed")
        if self.scale < 1:
            raise UserError(f"--scale {self.scale}: 1 or more is expected")
        if self.compat and (self.kernel, self.border) != ("bicubic", "renormalise"):
            raise UserError(f"--compat {self.compat} knows one kernel; leave --kernel and --border away")
        if self.white_background and not self.compat:
            raise UserError("-w has a meaning with --compat only: otherwise alpha is kept and no background is needed")
