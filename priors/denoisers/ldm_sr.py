"""Latent diffusion for x4 super-resolution (Rombach et al., CVPR 2022): Apache-2.0, no text, no licence to click.

The noisy latent (VQ, 3 channels, 4 image px per latent) has the LR view's size, and the LR view is three more channels
of the network's input.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import conditioning, loading
from priors.denoisers.parts import multiple_of
from priors.interfaces import Cond, Process, Space
from priors.processes import from_scheduler
from utils.errors import UserError

MODEL = "CompVis/ldm-super-resolution-4x-openimages"
TILE_PX, OVERLAP_PX = 512, 64  # of the autoencoder: its codebook search takes 32 kB a latent


@dataclass(frozen=True, eq=False)
class LDMSR:
    """The prior. `Cond.lr` is needed; HR sides are 4 x its own.

    Parameters
    ----------
    unet : UNet2DModel of 2 C input channels. multiple : sides of its input must be multiples; others are extended.
    """

    unet: nn.Module
    space: Space
    process: Process
    prediction: conditioning.Prediction = "epsilon"
    multiple: int = 8

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Raises UserError where the LR view is missing or has not the latent's size."""
        lr = conditioning.view(cond, len(x_t), "LDM-SR")
        height, width = x_t.shape[-2:]
        if lr.shape[-2:] != x_t.shape[-2:]:
            raise UserError(
                f"LDM-SR: enlarges by {self.space.factor}; an LR view of {width}x{height} px is expected, "
                f"not {lr.shape[-1]}x{lr.shape[-2]}"
            )
        scaled = x_t * self.process.network_scale(t)
        seen = conditioning.extended(torch.cat([scaled, 2 * lr.to(x_t) - 1], dim=1), self.multiple)
        told = conditioning.times(self.process.network_time(t), x_t)
        seen = seen.to(next(self.unet.parameters()).dtype)
        output = self.unet(seen, told).sample[..., :height, :width].to(x_t.dtype)
        return conditioning.clean(x_t, output, self.process.coefficients(t), self.prediction)


def load_ldm_sr(
    model: str | Path = MODEL,
    *,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LDMSR:
    """The prior of a folder or hub id in the layout of LDMSuperResolutionPipeline.

    Parameters
    ----------
    dtype : of the network; the autoencoder stays float32.

    Raises
    ------
    UserError : something is missing, broken or of another family (see `loading.component`).
    """
    unet = loading.component(model, "UNet2DModel", "unet", download=download, dtype=dtype, device=device)
    vqvae = loading.component(model, "VQModel", "vqvae", download=download, device=device)
    config = loading.config(model, "scheduler", download=download)
    if unet.config.in_channels != 2 * vqvae.config.latent_channels:
        raise UserError(f"{model}: its network has {unet.config.in_channels} input channels; it is no LDM-SR model")
    prediction = conditioning.prediction_of(config, str(model))
    # The pipeline leaves out the autoencoder's scaling_factor: its latents are used as they come.
    space = loading.latent_space(vqvae, 1.0, 0.0, TILE_PX, OVERLAP_PX)
    return LDMSR(unet, space, from_scheduler(config), prediction, multiple_of(unet))
