"""Settings of `python -m scene.downscale`, beside those of every LR scene."""

from dataclasses import dataclass

from arguments.flags import opt
from arguments.loading import COMPAT
from utils.errors import UserError


@dataclass(frozen=True)
class DownscaleParams:
    """How its views are made small"""

    kernel: str = opt("bicubic", "bicubic (antialiased, a = -0.5) or area (box mean)", choices=("bicubic", "area"))
    border: str = opt(
        "renormalise",
        "beyond the edge: renormalise (Pillow, torch) or mirror (MATLAB's imresize)",
        choices=("renormalise", "mirror"),
    )
    white_background: bool = opt(False, "with --compat: compose on white instead of black", "-w")
    compat: str = opt(
        "",
        "sequence_matters: as the paper's release: composed before filtering, truncated to 8 bit; COLMAP scenes: LR = "
        "round(full / (2 scale)), truth = scale x LR, written beside it",
        choices=COMPAT,
    )

    def __post_init__(self) -> None:
        if self.compat and (self.kernel, self.border) != ("bicubic", "renormalise"):
            raise UserError(f"--compat {self.compat} knows one kernel; leave --kernel and --border away")
        if self.white_background and not self.compat:
            raise UserError("-w has a meaning with --compat only: otherwise alpha is kept and no background is needed")
