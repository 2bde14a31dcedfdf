"""Settings of training's guidance by a diffusion prior (GaussianSR)."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class GuidanceParams:
    """Guidance by a diffusion prior"""

    sds: str = opt(
        "", "prior whose score distillation pulls on renders beside the LR views' loss: NAME of `python -m priors list`"
    )
    sds_model: str = opt("", "its folder, checkpoint or hub id; default: the prior's own")
    sds_lambda: float = opt(0.1, "weight of its gradient, a mean over the elements that the prior sees")
    sds_every: int = opt(1, "iterations from one guided iteration to the next")
    sds_crop: int = opt(0, "side of the random part of a render that the prior sees, px; 0 = all of it")
    sds_anneal: int = opt(
        0, "iterations after which the lower bound of the drawn noise level falls by one of 1000; 0 = it is --sds_tmin"
    )
    sds_tmin: int = opt(20, "lowest level of noise that is drawn, of 1000")
    sds_tmax: int = opt(980, "highest level")
    sds_project: bool = opt(
        False, "move the prior's clean estimate onto the LR view first, so that it cannot pull against it"
    )

    def __post_init__(self) -> None:
        for name, low in (("sds_every", 1), ("sds_crop", 0), ("sds_anneal", 0)):
            if not getattr(self, name) >= low:
                raise UserError(f"--{name} {getattr(self, name)}: {low} or more is expected")
        if not self.sds_lambda >= 0:
            raise UserError(f"--sds_lambda {self.sds_lambda}: 0 or more is expected")
        if not 0 <= self.sds_tmin < self.sds_tmax < 1000:
            raise UserError(
                f"--sds_tmin {self.sds_tmin} --sds_tmax {self.sds_tmax}: 0 <= tmin < tmax < 1000 is expected"
            )
        defaults = type(self).__dataclass_fields__
        given = [name for name in defaults if name != "sds" and getattr(self, name) != defaults[name].default]
        if given and not self.sds:
            raise UserError(f"--{given[0]}: there is no guidance without --sds NAME")
