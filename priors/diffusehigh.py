"""DiffuseHigh: large images from a base generator that was trained on small ones, with no training (Kim et al. 2025).

An image is enlarged, sharpened, noised a little and denoised again; during the first steps the low band of the clean
estimate is that of the enlarged image, so that the structure stays and only detail is invented. Repeated over a list
of growing sizes. The first image is made by the base generator, or is given: as an upsampler, the LR view.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from priors import wavelets
from priors.ddnm import Fitted, InSpace
from priors.hooks import SwapLowBand
from priors.interfaces import Cond, ScorePrior
from priors.sampler import HookCall, sample
from scene.image_files import read_image, write_png
from utils.command_line import Parser
from utils.errors import UserError, run

NEGATIVE = "blurry, ugly, duplicate, poorly drawn, deformed, mosaic"


@dataclass(frozen=True)
class Settings:
    """Names and defaults of the release.

    Parameters
    ----------
    target_height, target_width : sizes to go through, px, equally many.
    num_inference_steps : of a whole walk. noising_steps : how many of its last ones each enlargement walks.
    guidance_scale : of the base image. diffusehigh_guidance_scale : of the enlargements.
    enable_dwt, dwt_steps, dwt_level, dwt_wave, dwt_mode : the low band, see `hooks.SwapLowBand`; 5 to 7 steps work.
    enable_sharpening, sharpening_kernel_size, sharpening_sigma, sharpening_alpha : see `sharpened`; sigma is drawn
        uniformly from (low, high).

    Raises
    ------
    UserError : a value that makes no walk.
    """

    target_height: tuple[int, ...] = (2048, 3072, 4096)
    target_width: tuple[int, ...] = (2048, 3072, 4096)
    num_inference_steps: int = 50
    noising_steps: int = 15
    guidance_scale: float = 5.0
    diffusehigh_guidance_scale: float = 10.0
    enable_dwt: bool = True
    dwt_steps: int = 5
    dwt_level: int = 1
    dwt_wave: str = "db4"
    dwt_mode: str = "symmetric"
    enable_sharpening: bool = True
    sharpening_kernel_size: int = 3
    sharpening_sigma: tuple[float, float] = (0.1, 2.0)
    sharpening_alpha: float = 1.0

    def __post_init__(self) -> None:
        if len(self.target_height) != len(self.target_width) or min((*self.target_height, *self.target_width, 1)) < 1:
            raise UserError(f"target sizes {self.target_width} x {self.target_height}: equally many, at least 1 px")
        if not 1 <= self.noising_steps <= self.num_inference_steps or self.dwt_steps < 0:
            raise UserError(
                f"noising_steps {self.noising_steps} of {self.num_inference_steps}, dwt_steps {self.dwt_steps}: 1 to "
                "all of them, and 0 or more, are expected"
            )
        low, high = self.sharpening_sigma
        if not 0 < low <= high or self.sharpening_kernel_size % 2 == 0 or self.sharpening_kernel_size < 1:
            raise UserError(
                f"sharpening_sigma {self.sharpening_sigma}, kernel {self.sharpening_kernel_size}: 0 < low <= high and "
                "an odd size are expected"
            )
        if self.enable_dwt:
            wavelets.check(self.dwt_wave, self.dwt_level, self.dwt_mode)


def settings(**values: Any) -> Settings:
    """Settings as the release takes them.

    Parameters
    ----------
    values : fields of Settings; sizes may be a number or a sequence, so may sharpening_sigma; `sharpness_factor` is
        another name of sharpening_alpha (its README's).

    Raises
    ------
    UserError : unknown names, both names of one value, or values that make no walk.
    """
    if "sharpness_factor" in values:
        if "sharpening_alpha" in values:
            raise UserError("sharpness_factor and sharpening_alpha are the same; give one")
        values["sharpening_alpha"] = values.pop("sharpness_factor")
    known = {field.name for field in fields(Settings)}
    if unknown := sorted(values.keys() - known):
        raise UserError(f"DiffuseHigh has no setting {unknown[0]}; it has {', '.join(sorted(known))}")
    for name in ("target_height", "target_width"):
        if name in values:
            value = values[name]
            values[name] = (value,) if isinstance(value, int) else tuple(value)
    sigma = values.get("sharpening_sigma", Settings.sharpening_sigma)
    ends = (sigma,) if isinstance(sigma, int | float) else tuple(sigma)
    if len(ends) not in (1, 2):
        raise UserError(f"sharpening_sigma {ends}: a number, or two bounds, are expected")
    values["sharpening_sigma"] = (ends[0], ends[-1])
    return Settings(**values)


def sharpened(image: Float[Tensor, "B 3 H W"], alpha: float, sigma: float, size: int = 3) -> Float[Tensor, "B 3 H W"]:
    """(1 + alpha) g - alpha blur(g), a Gaussian of `size` x `size` px, borders mirrored; not clamped."""
    at = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(at**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(image)
    half = size // 2
    kernel = (weights[:, None] * weights).expand(3, 1, size, size)
    blurred = conv2d(pad(image, (half, half, half, half), mode="reflect"), kernel, groups=3)
    return (1 + alpha) * image - alpha * blurred


def drawn_sigma(bounds: tuple[float, float], generator: torch.Generator) -> float:
    """Uniform between the bounds; one draw of the generator."""
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def guidance_image(
    image: Float[Tensor, "B 3 h w"], width: int, height: int, chosen: Settings, generator: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """The image enlarged (bicubic, a = -0.75 as torch has it) and, where chosen, sharpened."""
    large = interpolate(image, (height, width), mode="bicubic", align_corners=False)
    if not chosen.enable_sharpening:
        return large
    sigma = drawn_sigma(chosen.sharpening_sigma, generator)
    return sharpened(large, chosen.sharpening_alpha, sigma, chosen.sharpening_kernel_size)


def enlarged_to(
    prior: ScorePrior,
    cond: Cond,
    image: Float[Tensor, "B 3 h w"],
    generator: torch.Generator,
    chosen: Settings,
    *,
    hooks: Sequence[HookCall] = (),
) -> Float[Tensor, "B 3 H W"]:
    """The image through all target sizes, each made of the one before.

    Parameters
    ----------
    image : what to begin with, 0-1: the base generator's, or an LR view. cond : its guidance is replaced.
    hooks : further ones, after the low band, at every size: say `hooks.ProjectLR` of the last size alone.

    Returns
    -------
    Of the last target size, 0-1, clipped at every size as in the release.
    """
    cond = replace(cond, guidance=chosen.diffusehigh_guidance_scale)
    for height, width in zip(chosen.target_height, chosen.target_width, strict=True):
        guide = guidance_image(image, width, height, chosen, generator)
        swap = SwapLowBand(guide, chosen.dwt_wave, chosen.dwt_level, chosen.dwt_mode, chosen.dwt_steps)
        bands = (swap,) if chosen.enable_dwt else ()
        image = img2img(prior, cond, guide, generator, chosen, hooks=(*bands, *hooks)).clamp(0, 1)
    return image


def img2img(
    prior: ScorePrior,
    cond: Cond,
    image: Float[Tensor, "B 3 H W"],
    generator: torch.Generator,
    chosen: Settings,
    *,
    hooks: Sequence[HookCall] = (),
) -> Float[Tensor, "B 3 H W"]:
    """The image noised to where the last `noising_steps` of a walk begin, and denoised; not clamped."""
    height, width = image.shape[-2:]
    space = Fitted(prior.space, width, height, getattr(prior, "multiple", 1))
    seen = InSpace(prior, space)
    times = prior.process.times(chosen.num_inference_steps)[-chosen.noising_steps - 1 :]
    with torch.no_grad():
        begin = space.encode(image)
        return space.decode(sample(seen, cond, times, generator, begin=begin, hooks=hooks))


def text_to_image(
    prior: ScorePrior, cond: Cond, width: int, height: int, generator: torch.Generator, chosen: Settings, count: int = 1
) -> Float[Tensor, "B 3 H W"]:
    """The base generator's images of its own size, then `enlarged_to`; 0-1, clipped.

    Parameters
    ----------
    width, height : of the base image, multiples of the space's factor.
    """
    shape = (count, prior.space.channels, height // prior.space.factor, width // prior.space.factor)
    times = prior.process.times(chosen.num_inference_steps)
    z = sample(prior, replace(cond, guidance=chosen.guidance_scale), times, generator, shape=shape)
    with torch.no_grad():
        image = prior.space.decode(z).clamp(0, 1)
    return enlarged_to(prior, cond, image, generator, chosen)


def main(words: Sequence[str] | None = None) -> None:
    """One image from the command line."""
    parser = Parser(
        prog="python -m priors.diffusehigh", description="A large image of a text, by DiffuseHigh and SDXL."
    )
    parser.add_argument("--prompt", required=True, help="what is to be seen")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="PNG to write")
    parser.add_argument("--negative_prompt", default=NEGATIVE, help=f"what is not (default: {NEGATIVE})")
    parser.add_argument("--guidance_image", default="", help="begin with this image instead of the base generator's")
    parser.add_argument("--model", default="", help="local folder or hub id (default: SDXL base)")
    parser.add_argument("--texts", default=None, help="file that keeps the embeddings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--download", action="store_true", help="fetch the model from the hub")
    for field in fields(Settings):
        _add_setting(parser, field.name, field.default)
    parser.add_argument("--sharpness_factor", type=float, default=None, help="another name of --sharpening_alpha")
    args = vars(parser.parse_args(words))
    given = {k: args[k] for k in (*(f.name for f in fields(Settings)), "sharpness_factor") if args[k] is not None}
    image = _run(args, settings(**given))
    write_png(Path(args["output"]), (image[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())


def _add_setting(parser: Parser, name: str, default: Any) -> None:
    kind, options = type(default), dict[str, Any](default=None, help=f"(default: {default})")
    if kind is bool:
        parser.add_argument(f"--{name}", type=_truth, metavar="true|false", **options)
    elif kind is tuple:
        parser.add_argument(f"--{name}", type=type(default[0]), nargs="+", **options)
    else:
        parser.add_argument(f"--{name}", type=kind, **options)


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise ValueError(word)
    return word.lower() == "true"


def _run(args: dict[str, Any], chosen: Settings) -> Float[Tensor, "1 3 H W"]:
    from priors.denoisers import sdxl
    from utils.compute import choose_device, use_device

    device = choose_device(args["device"])
    use_device(device)
    begin = None
    if args["guidance_image"]:
        pixels = torch.from_numpy(read_image(args["guidance_image"])[..., :3].astype(np.float32) / 255)
        begin = pixels.permute(2, 0, 1)[None].to(device)
    prior = sdxl.load_sdxl(
        args["model"] or sdxl.MODEL,
        prompt=args["prompt"],
        negative=args["negative_prompt"],
        texts=args["texts"],
        download=args["download"],
        device=device,
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
    )
    generator = torch.Generator().manual_seed(args["seed"])
    # An empty LR view tells the walk which device it is on.
    here = Cond(lr=torch.zeros(1, 1, 3, 1, 1, device=device))
    if begin is None:
        return text_to_image(prior, here, prior.side, prior.side, generator, chosen)
    return enlarged_to(prior, here, begin, generator, chosen)


if __name__ == "__main__":
    run(main)
