"""ResShift (Yue et al., NeurIPS 2023, TPAMI 2024): a chain from the enlarged LR view's latent to the HR one, 4 or 15
steps, in the latents of the same autoencoder as LDM-SR. NTU S-Lab 1.0: no commercial use.

The network (`swin_unet`) sees the LR view itself, which has the latent's size, and returns the clean latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors import key_maps
from priors.checkpoints import load_into, read_tensors
from priors.denoisers import conditioning, loading, sd2
from priors.denoisers.swin_unet import SwinShape, SwinUNet
from priors.extra import needed
from priors.interfaces import Cond, Process, Space
from priors.processes import ResShift
from utils.errors import UserError

KAPPA, POWER = 2.0, 0.3
LEAST_NOISE = {15: 0.04, 4: 0.2}  # by steps
TILE_PX, OVERLAP_PX = 512, 64
VQ_F4: dict[str, Any] = {  # autoencoder_vq_f4.pth
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


@dataclass(frozen=True, eq=False)
class ResShiftSR:
    """The prior. `Cond.lr` is needed, and `Cond.up` by the process; HR sides are 4 x the LR view's."""

    network: nn.Module
    space: Space
    process: Process
    multiple: int = 64

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Raises UserError where the LR view is missing or has not the latent's size."""
        lr, (height, width) = conditioning.view(cond, len(x_t), "ResShift"), x_t.shape[-2:]
        if lr.shape[-2:] != x_t.shape[-2:]:
            raise UserError(
                f"ResShift: enlarges by {self.space.factor}; an LR view of {width}x{height} px is expected, not "
                f"{lr.shape[-1]}x{lr.shape[-2]}"
            )
        dtype = next(self.network.parameters()).dtype
        seen, shown = (
            conditioning.extended(part, self.multiple).to(dtype)
            for part in (x_t * self.process.network_scale(t), 2 * lr.to(x_t) - 1)
        )
        output = self.network(seen, conditioning.times(self.process.network_time(t), x_t), shown)
        return output[..., :height, :width].to(x_t.dtype)


def load_resshift(
    checkpoint: str | Path,
    autoencoder: str | Path,
    steps: int = 15,
    *,
    shape: SwinShape | None = None,
    vq: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ResShiftSR:
    """The prior of official files.

    Parameters
    ----------
    checkpoint, autoencoder : files whose bytes were vouched for (`checkpoints.located`). steps : 15 or 4, as trained.
    shape, vq : sizes other than the release's.

    Raises
    ------
    UserError : files missing or not fitting, or other steps.
    """
    if steps not in LEAST_NOISE:
        raise UserError(f"ResShift: {steps} steps; models of {' and '.join(map(str, LEAST_NOISE))} are published")
    with torch.device("meta"), loading.quiet():
        network = SwinUNet(shape or SwinShape())
        vae = needed("diffusers").VQModel(**(vq or VQ_F4))
    load_into(network, read_tensors(Path(checkpoint)), str(checkpoint))
    wanted = vae.state_dict()
    names = key_maps.ldm_vae(wanted, len(vae.config.block_out_channels))
    vae.load_state_dict(key_maps.renamed(read_tensors(Path(autoencoder)), names, wanted, str(autoencoder)), assign=True)
    space = loading.latent_space(sd2.placed(vae, device, torch.float32), 1.0, 0.0, TILE_PX, OVERLAP_PX)
    process = ResShift(steps, KAPPA, POWER, LEAST_NOISE[steps])
    return ResShiftSR(sd2.placed(network, device, dtype), space, process, network.shape.multiple)
