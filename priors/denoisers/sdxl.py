"""SDXL (Podell et al., ICLR 2024): a text-to-image model, here the base generator of DiffuseHigh. OpenRAIL++-M.

It knows nothing of LR views; hooks and the image that a walk begins from bring them in. Coordinates are those of EDM:
x_t = x0 + sigma eps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import conditioning, loading
from priors.denoisers.text import Embeddings, embeddings
from priors.interfaces import Cond, Process, Space
from priors.processes import EDM, VP, from_scheduler
from utils.errors import UserError

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
TILE_PX, OVERLAP_PX = 768, 96


@dataclass(frozen=True, eq=False)
class SDXL:
    """The prior.

    Parameters
    ----------
    unet : UNet2DConditionModel with pooled text and sizes as further input. texts : used where Cond has none.
    side : of the images in training, px. The network is told that the image is a whole one of this size, whatever its
        real one, as DiffuseHigh does.
    """

    unet: nn.Module
    space: Space
    process: Process
    texts: Embeddings
    prediction: conditioning.Prediction = "epsilon"
    side: int = 1024
    multiple: int = 4

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior."""
        height, width = x_t.shape[-2:]
        seen = conditioning.extended(x_t * self.process.network_scale(t), self.multiple)
        seen = seen.to(next(self.unet.parameters()).dtype)
        told = conditioning.times(self.process.network_time(t), x_t)
        sizes = seen.new_tensor([[self.side, self.side, 0, 0, self.side, self.side]]).expand(len(seen), -1)

        def network(prompt: Tensor, pooled: Tensor | None) -> Tensor:
            assert pooled is not None
            added = {"text_embeds": conditioning.rows(pooled, seen), "time_ids": sizes}
            states = conditioning.rows(prompt, seen)
            output = self.unet(seen, told, encoder_hidden_states=states, added_cond_kwargs=added)
            return output.sample[..., :height, :width].to(x_t.dtype)

        texts = self.texts
        output = conditioning.guided(network, cond, texts.prompt, texts.negative, texts.pooled, texts.negative_pooled)
        return conditioning.clean(x_t, output, self.process.coefficients(t), self.prediction)


def load_sdxl(
    model: str | Path = MODEL,
    *,
    prompt: str = "",
    negative: str = "",
    texts: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SDXL:
    """The prior of a folder or hub id in the layout of StableDiffusionXLPipeline.

    Parameters
    ----------
    prompt, negative : embedded once, then the text encoders are let go. texts : file that keeps the embeddings.
    dtype : of the network; the autoencoder stays float32 (in half precision it overflows).

    Raises
    ------
    UserError : something is missing, broken or of another family.
    """
    options: dict[str, Any] = {"download": download, "device": device}
    unet = loading.component(model, "UNet2DConditionModel", "unet", dtype=dtype, **options)
    if unet.config.addition_embed_type != "text_time":
        raise UserError(f"{model}: its network is told no sizes; it is no SDXL model")
    vae = loading.component(model, "AutoencoderKL", "vae", **options)
    config = loading.config(model, "scheduler", download=download)
    process = from_scheduler(config)
    found = embeddings(model, "sdxl", prompt, negative, file=texts, download=download).to(device)
    space = loading.latent_space(vae, vae.config.scaling_factor, 0.0, TILE_PX, OVERLAP_PX)
    return SDXL(
        unet,
        space,
        cast(Process, EDM(process)) if isinstance(process, VP) else process,
        found,
        conditioning.prediction_of(config, str(model)),
        int(unet.config.sample_size) * space.factor,
        2 ** (len(unet.config.block_out_channels) - 1),
    )
