"""Settings of training's guidance by a diffusion prior (GaussianSR)."""

from dataclasses import dataclass

from arguments.flags import opt
from arguments.priors import PriorParams
from arguments.upsampling import PRIORS
from utils.errors import UserError


@dataclass(frozen=True)
class GuidanceParams:
    """Guidance by a diffusion prior"""

    sds: str = opt(
        "", f"prior whose score distillation pulls on renders beside the LR views' loss: {', '.join(PRIORS)}"
    )
    sds_model: str = opt("", "its folder, checkpoint or hub id; default: the prior's own")
    sds_release: str = opt("", "which of its published files, as --release of vsr_upsample.py")
    sds_base: str = opt("", "folder or hub id of Stable Diffusion 2, on which some priors stand")
    sds_prompt: str = opt("", "text that it is told; default: its own")
    sds_negative_prompt: str = opt("", "what is not wanted, where there is guidance by text; default: its own")
    sds_guidance: float = opt(-1.0, "scale of its classifier-free guidance, 1 = none; -1 = that of its walks")
    sds_tagger: str = opt("", "seesr, addsr: MODULE:NAME of a tagger of your own (priors/denoisers/seesr.py)")
    sds_texts: str = opt("", "file that keeps the embeddings of these texts", result=False)
    sds_download: bool = opt(False, "fetch its model from the hub", result=False)
    sds_accept_licence: bool = opt(False, "you obey a licence that allows no commercial use", result=False)
    sds_trust_weights: str = opt("", "SHA-256 of its files that have none published, with commas", result=False)
    sds_lambda: float = opt(0.1, "weight of its gradient, a mean over the elements that the prior sees")
    sds_every: int = opt(1, "iterations from one guided iteration to the next")
    sds_crop: int = opt(0, "side of the random part of a render that the prior sees, px; 0 = all of it")
    sds_anneal: int = opt(
        0, "iterations after which the lower bound of the drawn noise level falls by one of 1000; 0 = it is --sds_tmin"
    )
    sds_tmin: int = opt(20, "lowest level of noise that is drawn, of 1000")
    sds_tmax: int = opt(980, "highest level")
    sds_project: str = opt(
        "auto",
        "move the prior's clean estimate onto the LR view first, so that it cannot pull against it; auto = on for a"
        " prior in pixels unless the LR views were degraded",
        choices=("auto", "on", "off"),
        nargs="?",
        const="on",
    )

    @property
    def prior(self) -> PriorParams:
        """What the prior itself is asked for, in the names of --upsampler."""
        return PriorParams(
            model=self.sds_model,
            release=self.sds_release,
            base=self.sds_base,
            prompt=self.sds_prompt,
            negative_prompt=self.sds_negative_prompt,
            guidance_scale=self.sds_guidance,
            tagger=self.sds_tagger,
            texts=self.sds_texts,
            accept_licence=self.sds_accept_licence,
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
        if not (self.sds_guidance == -1 or 0 <= self.sds_guidance < float("inf")):
            raise UserError(f"--sds_guidance {self.sds_guidance}: a number from 0, or -1, is expected")
        if self.sds and self.sds not in PRIORS:
            raise UserError(f"--sds {self.sds}: unknown; there are {', '.join(PRIORS)}")
        defaults = type(self).__dataclass_fields__
        given = [name for name in defaults if name != "sds" and getattr(self, name) != defaults[name].default]
        if given and not self.sds:
            raise UserError(f"--{given[0]}: there is no guidance without --sds NAME")
