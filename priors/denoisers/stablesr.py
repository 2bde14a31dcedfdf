"""StableSR (Wang et al., IJCV 2024): Stable Diffusion 2.1, led by the LR view through time-aware features.

Release: 200 steps of DDPM (turbo: 4) from the noised LR latent, empty prompt, latent tiles of 64 that share 32, decoder
wrapped with weight 0.5, then a colour fix (`post.color_adain`, `post.color_wavelet`). Code and weights are NTU S-Lab
1.0: no commercial use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from priors import key_maps, spaces
from priors.checkpoints import SD2, load_into, read_tensors
from priors.denoisers import conditioning, sd2
from priors.denoisers.cfw import CFW
from priors.denoisers.parts import Parts, load_parts, multiple_of
from priors.denoisers.text import Embeddings
from priors.denoisers.time_aware import Features, TimeAwareEncoder, modulate
from priors.interfaces import Cond, Process, Space
from utils.errors import UserError

WRAP = 0.5
LATENT = "lr_latent"  # in Cond.extra
# Of the official file: the network, the encoder of the LR view; what is read from the base instead, or is of training.
UNET, ENCODER = "model.diffusion_model.", "structcond_stage_model."
OTHERS = ("first_stage_model.", "cond_stage_model.", "model_ema.")


@dataclass(frozen=True, eq=False)
class StableSR:
    """The prior. `Cond.up` is needed, an image of the size of the result.

    Parameters
    ----------
    unet : with SFT put in, which reads `features`. encoder : what fills them. cfw : None = the plain decoder.
    """

    unet: nn.Module
    encoder: TimeAwareEncoder
    features: Features
    space: Space
    process: Process
    texts: Embeddings
    prediction: conditioning.Prediction = "epsilon"
    multiple: int = 8
    cfw: CFW | None = None

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Raises UserError: the enlarged LR view is missing."""
        latent = self.prepared(cond).extra[LATENT].to(x_t)
        height, width = x_t.shape[-2:]
        dtype = next(self.unet.parameters()).dtype
        told = conditioning.times(self.process.network_time(t), x_t)
        seen = conditioning.extended(x_t * self.process.network_scale(t), self.multiple).to(dtype)
        maps = self.encoder(conditioning.extended(latent, self.multiple).to(dtype), told[: len(latent)])
        self.features.maps = {size: conditioning.rows(found, seen) for size, found in maps.items()}

        def network(prompt: Tensor, pooled: Tensor | None) -> Tensor:
            output = self.unet(seen, told, encoder_hidden_states=conditioning.rows(prompt, seen))
            return output.sample[..., :height, :width].to(x_t.dtype)

        output = conditioning.guided(network, cond, self.texts.prompt, self.texts.negative)
        return conditioning.clean(x_t, output, self.process.coefficients(t), self.prediction)

    def prepared(self, cond: Cond) -> Cond:
        """With the latent of the LR view in `Cond.extra`, so that a walk encodes it once."""
        if LATENT in cond.extra:
            return cond
        if cond.up is None:
            raise UserError("StableSR: sees the enlarged LR view; give it (Cond.up)")
        return replace(cond, extra={**cond.extra, LATENT: self.space.encode(cond.up)})

    def image(
        self, z: Float[Tensor, "B C h w"], up: Float[Tensor, "B 3 H W"], weight: float = WRAP
    ) -> Float[Tensor, "B 3 H W"]:
        """Decoded with features of the enlarged LR view, in tiles as the space has them; not clamped.

        Parameters
        ----------
        weight : of the wrapping, 0 = the plain decoder.
        """
        space = self.space
        if self.cfw is None or not weight or not isinstance(space, spaces.LatentSpace):
            return space.decode(z)
        cfw, channels, factor = self.cfw, space.channels, space.factor

        def apply(both: Tensor) -> Tensor:  # the image rides along as channels, so that both are cut alike
            seen = 2 * F.pixel_shuffle(both[:, channels:], factor) - 1
            latent = both[:, :channels] / space.scale + space.shift
            return (cfw.decode(space.vae, latent, cfw.encoded(space.vae, seen), weight) + 1) / 2

        both = torch.cat([z, F.pixel_unshuffle(up.to(z), factor)], dim=1)
        return spaces.tiled(apply, both, space.tile_px // factor, space.overlap_px // factor, grow=factor)


def load_stablesr(
    checkpoint: str | Path,
    cfw: str | Path | None = None,
    *,
    base: str | Path = SD2,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    encoder: Mapping[str, Any] | None = None,
    **texts: Any,
) -> StableSR:
    """The prior of an official checkpoint on Stable Diffusion 2.1.

    Parameters
    ----------
    checkpoint, cfw : files whose bytes were vouched for (`checkpoints.located`); cfw None = the plain decoder.
    base : folder or hub id of Stable Diffusion 2.1. encoder : arguments of TimeAwareEncoder other than the release's.
    texts : prompt (the release has none), negative, texts; see `parts.load_parts`.

    Raises
    ------
    UserError : something is missing or does not fit.
    """
    found = load_parts(base, "clip", download=download, device=device, **texts)
    process = found.process
    with torch.device("meta"):
        lr_encoder = TimeAwareEncoder(**(encoder or {}))
    state, where = _read(Path(checkpoint)), str(checkpoint)
    load_into(lr_encoder, key_maps.part(state, ENCODER), where)
    width = lr_encoder.fea_tran[0].out_layers[3].out_channels  # type: ignore[index, union-attr]
    kept: list[Features] = []
    unet = sd2.skeleton(
        base, "UNet2DConditionModel", "unet", lambda u: kept.append(modulate(u, width)), download=download
    )
    wanted = unet.state_dict()
    names = key_maps.ldm_unet(wanted, unet.config.layers_per_block)
    unet.load_state_dict(key_maps.renamed(key_maps.part(state, UNET), names, wanted, where), assign=True)
    return StableSR(
        sd2.placed(unet, device, dtype),
        sd2.placed(lr_encoder, device, dtype),
        kept[0],
        found.space,
        sd2.both_ends(process),
        found.texts,
        found.prediction,
        multiple_of(unet),
        _load_cfw(cfw, found, device) if cfw else None,
    )


def _read(path: Path) -> dict[str, Tensor]:
    state = read_tensors(path)
    unknown = [key for key in state if "." in key and not key.startswith((UNET, ENCODER, *OTHERS))]
    if unknown:
        raise UserError(f"{path}: is no checkpoint of StableSR (holds {unknown[0]})")
    return state


def _load_cfw(path: str | Path, base: Parts, device: torch.device | str) -> CFW:
    """Of the official file, which holds a whole autoencoder; its decoder is frozen in training and is the base's."""
    config = base.space.vae.config  # type: ignore[attr-defined]
    with torch.device("meta"):
        network = CFW(config.block_out_channels, config.norm_num_groups)
    state = key_maps.part(read_tensors(Path(path)), "decoder.")
    load_into(network, {key: value for key, value in state.items() if key.startswith("fusion_layer")}, str(path))
    return sd2.placed(network, device, torch.float32)
