"""Stable Diffusion's x4 upscaler: a text-guided latent model that sees the LR view under noise of a chosen level.

The noisy latent (4 channels, 4 image px per latent) has the LR view's size; three more input channels hold the LR view
after some noise, whose level the network is told. More noise: more is invented. CreativeML OpenRAIL++-M.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import conditioning, loading
from priors.denoisers.parts import load_parts, multiple_of
from priors.denoisers.text import Embeddings
from priors.interfaces import Cond, Process, Space
from priors.processes import VP, from_scheduler
from priors.sampler import noised
from utils.errors import UserError

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
NOISE_LEVEL = 20  # of 350


@dataclass(frozen=True, eq=False)
class SDx4:
    """The prior. `Cond.lr` is needed; HR sides are 4 x its own.

    Parameters
    ----------
    unet : UNet2DConditionModel with one class a noise level. texts : used where Cond has no embeddings.
    lr_process : how the LR view was noised in training. Cond.noise_level is a time of it, 0 to `most`; the release
        uses 20.
    seed : of that noise: drawn anew from it in every call, so that all steps of a walk see the same LR view.
    """

    unet: nn.Module
    space: Space
    process: Process
    texts: Embeddings
    lr_process: Process
    prediction: conditioning.Prediction = "v_prediction"
    most: int = 350
    multiple: int = 8
    seed: int = 0

    NOISY: ClassVar[str] = "noisy_lr"  # in Cond.extra, where it is known already

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Raises UserError where the LR view is missing or of another size, or its noise too strong."""
        height, width = x_t.shape[-2:]
        seen = torch.cat([x_t * self.process.network_scale(t), self.noisy_view(x_t, cond)], dim=1)
        seen = conditioning.extended(seen, self.multiple).to(next(self.unet.parameters()).dtype)
        told = conditioning.times(self.process.network_time(t), x_t)
        level = torch.full((len(x_t),), int(cond.noise_level), device=x_t.device)

        def network(prompt: Tensor, pooled: Tensor | None) -> Tensor:
            output = self.unet(seen, told, encoder_hidden_states=conditioning.rows(prompt, seen), class_labels=level)
            return output.sample[..., :height, :width].to(x_t.dtype)

        output = conditioning.guided(network, cond, self.texts.prompt, self.texts.negative)
        return conditioning.clean(x_t, output, self.process.coefficients(t), self.prediction)

    def prepared(self, cond: Cond) -> Cond:
        """With the noise drawn for the whole view, so that overlapping tiles see the same."""
        if cond.lr is None or self.NOISY in cond.extra:
            return cond
        like = cond.lr[:, 0, :1]
        return replace(cond, extra={**cond.extra, self.NOISY: self.noisy_view(like, cond)})

    def check_level(self, level: float) -> None:
        """Raise UserError where the network was not trained with this much noise on the LR view."""
        if not 0 <= level <= self.most or level % 1:
            raise UserError(f"SD x4: noise_level {level:g}; a whole number from 0 to {self.most} is expected")

    def noisy_view(self, x_t: Float[Tensor, "B C h w"], cond: Cond) -> Float[Tensor, "B 3 h w"]:
        """The LR view in [-1, 1], noised to Cond.noise_level; equal for equal views and seeds."""
        if self.NOISY in cond.extra:
            return cond.extra[self.NOISY].to(x_t).expand(len(x_t), -1, -1, -1)
        lr = conditioning.view(cond, len(x_t), "SD x4")
        if lr.shape[-2:] != x_t.shape[-2:]:
            raise UserError(
                f"SD x4: enlarges by {self.space.factor}; an LR view of {x_t.shape[-1]}x{x_t.shape[-2]} px is "
                f"expected, not {lr.shape[-1]}x{lr.shape[-2]}"
            )
        self.check_level(cond.noise_level)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((1, *lr.shape[1:]), generator=generator).expand(lr.shape).to(x_t)
        return noised(self.lr_process, 2 * lr.to(x_t) - 1, cond.noise_level, noise)


def load_sd_x4(model: str | Path = MODEL, *, download: bool = False, **options: Any) -> SDx4:
    """The prior of a folder or hub id in the layout of StableDiffusionUpscalePipeline.

    Parameters
    ----------
    options : see `parts.load_parts`.

    Raises
    ------
    UserError : something is missing, broken or of another family.
    """
    found = load_parts(model, "clip", "UNet2DConditionModel", download=download, **options)
    lr_process = from_scheduler(loading.config(model, "low_res_scheduler", download=download))
    if not isinstance(lr_process, VP) or found.network.config.num_class_embeds is None:
        raise UserError(f"{model}: its network is told no noise level; it is no x4 upscaler")
    # Most noise that the network was trained with; model_index.json of the release has it, diffusers' default is 350.
    most = int(loading.config(model, "", "model_index.json", download=download).get("max_noise_level", 350))
    told = (found.space, found.process, found.texts, lr_process, found.prediction, most)
    return SDx4(found.network, *told, multiple_of(found.network))
