"""Stable Diffusion 3 and 3.5 (Esser et al., ICML 2024): transformers for straight paths, here the prior of latent DDNM.

Gated: its licence (Stability Community, free below one million dollars of revenue) is accepted on its page, then the
hub wants a token, from HF_TOKEN or a cached login. 16 latent channels, 8 image px per latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import conditioning
from priors.denoisers.parts import load_parts
from priors.denoisers.text import Embeddings
from priors.interfaces import Cond, Process, Space
from priors.processes import Flow, x0_from_flow
from utils.errors import UserError

MODEL = "stabilityai/stable-diffusion-3.5-medium"


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


def load_sd3(model: str | Path = MODEL, **options: Any) -> SD3:
    """The prior of a folder or hub id in the layout of StableDiffusion3Pipeline.

    Parameters
    ----------
    options : see `parts.load_parts`.

    Raises
    ------
    UserError : something is missing, gated, broken or of another family.
    """
    found = load_parts(model, "sd3", "SD3Transformer2DModel", "transformer", **options)
    if not isinstance(found.process, Flow):
        raise UserError(f"{model}: its scheduler is of no straight path; it is no Stable Diffusion 3 model")
    config = found.network.config
    side = int(config.sample_size) * found.space.factor
    return SD3(found.network, found.space, found.process, found.texts, int(config.patch_size), side)
