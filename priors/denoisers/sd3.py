"""Stable Diffusion 3 and 3.5 (Esser et al., ICML 2024): transformers for straight paths, here the prior of latent DDNM.

Gated: its licence (Stability Community, free below one million dollars of revenue) is accepted on its page, then the
hub wants a token, from HF_TOKEN or a cached login. 16 latent channels, 8 image px per latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import conditioning, loading
from priors.denoisers.text import Embeddings, embeddings
from priors.interfaces import Cond, Process, Space
from priors.processes import Flow, from_scheduler, x0_from_flow
from utils.errors import UserError

MODEL = "stabilityai/stable-diffusion-3.5-medium"
TILE_PX, OVERLAP_PX = 768, 96


@dataclass(frozen=True, eq=False)
class SD3:
    """The prior.

    Parameters
    ----------
    transformer : SD3Transformer2DModel. texts : used where Cond has none.
    multiple : side of a patch in latents; sides of its input must be multiples.
    side : of the largest square in training, px; larger images go in tiles (`tiles.Tiled`).
    """

    transformer: nn.Module
    space: Space
    process: Process
    texts: Embeddings
    multiple: int = 2
    side: int = 1024

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior."""
        height, width = x_t.shape[-2:]
        seen = conditioning.extended(x_t, self.multiple).to(next(self.transformer.parameters()).dtype)
        told = conditioning.times(self.process.network_time(t), x_t)

        def network(prompt: Tensor, pooled: Tensor | None) -> Tensor:
            assert pooled is not None
            output = self.transformer(
                hidden_states=seen,
                timestep=told,
                encoder_hidden_states=conditioning.rows(prompt, seen),
                pooled_projections=conditioning.rows(pooled, seen),
            )
            return output.sample[..., :height, :width].to(x_t.dtype)

        texts = self.texts
        output = conditioning.guided(network, cond, texts.prompt, texts.negative, texts.pooled, texts.negative_pooled)
        return x0_from_flow(x_t, output, t)


def load_sd3(
    model: str | Path = MODEL,
    *,
    prompt: str = "",
    negative: str = "",
    texts: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SD3:
    """The prior of a folder or hub id in the layout of StableDiffusion3Pipeline.

    Parameters
    ----------
    prompt, negative : embedded once, then the text encoders are let go. texts : file that keeps the embeddings (a few
        MB, where the encoders take 11 GB).
    dtype : of the transformer; the autoencoder stays float32, else latent DDNM misses the LR view.

    Raises
    ------
    UserError : something is missing, gated, broken or of another family.
    """
    options: dict[str, Any] = {"download": download, "device": device}
    transformer = loading.component(model, "SD3Transformer2DModel", "transformer", dtype=dtype, **options)
    vae = loading.component(model, "AutoencoderKL", "vae", **options)
    process = from_scheduler(loading.config(model, "scheduler", download=download))
    if not isinstance(process, Flow):
        raise UserError(f"{model}: its scheduler is of no straight path; it is no Stable Diffusion 3 model")
    found = embeddings(model, "sd3", prompt, negative, file=texts, download=download).to(device)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    space = loading.latent_space(vae, scale, shift, TILE_PX, OVERLAP_PX)
    side = int(transformer.config.sample_size) * space.factor
    return SD3(transformer, space, process, found, int(transformer.config.patch_size), side)
