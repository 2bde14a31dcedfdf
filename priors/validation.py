"""How good a small prior's images are: sampled with respaced times, scored on 8 bit against the truth.

PSNR and SSIM (11 x 11 Gaussian, per channel, where the window lies inside) as the SR3 code measures them, on values
rounded to 8 bit; `lr_error` = mean |A x - y| of the rounded image, in 1/255.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from priors.denoisers.tiny import TinyPrior
from priors.frame_data import Batch, Samples
from priors.hooks import Clamp, ProjectLR
from priors.interfaces import Cond
from priors.post import project
from priors.sampler import HookCall, sample
from priors.train_config import Validation
from scene.lr_kernel import LRKernel
from utils.errors import UserError
from utils.psnr import psnr
from utils.rng import generator
from utils.ssim import WINDOW_PX, ssim_map

ROUNDS = 3  # of clipping and projecting the bicubic baseline
EDGE = WINDOW_PX // 2
MAX_DB = 100.0
Images = Float[Tensor, "B 3 H W"]
Save = Callable[[Batch, Images], None]


@dataclass(frozen=True)
class Score:
    """Means over the samples of one kind of image.

    ssim is None for images smaller than its window, lr_error where no LR operator is known.
    """

    psnr: float
    ssim: float | None
    lr_error: float | None


def evaluate(
    prior: TinyPrior, data: Samples, count: int, options: Validation, seed: int, *, save: Save | None = None
) -> dict[str, Score]:
    """Score the first `count` samples.

    Parameters
    ----------
    options : see `train_form.DEFAULTS`. seed : of the noise; each batch and draw has its own.
    save : is given each batch and its first draw, 8-bit values.

    Returns
    -------
    Scores by name: bicubic, bicubic projected, sample; with draws > 1 also their mean, with `project` also the
    samples of a walk that is projected onto the LR views at each step.

    Raises
    ------
    UserError : `project` without a known LR operator.
    """
    rows: dict[str, list[tuple[float, float | None, float | None]]] = {}
    kernel = data.kernel
    if options.project and kernel is None:
        raise UserError("validation.project: no lr_kernel.json says how the LR frames were made; set it to false")
    count = min(count, len(data))
    device = next(prior.net.parameters()).device
    for first in range(0, count, options.batch_size):
        indices = list(range(first, min(first + options.batch_size, count)))
        batch = data.batch(indices).to(device)
        for name, images in _images(prior, batch, kernel, first, options, seed):
            rounded = _rounded(images)
            if name == "sample" and save:
                save(batch, rounded)
            rows.setdefault(name, []).extend(
                _score(image, hr, lr, kernel) for image, hr, lr in zip(rounded, batch.hr, _middle(batch), strict=True)
            )
    return {name: _mean(scores) for name, scores in rows.items()}


def _images(
    prior: TinyPrior, batch: Batch, kernel: LRKernel | None, first: int, options: Validation, seed: int
) -> Iterator[tuple[str, Images]]:
    yield "bicubic", batch.up
    walks: dict[str, list[HookCall]] = {"": [Clamp()]}
    if kernel is not None:
        yield "bicubic projected", project(batch.up, kernel, _middle(batch), rounds=ROUNDS)
        if options.project:
            walks[" projected"] = [Clamp(), ProjectLR(kernel)]
    for suffix, hooks in walks.items():
        draws = [
            _walk(prior, batch, hooks, options, generator(seed, "validation", first, k)) for k in range(options.draws)
        ]
        yield f"sample{suffix}", draws[0]
        if options.draws > 1:
            yield f"mean of {options.draws} samples{suffix}", torch.stack(draws).mean(0)


def _walk(
    prior: TinyPrior, batch: Batch, hooks: Sequence[HookCall], options: Validation, noise: torch.Generator
) -> Images:
    """One draw of each sample of the batch; a regressor needs one step, whatever it starts from."""
    process = prior.process
    steps = options.steps or round(process.last - process.clean)
    times = process.times(steps if prior.net.config.noisy else 1)
    shape = (len(batch.hr), 3, *batch.hr.shape[-2:])
    x = sample(prior, Cond(lr=batch.lr, up=batch.up), times, noise, hooks=hooks, eta=options.eta, shape=shape)
    return prior.space.decode(x)


def _middle(batch: Batch) -> Float[Tensor, "B 3 h w"]:
    return batch.lr[:, batch.lr.shape[1] // 2]


def _rounded(images: Images) -> Images:
    return (255 * images.clamp(0, 1)).round() / 255


def _score(
    image: Float[Tensor, "3 H W"],
    hr: Float[Tensor, "3 H W"],
    lr: Float[Tensor, "3 h w"],
    kernel: LRKernel | None,
) -> tuple[float, float | None, float | None]:
    # Equal images have an infinite PSNR, which neither a mean nor JSON can hold.
    fidelity = min(float(psnr(image.double(), hr.double())), MAX_DB)
    inside = ssim_map(image, hr)[:, EDGE:-EDGE, EDGE:-EDGE] if min(image.shape[1:]) >= WINDOW_PX else None
    error = None if kernel is None else 255 * float((kernel.down(image) - lr).abs().mean())
    return fidelity, None if inside is None else float(inside.mean()), error


def _mean(scores: Sequence[tuple[float, float | None, float | None]]) -> Score:
    fidelity, similarity, error = zip(*scores, strict=True)
    return Score(sum(fidelity) / len(scores), _mean_of(similarity), _mean_of(error))


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
