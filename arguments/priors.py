"""Settings of diffusion priors as upsamplers. A value that is left at "" or below 0 is the prior's own."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class PriorParams:
    """How a diffusion prior makes HR frames"""

    model: str = opt(
        "",
        "of --upsampler: small, ddnm: a file of python -m priors.train_sr, or a .pth of the public SR3 code; else a"
        " local folder in diffusers' layout or an id of the hub, maker/name or maker/name@revision; default: the"
        " published model",
    )
    prior_steps: int = opt(0, "steps of a walk from noise to an image; 0 = the prior's own number; addsr: always four")
    prior_eta: float = opt(-1.0, "fresh noise in each step, 0-1; -1 = the prior's own")
    prior_samples: int = opt(1, "walks a frame, whose mean it is")
    prior_noise: str = opt(
        "shared",
        "shared: all frames start from the same noise, so that neighbours get like details; own: each from its own",
        choices=("shared", "own"),
    )
    prior_tile: int = opt(
        0, "side of the tiles that networks see, frame px; 0 = as in training (small, ddnm, diffusehigh: none)"
    )
    project_lr: str = opt(
        "auto",
        "say what the LR view says: hard: in each step and at the end, exactly; soft: up to half a grey level, which"
        " 8-bit LR views leave open; off; auto = hard where it is known how the LR views were made",
        choices=("auto", "hard", "soft", "off"),
    )
    prompt: str = opt("", "text of a prior that takes one; seesr, addsr: what follows the tags")
    negative_prompt: str = opt("", "what is not wanted, where there is guidance")
    guidance_scale: float = opt(-1.0, "of classifier-free guidance, 1 = none")
    release: str = opt("", "which of a system's published files (python -m priors list), such as diffbir_v2.1")
    base: str = opt("", "folder or hub id of Stable Diffusion 2, on which some systems stand")
    accept_licence: bool = opt(False, "you obey a licence that allows no commercial use", result=False)
    tagger: str = opt("", "seesr, addsr: MODULE:NAME of a tagger of your own (priors/denoisers/seesr.py)")
    psr_weight: float = opt(0.5, "addsr: share of its own estimate in the image that leads its next step, 0-1")
    restoration: str = opt(
        "", "diffbir: single-image upsampler that makes its first stage; default: the enlarged LR view"
    )
    restoration_scale: float = opt(0.0, "diffbir: pull of each estimate towards the first stage; 0 = none")
    color_fix: str = opt(
        "auto",
        "stablesr, diffbir, seesr, addsr: colours of the LR view at the end: wavelet, adain, none; auto = wavelet where"
        " nothing is projected",
        choices=("auto", "wavelet", "adain", "none"),
    )
    texts: str = opt("", "file that keeps the embeddings of these texts: later runs need no text encoder", result=False)
    noise_level: float = opt(-1.0, "sd_x4: noise that is put onto the LR view, 0-350")
    ddnm_lambda: float = opt(0.8, "ddnm_sd3: what the prior adds to the LR view, 0-1")
    noising_steps: int = opt(15, "diffusehigh: of the walk's steps the last so many are taken at each size")
    dwt_steps: int = opt(5, "diffusehigh: steps in which the low band is the LR view's; 0 = none")
    dwt_level: int = opt(1, "diffusehigh: levels of the wavelet transform")
    dwt_wave: str = opt("db4", "diffusehigh: wavelet")
    dwt_mode: str = opt("symmetric", "diffusehigh: border of the transform: symmetric, periodization")
    sharpening_alpha: float = opt(1.0, "diffusehigh: strength of the sharpening; 0 = none", "--sharpness_factor")
    sharpening_kernel_size: int = opt(3, "diffusehigh: side of its Gaussian, px")
    sharpening_sigma: tuple[float, ...] = opt((0.1, 2.0), "diffusehigh: its deviation, px, or bounds to draw it from")

    def __post_init__(self) -> None:
        least = {"prior_steps": 0, "prior_samples": 1, "prior_tile": 0}
        for name, low in (least | {"noising_steps": 1, "dwt_steps": 0, "dwt_level": 1}).items():
            if getattr(self, name) < low:
                raise UserError(f"--{name} {getattr(self, name)}: {low} or more is expected")
        if not (self.prior_eta == -1 or 0 <= self.prior_eta <= 1):
            raise UserError(f"--prior_eta {self.prior_eta}: a number from 0 to 1, or -1, is expected")
        for name in ("ddnm_lambda", "sharpening_alpha", "restoration_scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name} {getattr(self, name)}: a number from 0 is expected")
        if not 0 <= self.psr_weight <= 1:
            raise UserError(f"--psr_weight {self.psr_weight}: a number from 0 to 1 is expected")
        if len(self.sharpening_sigma) not in (1, 2):
            raise UserError(f"--sharpening_sigma {self.sharpening_sigma}: a number, or two bounds, are expected")
        for name in ("guidance_scale", "noise_level"):
            if not (getattr(self, name) == -1 or 0 <= getattr(self, name) < float("inf")):
                raise UserError(f"--{name} {getattr(self, name)}: a number from 0, or -1, is expected")
