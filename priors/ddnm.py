"""Denoising diffusion null-space models: what the LR view says is put into every clean estimate.

Letters: A the LR kernel, A^+ its pseudo-inverse, y the LR view, so that x0 + A^+ (y - A x0) says what y says.

In pixels (Wang, Yu, Zhang, ICLR 2023) that is exact at every step. In the latents of an autoencoder it is guidance,
since decoding and encoding do not undo each other; then the finished image is projected once more, always.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from priors import post, spaces
from priors.denoisers.tiles import Tiled
from priors.hooks import ProjectLR, ProjectLRLatent, lr_view
from priors.interfaces import Cond, Process, ScorePrior, Space, StepContext
from priors.sampler import noised, sample, standard_noise
from scene.image_files import read_image, write_png
from scene.lr_kernel import LRKernel
from utils.command_line import Parser
from utils.errors import UserError, run
from utils.log import Progress


@dataclass(frozen=True)
class Settings:
    """Of a walk in pixels; the defaults are those of the release.

    Parameters
    ----------
    steps : of the walk. eta : stochasticity, 0-1; the release takes 0.85.
    noise : standard deviation of noise in y, images 0-1; above 0 the walk is that of DDNM+ and nothing is projected
        at the end.
    travel_length, travel_repeats : every so many steps the walk goes back as far and repeats them, so often in all;
        1, 1 = never (time travel; helps where y says little).
    """

    steps: int = 100
    eta: float = 0.85
    noise: float = 0.0
    travel_length: int = 1
    travel_repeats: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or self.noise < 0 or min(self.steps, self.travel_length, self.travel_repeats) < 1:
            raise UserError(f"{self}: 0 <= eta <= 1, noise >= 0, and counts of at least 1 are expected")


def ddnm(
    prior: ScorePrior,
    cond: Cond,
    kernel: LRKernel,
    generator: torch.Generator,
    settings: Settings = Settings(),
    *,
    lr: Float[Tensor, "B 3 h w"] | None = None,
    tolerance: float = 0.0,
    mask: Tensor | None = None,
) -> Float[Tensor, "B 3 H W"]:
    """Images that say what the LR views say, made in a space whose decoding and encoding undo each other (pixels).

    Parameters
    ----------
    kernel : A, of the size of the images. lr : y, 0-1; None = the middle frame of cond.lr.
    tolerance, mask : see `LRKernel.project_soft`.

    Returns
    -------
    0-1, clipped; A x = y as far as clipping lets it, where settings.noise = 0.
    """
    y = lr_view(lr, cond)
    width, height = kernel.hr_size
    like = y.new_zeros(len(y), prior.space.channels, height // prior.space.factor, width // prior.space.factor)
    hook, process = ProjectLR(kernel, y, tolerance, 1, mask), prior.process
    times = process.times(settings.steps)
    with torch.no_grad():
        x = noised(process, like, times[0], generator)
        for index, back in visits(settings.steps, settings.travel_length, settings.travel_repeats):
            t, t_next = times[index], times[index + 1]
            context = StepContext(prior, cond, index, settings.steps, t, t_next)
            estimate = prior.x0(x, t, cond)
            coming = _coming(process, t, t_next, settings)
            x0 = estimate + coming.weight * (hook(estimate, context) - estimate)
            if back is not None:
                x = noised(process, x0, times[back], generator)
                continue
            now, then = process.coefficients(t), process.coefficients(t_next)
            x = then.a * x0 + coming.kept * (x - now.a * x0) / now.s
            if coming.fresh:
                x = x + coming.fresh * standard_noise(x, generator)
        image = prior.space.decode(x)
        return image.clamp(0, 1) if settings.noise else post.project(image, kernel, y, tolerance, mask=mask)


def visits(steps: int, length: int, repeats: int) -> list[tuple[int, int | None]]:
    """(step, None to go on or the step to go back to) of a walk with time travel.

    Every `length` steps are walked `repeats` times; before a repetition the clean estimate is noised back to where they
    began.
    """
    walk: list[tuple[int, int | None]] = []
    for first in range(0, steps, length):
        last = min(first + length, steps) - 1
        for again in reversed(range(repeats)):
            walk += [(index, first if again and index == last else None) for index in range(first, last + 1)]
    return walk


@dataclass(frozen=True)
class Coming:
    """How the next x is put together: x' = a' x0 + kept eps + fresh xi, x0 moved by `weight` of its projection."""

    weight: float
    kept: float
    fresh: float


def _coming(process: Process, t: float, t_next: float, settings: Settings) -> Coming:
    now, then = process.coefficients(t), process.coefficients(t_next)
    r = process.ratio(t, t_next)
    sigma = settings.eta * then.s / now.s * math.sqrt(max(now.s**2 - (r * then.s) ** 2, 0.0))
    kept = math.sqrt(max(then.s**2 - sigma**2, 0.0))
    # x0 enters x' directly and through eps = (x - a x0) / s; noise of y, doubled in [-1, 1], comes along.
    weight, variance = plus(sigma, then.a - kept * now.a / now.s, 2 * settings.noise)
    return Coming(weight, kept, math.sqrt(variance))


def plus(sigma: float, share: float, noise: float) -> tuple[float, float]:
    """Weight of the projection and variance of the noise still to add (DDNM+, equations 17-19 of the paper).

    With both, noise of y (standard deviation `noise`, of which `share` reaches the next x) and fresh noise together
    have the variance sigma^2 that the process wants; where y alone brings more, it is damped.

    Returns
    -------
    (1, sigma^2 - (share noise)^2), or (sigma / (share noise), 0).
    """
    brought = abs(share) * noise
    if sigma >= brought:
        return 1.0, sigma**2 - brought**2
    return sigma / brought, 0.0


@dataclass(frozen=True)
class Fitted:
    """A space for images of any size: they are extended to whole latents when encoded, and cut when decoded.

    Parameters
    ----------
    space : the autoencoder's. width, height : of the images. multiple : of latents that the network wants.
    """

    space: Space
    width: int
    height: int
    multiple: int = 1

    @property
    def channels(self) -> int:
        return self.space.channels

    @property
    def factor(self) -> int:
        return self.space.factor

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        step = self.factor * self.multiple
        return -(-self.height // step) * self.multiple, -(-self.width // step) * self.multiple

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return self.space.encode(spaces.padded(image, self.factor * self.multiple))

    def decode(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        return self.space.decode(z)[..., : self.height, : self.width]


@dataclass(frozen=True, eq=False)
class InSpace:
    """A prior seen in another space of the same coordinates."""

    prior: ScorePrior
    space: Space

    @property
    def process(self) -> Process:
        return self.prior.process

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        return self.prior.x0(x_t, t, cond)


def ddnm_flow(
    prior: ScorePrior,
    cond: Cond,
    kernel: LRKernel,
    generator: torch.Generator,
    *,
    steps: int = 8,
    strength: float = 0.8,
    lr: Float[Tensor, "B 3 h w"] | None = None,
    tile: int = 0,
    overlap: int | None = None,
    tick: Callable[[int], None] | None = None,
    tolerance: float = 0.0,
    mask: Tensor | None = None,
) -> Float[Tensor, "B 3 H W"]:
    """Images by a latent prior (Stable Diffusion 3) whose walk is led by the LR views; the end is projected in pixels.

    Parameters
    ----------
    kernel : A, of the size of the images, any size. lr : y, 0-1; None = the middle frame of cond.lr.
    strength : of what the prior adds: 0 = A^+ y alone, 0.7-0.9 with 1-8 steps; above 1 noisy.
    tile, overlap : see `tiles.Tiled`, in latents; 0 = the whole image at once. None = an eighth of a tile.
    tick : called with the number of steps that are done. tolerance, mask : see `LRKernel.project_soft`.

    Returns
    -------
    0-1, clipped; A x = y as far as clipping lets it.
    """
    y = lr_view(lr, cond)
    z, space = flow_latent(prior, cond, kernel, generator, y, steps, strength, tile, overlap, tick, mask)
    with torch.no_grad():
        return post.project(space.decode(z), kernel, y, tolerance, mask=mask)


def flow_latent(
    prior: ScorePrior,
    cond: Cond,
    kernel: LRKernel,
    generator: torch.Generator,
    y: Float[Tensor, "B 3 h w"],
    steps: int,
    strength: float,
    tile: int = 0,
    overlap: int | None = None,
    tick: Callable[[int], None] | None = None,
    mask: Tensor | None = None,
) -> tuple[Float[Tensor, "B C k l"], Space]:
    """The end of the walk of `ddnm_flow`, and the space that decodes it."""
    width, height = kernel.hr_size
    fitted = Fitted(prior.space, width, height, getattr(prior, "multiple", 1))
    looked = cast(ScorePrior, Tiled(prior, tile, tile // 8 if overlap is None else overlap)) if tile else prior
    space = cast(Space, fitted)
    with torch.no_grad():  # with a mask it depends on the estimate
        start = space.encode(kernel.pinv(y)) if mask is None else None
    hook = ProjectLRLatent(kernel, y, strength, start, mask)

    def counted(x0: Tensor, context: StepContext) -> Tensor:
        if tick:
            tick(context.index + 1)
        return x0

    seen = cast(ScorePrior, InSpace(looked, space))
    shape = (len(y), space.channels, *fitted.latent_size)
    z = sample(
        seen, replace(cond, lr=None, up=None), prior.process.times(steps), generator, hooks=(hook, counted), shape=shape
    )
    return z, space


def main(words: Sequence[str] | None = None) -> None:
    """One image from the command line, with the names of the public code for latent DDNM."""
    parser = Parser(
        prog="python -m priors.ddnm", description="Enlarge an image by latent DDNM with Stable Diffusion 3."
    )
    parser.add_argument("--lr_img_path", required=True, help="LR image")
    parser.add_argument("--num_inference_steps", type=int, default=8, help="steps (default: 8)")
    parser.add_argument("--guidance_strength", type=float, default=0.8, help="what the prior adds (default: 0.8)")
    parser.add_argument("--scale", type=int, default=4, help="enlargement (default: 4)")
    parser.add_argument("--savepath", default="result.png", help="PNG to write (default: result.png)")
    parser.add_argument("--model_id", "--model", default="", help="local folder or hub id (default: SD 3.5 medium)")
    parser.add_argument("--texts", default=None, help="file that keeps the embeddings of the empty prompt")
    parser.add_argument("--lr_kernel", default="bicubic", help="how the LR image was made: bicubic, area")
    parser.add_argument("--tile", type=int, default=0, help="side of tiles, latents of 8 px; 0 = as in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--download", action="store_true", help="fetch the model; the token is that of the hub's login")
    args = parser.parse_args(words)
    from priors.denoisers import sd3
    from utils.compute import choose_device, use_device

    pixels = torch.from_numpy(read_image(args.lr_img_path)[..., :3].astype(np.float32) / 255).permute(2, 0, 1)[None]
    if not 1 <= args.scale <= 16:
        raise UserError(f"--scale {args.scale}: 1 to 16")
    size = (pixels.shape[-1], pixels.shape[-2])
    kernel = LRKernel(args.lr_kernel, "renormalise", (size[0] * args.scale, size[1] * args.scale), size)
    device = choose_device(args.device)
    use_device(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    options = {"texts": args.texts, "download": args.download, "device": device, "dtype": dtype}
    prior = sd3.load_sd3(args.model_id or sd3.MODEL, **options)
    progress = Progress("ddnm", args.num_inference_steps, "step")
    image = ddnm_flow(
        cast(ScorePrior, prior),
        Cond(lr=pixels[:, None].to(device)),
        kernel,
        torch.Generator().manual_seed(args.seed),
        steps=args.num_inference_steps,
        strength=args.guidance_strength,
        tile=args.tile or prior.side // prior.space.factor,
        tick=progress.update,
    )
    progress.close()
    write_png(Path(args.savepath), (image[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())


if __name__ == "__main__":
    run(main)
