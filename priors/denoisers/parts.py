"""Whole models with a text, in the layout of diffusers: a network, an autoencoder, a noise schedule, text encoders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from priors.denoisers import conditioning, loading
from priors.denoisers.text import Embeddings, embeddings
from priors.interfaces import Process, Space
from priors.processes import from_scheduler

TILE_PX, OVERLAP_PX = 768, 96


@dataclass(frozen=True, eq=False)
class Parts:
    """network : of a loader's kind, None where it was not asked for. prediction : what it returns, of VP processes."""

    network: Any
    space: Space
    process: Process
    texts: Embeddings
    prediction: conditioning.Prediction


def load_parts(
    model: str | Path,
    family: str,
    kind: str = "",
    subfolder: str = "unet",
    *,
    prompt: str = "",
    negative: str = "",
    texts: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Parts:
    """The parts of a folder or hub id.

    Parameters
    ----------
    family : see `text.embeddings`. kind, subfolder : class and place of the network, "" = it is left aside.
    prompt, negative : embedded once, then the text encoders are let go. texts : file that keeps the embeddings (a few
        MB, where the encoders of Stable Diffusion 3 take 11 GB).
    dtype : of the network. The autoencoder stays float32: SDXL's overflows in half precision, and latent DDNM would
        miss the LR view.

    Raises
    ------
    UserError : something is missing, withdrawn, gated, broken or of another family.
    """
    options: dict[str, Any] = {"download": download, "device": device}
    network = loading.component(model, kind, subfolder, dtype=dtype, **options) if kind else None
    vae = loading.component(model, "AutoencoderKL", "vae", **options)
    config = loading.config(model, "scheduler", download=download)
    return Parts(
        network,
        loading.latent_space(vae, vae.config.scaling_factor, vae.config.shift_factor or 0.0, TILE_PX, OVERLAP_PX),
        from_scheduler(config),
        embeddings(model, family, prompt, negative, file=texts, download=download).to(device),
        conditioning.prediction_of(config, str(model)),
    )


def multiple_of(network: Any) -> int:
    """Of latents that a UNet wants: each of its levels but the last halves them."""
    return 2 ** (len(network.config.block_out_channels) - 1)
