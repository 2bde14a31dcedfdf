"""Settings of python -m upsampling.renew."""

from dataclasses import dataclass

from arguments.flags import opt
from arguments.upsampling import PRIORS
from utils.errors import UserError


@dataclass(frozen=True)
class RenewParams:
    """What is renewed"""

    renders: str = opt("", "folder of a model's own frames NAME.png (render.py --hr_frames)", result=False)
    output_path: str = opt("", "folder that gets the renewed frames NAME.png", "-o", result=False)
    upsampler: str = opt("small", "diffusion prior", choices=PRIORS)
    level: float = opt(0.3, "how far each render is noised, 0-1 of the whole walk")
    scale: int = opt(4, "HR size over LR size")
    download: bool = opt(False, "fetch missing models", result=False)
    trust_weights: str = opt("", "SHA-256 of a weight file whose source publishes none", result=False)

    def __post_init__(self) -> None:
        if not self.renders or not self.output_path:
            raise UserError("--renders DIR and -o DIR are needed: a model's frames in, renewed ones out")
        if not 0 < self.level <= 1:
            raise UserError(f"--level {self.level}: more than 0, up to 1, is expected")
        if self.scale < 1:
            raise UserError(f"--scale {self.scale}: a whole number from 1 is expected")
