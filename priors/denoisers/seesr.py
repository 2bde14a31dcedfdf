"""SeeSR (Wu et al., CVPR 2024) and AddSR, its four-step student: a ControlNet that sees the LR view and what is in it.

A tagger that was trained on degraded images (DAPE) names what it sees: words become the prompt, its embeddings are seen
through a second cross-attention in every block that has a first one, in the network and in the ControlNet.

Release: 50 steps from the noised LR latent, guidance 5.5, prompt = tags + POSITIVE, latent tiles of 96 that share 4.
Official folders are in the layout of diffusers with `image_attentions` beside `attentions`; unverified until
`python -m priors verify seesr` was run on a networked machine.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors import key_maps
from priors.checkpoints import SD2, read_tensors
from priors.denoisers import conditioning, sd2
from priors.denoisers.parts import load_parts, multiple_of
from priors.denoisers.text import Embeddings, clip
from priors.extra import needed
from priors.interfaces import Cond, Process, Space
from utils.errors import UserError

POSITIVE = "clean, high-resolution, 8k"
NEGATIVE = "dotted, noise, blur, lowres, smooth"
IMAGE, TAGS = "image", "tags"  # in Cond.extra: an image 0-1 of the size of the result; embeddings [B or 1, n, width]
TAG_WIDTH = 512


@runtime_checkable
class TagPrompter(Protocol):
    """What sees what is in an image. DAPE is one; any tagger with embeddings of that width is another."""

    def words(self, image: Float[Tensor, "B 3 h w"]) -> list[list[str]]:
        """Tags of each image 0-1."""
        ...

    def embeddings(self, image: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B n width"]:
        """What the second cross-attention sees."""
        ...


def prompt_of(words: Iterable[str], positive: str = POSITIVE) -> str:
    """The prompt of an image's tags: "tag, tag, clean, high-resolution, 8k"."""
    return ", ".join([*words, positive])


@dataclass(eq=False)
class Seen:
    """Where the blocks of a network find the tags' embeddings of the call that is going on."""

    tags: Tensor | None = field(default=None)


class TwoAttentions(nn.Module):
    """Text attention, then that of the tags, as one transformer of a block."""

    def __init__(self, text: nn.Module, image: nn.Module, seen: Seen) -> None:
        super().__init__()
        self.text, self.image = text, image
        self._seen = (seen,)  # in a tuple, since it is no part of the network

    def forward(self, hidden: Tensor, *given: Any, **options: Any) -> tuple[Tensor]:
        hidden = self.text(hidden, *given, **options)[0]
        return (self.image(hidden, encoder_hidden_states=self._seen[0].tags, return_dict=False)[0],)


def with_image_attention(network: nn.Module, width: int = TAG_WIDTH) -> Seen:
    """Put a second cross-attention, to tags of that width, behind every first one, in place.

    Its last layer is zero, so that the network does what it did; `Seen.tags` must be given before it is called.
    """
    seen, kind = Seen(), needed("diffusers").models.transformers.transformer_2d.Transformer2DModel
    for block in list(network.modules()):
        attentions: Any = getattr(block, "attentions", None) or ()
        for k, text in enumerate(attentions):
            if isinstance(text, kind):
                sizes = {name: value for name, value in text.config.items() if not name.startswith("_")}
                image = kind(**{**sizes, "cross_attention_dim": width})
                for parameter in image.proj_out.parameters():
                    nn.init.zeros_(parameter)
                attentions[k] = TwoAttentions(text, image.to(next(text.parameters())), seen)
    return seen


def official_names(keys: Iterable[str]) -> dict[str, str]:
    """Key of a network that was changed so -> key of the official folders."""
    names = {}
    for key in keys:
        name = re.sub(r"attentions\.(\d+)\.text\.", r"attentions.\1.", key)
        names[key] = re.sub(r"attentions\.(\d+)\.image\.", r"image_attentions.\1.", name)
    return names


