"""Settings of `python -m scene.degrade`, beside those of every LR scene."""

from dataclasses import dataclass, fields

from arguments.flags import opt
from utils.errors import UserError

KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso", "sinc")
MODES = ("area", "bilinear", "bicubic")
CLASSICAL = ("blur", "blur_px", "sigma", "rotation_deg", "beta", "cutoff", "resize", "noise", "poisson", "grey_noise")


@dataclass(frozen=True)
class DegradeParams:
    """How its views become as cameras and the web make them"""

    preset: str = opt(
        "realesrgan",
        "realesrgan, mild (two rounds of blur, resize, noise and JPEG with drawn values), or classical (one round, as "
        "the flags from --blur on say)",
        choices=("realesrgan", "mild", "classical"),
    )
    per: str = opt(
        "scene",
        "values are drawn once for the scene (one camera) or for each view (photographs of many); noise is drawn anew "
        "in each view",
        choices=("scene", "view"),
    )
    seed: int = opt(0, "seed of every drawn value and of the noise")
    blur: str = opt("iso", "classical: kernel, none for no blur", choices=("none", *KINDS))
    blur_px: int = opt(21, "classical: side of the kernel, odd [px]")
    sigma: tuple[float, ...] = opt((1.6,), "classical: of the kernel along x and y, or one for both [HR px]")
    rotation_deg: float = opt(0.0, "classical: rotation of the kernel")
    beta: float = opt(1.0, "classical: exponent of the generalised and plateau kernels")
    cutoff: float = opt(1.0, "classical: of the sinc kernel, as a part of the highest frequency (0-1)")
    resize: str = opt(
        "bicubic",
        "classical: area, bilinear or bicubic (not antialiased), or antialiased (bicubic)",
        choices=(*MODES, "antialiased"),
    )
    noise: float = opt(0.0, "classical: standard deviation of Gaussian noise [levels of 255]")
    poisson: float = opt(0.0, "classical: scale of Poisson noise; 1 = that of the photons")
    grey_noise: bool = opt(False, "classical: the same noise in all three channels")
    jpeg: int = opt(0, "classical: quality of a JPEG, 1-100; 0 = none")

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: 0 or more is expected")
        own = [f.name for f in fields(self) if f.name in (*CLASSICAL, "jpeg") and getattr(self, f.name) != f.default]
        if self.preset != "classical" and own:
            raise UserError(f"--{own[0]} belongs to --preset classical; {self.preset} draws its values")
        if len(self.sigma) not in (1, 2) or not min(self.sigma) > 0:
            raise UserError(f"--sigma {' '.join(map(str, self.sigma))}: one or two numbers above 0 are expected")
        if not (0 < self.cutoff <= 1 and self.beta > 0 and self.noise >= 0 and self.poisson >= 0):
            raise UserError("--cutoff from 0 to 1, --beta above 0, --noise and --poisson 0 or more are expected")
        if not 0 <= self.jpeg <= 100:
            raise UserError(f"--jpeg {self.jpeg}: 1 to 100, or 0 for none is expected")
