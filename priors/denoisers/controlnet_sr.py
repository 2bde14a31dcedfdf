"""DiffBIR (Lin et al., ECCV 2024): a restoration module removes degradations, a ControlNet adds details to its result.

IRControlNet is a trainable copy of the first half of Stable Diffusion 2.1 that sees the noisy latent and the latent of
the restored image, 8 channels together, and adds what it finds to the frozen network through convolutions that begin
at zero. Guidance towards the restored image is a hook (`hooks.RestorationGuidance`).

Release: v2 walks 50 steps from noise with guidance 4 against "low quality, blurry, low-resolution, noisy, unsharp,
weird textures". v2.1 stands on a model that returns v and knows pure noise. Names of tensors are those of the official
files; unverified until `python -m priors verify diffbir_v2` was run on a networked machine.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors import key_maps
from priors.checkpoints import SD2, read_tensors
from priors.denoisers import conditioning, sd2
from priors.denoisers.parts import load_parts, multiple_of
from priors.denoisers.text import Embeddings
from priors.extra import needed
from priors.interfaces import Cond, Process, Space
from utils.errors import UserError

NEGATIVE = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
IMAGE = "image"  # in Cond.extra: what the ControlNet sees, 0-1, of the size of the result
LATENT = "image_latent"


@runtime_checkable
class RestorationModule(Protocol):
    """Makes a clean, smooth image of a degraded one: SwinIR, BSRNet, or any upsampler of this project."""

    def __call__(self, lr: Float[Tensor, "B 3 h w"], width: int, height: int) -> Float[Tensor, "B 3 {height} {width}"]:
        """Images 0-1 of the size of the result."""
        ...


class NoHint(nn.Module):
    """In place of a ControlNet's image encoder: DiffBIR's image comes in with the latent."""

    def forward(self, image: Tensor) -> Tensor:
        return image.new_zeros(())


def ir_controlnet(unet: nn.Module, hint: int = 4) -> Any:
    """The ControlNet of a UNet: its first half copied, `hint` more input channels and all ways out at zero."""
    control = needed("diffusers").ControlNetModel.from_unet(unet)
    control.controlnet_cond_embedding = NoHint()
    control.conv_in = _widened(control.conv_in, hint)
    return control


def _widened(conv: nn.Conv2d, more: int) -> nn.Conv2d:
    """The convolution with further input channels, which weigh nothing."""
    wide = nn.Conv2d(conv.in_channels + more, conv.out_channels, 3, padding=1).to(conv.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : conv.in_channels] = conv.weight
        assert wide.bias is not None
        assert conv.bias is not None
        wide.bias.copy_(conv.bias)
    return wide


@dataclass(frozen=True, eq=False)
class DiffBIR:
    """The prior. The image that leads it is Cond.extra["image"], else the restored LR view, else Cond.up.

    Parameters
    ----------
    unet : UNet2DConditionModel. control : of `ir_controlnet`. strength : factor of what it adds.
    """

    unet: nn.Module
    control: nn.Module
    space: Space
    process: Process
    texts: Embeddings
    prediction: conditioning.Prediction = "epsilon"
    multiple: int = 8
    restore: RestorationModule | None = None
    strength: float = 1.0

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Raises UserError where there is no image to be led by."""
        latent = self.prepared(cond).extra[LATENT]
        height, width = x_t.shape[-2:]
        dtype = next(self.unet.parameters()).dtype
        told = conditioning.times(self.process.network_time(t), x_t)
        seen = conditioning.extended(x_t * self.process.network_scale(t), self.multiple).to(dtype)
        both = torch.cat([seen, conditioning.extended(conditioning.rows(latent, seen), self.multiple)], dim=1)

        def network(prompt: Tensor, pooled: Tensor | None) -> Tensor:
            states = conditioning.rows(prompt, seen)
            down, mid = self.control(both, told, states, both, self.strength, return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            output = self.unet(seen, told, encoder_hidden_states=states, **added)
            return output.sample[..., :height, :width].to(x_t.dtype)

        output = conditioning.guided(network, cond, self.texts.prompt, self.texts.negative)
        return conditioning.clean(x_t, output, self.process.coefficients(t), self.prediction)

    def prepared(self, cond: Cond) -> Cond:
        """With the restored image and its latent in `Cond.extra`, so that a walk makes them once."""
        if LATENT in cond.extra:
            return cond
        image = cond.extra.get(IMAGE)
        if image is None and self.restore is not None and cond.lr is not None and cond.up is not None:
            height, width = cond.up.shape[-2:]
            image = self.restore(cond.lr[:, cond.lr.shape[1] // 2], width, height)
        if image is None:
            image = cond.up
        if image is None:
            raise UserError('DiffBIR: is led by an image; give one (Cond.extra["image"], or Cond.up)')
        return replace(cond, extra={**cond.extra, IMAGE: image, LATENT: self.space.encode(image)})


def load_diffbir(
    checkpoint: str | Path,
    *,
    base: str | Path = SD2,
    negative: str = NEGATIVE,
    restore: RestorationModule | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> DiffBIR:
    """The prior of an official checkpoint of the second stage on Stable Diffusion 2.1.

    Parameters
    ----------
    checkpoint : file whose bytes were vouched for (`checkpoints.located`); it holds the ControlNet alone.
    options : prompt, texts, download; see `parts.load_parts`.

    Raises
    ------
    UserError : something is missing or does not fit.
    """
    options |= {"negative": negative, "device": device, "dtype": dtype}
    found = load_parts(base, "clip", "UNet2DConditionModel", **options)
    unet = found.network
    with torch.device("meta"):
        bare = type(unet).from_config(unet.config)
        control = ir_controlnet(bare, found.space.channels)
    wanted = control.state_dict()
    names = key_maps.ldm_unet(wanted, unet.config.layers_per_block)
    filled = key_maps.renamed(read_tensors(Path(checkpoint)), names, wanted, str(checkpoint))
    control.load_state_dict(filled, assign=True)
    placed = sd2.placed(control, device, dtype)
    told = (found.space, sd2.both_ends(found.process), found.texts, found.prediction)
    return DiffBIR(unet, placed, *told, multiple_of(unet), restore)