@dataclass(frozen=True, eq=False)
class SeeSR:
    """The prior. Sees Cond.extra["image"], else Cond.up, and the embeddings Cond.extra["tags"].

    Parameters
    ----------
    unet, control : with the second attention, which read `seen_unet` and `seen_control`.
    strength : factor of what the ControlNet adds. positive : what follows the tags in a prompt. encode : embeddings of
        a text; None = there is no text encoder.
    """

    unet: nn.Module
    control: nn.Module
    seen_unet: Seen
    seen_control: Seen
    space: Space
    process: Process
    texts: Embeddings
    prediction: conditioning.Prediction = "epsilon"
    multiple: int = 8
    strength: float = 1.0
    positive: str = POSITIVE
    encode: Callable[[str], Tensor] | None = None

    def tagged(self, cond: Cond, tagger: TagPrompter) -> Cond:
        """With what a tagger sees in the LR view: its words in the prompt, its embeddings for the second attention.

        Raises
        ------
        UserError : there are words and no text encoder.
        """
        assert cond.lr is not None
        image = conditioning.view(cond, len(cond.lr), "SeeSR")
        prompts = [self._embedded(words) for words in tagger.words(image)]
        return replace(cond, prompt=torch.cat(prompts), extra={**cond.extra, TAGS: tagger.embeddings(image)})

    def _embedded(self, words: Sequence[str]) -> Float[Tensor, "1 tokens width"]:
        if not words:
            return self.texts.prompt
        if self.encode is None:
            raise UserError(
                f"tags of a view ({', '.join(words)[:80]}) need the text encoder, and a file of embeddings took its "
                "place; leave the file (--texts) away"
            )
        return self.encode(prompt_of(words, self.positive)).to(self.texts.prompt)

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Raises UserError: the image or the tags are missing."""
        image, tags = cond.extra.get(IMAGE, cond.up), cond.extra.get(TAGS)
        if image is None or tags is None:
            raise UserError('SeeSR: sees the enlarged LR view (Cond.up) and its tags (Cond.extra["tags"]); give both')
        height, width = x_t.shape[-2:]
        dtype = next(self.unet.parameters()).dtype
        told = conditioning.times(self.process.network_time(t), x_t)
        seen = conditioning.extended(x_t * self.process.network_scale(t), self.multiple).to(dtype)
        shown = conditioning.extended(conditioning.rows(image, seen), self.multiple * self.space.factor)
        self.seen_unet.tags = self.seen_control.tags = conditioning.rows(tags, seen)

        def network(prompt: Tensor, pooled: Tensor | None) -> Tensor:
            states = conditioning.rows(prompt, seen)
            down, mid = self.control(seen, told, states, shown, self.strength, return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            output = self.unet(seen, told, encoder_hidden_states=states, **added)
            return output.sample[..., :height, :width].to(x_t.dtype)

        output = conditioning.guided(network, cond, self.texts.prompt, self.texts.negative)
        return conditioning.clean(x_t, output, self.process.coefficients(t), self.prediction)


def load_seesr(
    folder: str | Path,
    *,
    base: str | Path = SD2,
    prompt: str = POSITIVE,
    negative: str = NEGATIVE,
    texts: str | Path | None = None,
    tag_width: int = TAG_WIDTH,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SeeSR:
    """The prior of an official folder (`unet/`, `controlnet/`) on Stable Diffusion 2. AddSR's is loaded alike.

    Parameters
    ----------
    prompt : what follows the tags. texts : file that keeps its embeddings; then no tags can become a prompt.
    download : for the base alone; the folder must be there.

    Raises
    ------
    UserError : something is missing or does not fit.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; unpack the official one there (unet/, controlnet/)")
    of_text: dict[str, Any] = {"prompt": prompt, "negative": negative, "texts": texts}
    found = load_parts(base, "clip", download=download, device=device, **of_text)
    (unet, of_unet), (control, of_control) = (
        _load(folder, kind, part, tag_width)
        for kind, part in (("UNet2DConditionModel", "unet"), ("ControlNetModel", "controlnet"))
    )
    return SeeSR(
        sd2.placed(unet, device, dtype),
        sd2.placed(control, device, dtype),
        of_unet,
        of_control,
        found.space,
        found.process,
        found.texts,
        found.prediction,
        multiple_of(unet),
        positive=prompt,
        encode=None if texts else clip(base, download=download),
    )


def _load(folder: str | Path, kind: str, part: str, width: int) -> tuple[Any, Seen]:
    kept: list[Seen] = []
    network = sd2.skeleton(folder, kind, part, lambda made: kept.append(with_image_attention(made, width)))
    path = _weights(Path(folder) / part)
    wanted = network.state_dict()
    filled = key_maps.renamed(read_tensors(path), official_names(wanted), wanted, str(path))
    network.load_state_dict(filled, assign=True)
    return network, kept[0]


def _weights(folder: Path) -> Path:
    names: Sequence[str] = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds neither {names[0]} nor {names[1]}")
