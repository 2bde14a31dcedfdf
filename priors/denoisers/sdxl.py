"""SDXL (Podell et al., ICLR 2024): a text-to-image model, here the base generator of DiffuseHigh. OpenRAIL++-M.

It knows nothing of LR views; hooks and the image that a walk begins from bring them in. Coordinates are those of EDM:
x_t = x0 + sigma eps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import conditioning
from priors.denoisers.parts import load_parts, multiple_of
from priors.denoisers.text import Embeddings
from priors.interfaces import Cond, Process, Space
from priors.processes import EDM, VP
from utils.errors import UserError

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"


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


def load_sdxl(model: str | Path = MODEL, **options: Any) -> SDXL:
    """The prior of a folder or hub id in the layout of StableDiffusionXLPipeline.

    Parameters
    ----------
    options : see `parts.load_parts`.

    Raises
    ------
    UserError : something is missing, broken or of another family.
    """
    found = load_parts(model, "sdxl", "UNet2DConditionModel", **options)
    config, process = found.network.config, found.process
    if config.addition_embed_type != "text_time":
        raise UserError(f"{model}: its network is told no sizes; it is no SDXL model")
    return SDXL(
        found.network,
        found.space,
        EDM(process) if isinstance(process, VP) else process,
        found.texts,
        found.prediction,
        int(config.sample_size) * found.space.factor,
        multiple_of(found.network),
    )
