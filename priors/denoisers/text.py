"""Embeddings of prompts: made once by the text encoders of a model, which are then let go, or read from a file.

A text encoder may be twenty times as large as the rest (SD 3: 9.5 GB); with the embeddings in a file none is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from priors.denoisers import loading
from priors.extra import needed
from utils.errors import UserError, one_line


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Of a prompt, and of what is not wanted: [1, tokens, width]; pooled [1, width] where the family has them."""

    prompt: Tensor
    negative: Tensor
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None

    def to(self, device: torch.device | str) -> "Embeddings":
        return Embeddings(*(None if part is None else part.to(device) for part in self._parts().values()))  # type: ignore[arg-type]

    def save(self, path: str | Path, prompt: str = "", negative: str = "") -> None:
        """As safetensors, with the texts that they are of."""
        tensors = {name: part.contiguous() for name, part in self._parts().items() if part is not None}
        texts = {"prompt": prompt, "negative": negative}
        needed("safetensors.torch").save_file(tensors, str(path), metadata=texts)

    @classmethod
    def load(cls, path: str | Path, prompt: str = "", negative: str = "") -> "Embeddings":
        """Of `save`. Raises UserError where the file is none of these, or of other texts."""
        try:
            with needed("safetensors").safe_open(str(path), "pt") as file:
                said = file.metadata() or {}
                found = cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (is no dict)
        except (OSError, TypeError, ValueError, needed("safetensors").SafetensorError) as error:
            raise UserError(f"{path}: no file of embeddings ({one_line(error)}); delete it to have it made") from error
        if said != {"prompt": prompt, "negative": negative}:
            of = ", ".join(f"{key} {value!r}" for key, value in sorted(said.items(), reverse=True)) or "unknown texts"
            raise UserError(
                f"{path}: holds embeddings of {of}, not of prompt {prompt!r}, negative {negative!r}; name another "
                "file, or delete it to have it made"
            )
        return found

    def _parts(self) -> dict[str, Tensor | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def embeddings(
    model: str | Path, family: str, prompt: str = "", negative: str = "", *, file: str | Path | None = None, **load: Any
) -> Embeddings:
    """Embeddings of a prompt, on the CPU, float32.

    Parameters
    ----------
    family : "clip" (one CLIP encoder), "sdxl" or "sd3". file : where they are kept, those of one prompt and one
        negative; read where it exists, else written. It is up to the user that it is of the same model.
    load : download.

    Raises
    ------
    UserError : an encoder is missing, or the file is none of embeddings or of other texts.
    """
    if file is not None and Path(file).is_file():
        return Embeddings.load(file, prompt, negative)
    with torch.no_grad():
        found = (_clip if family == "clip" else _pipeline)(model, family, prompt, negative, **load)
    if file is not None:
        found.save(file, prompt, negative)
    return found


def clip(model: str | Path, *, download: bool = False) -> Callable[[str], Tensor]:
    """What makes hidden states [1, tokens, width] of a text, as long as the encoder takes; on the CPU, float32.

    The encoder is loaded for the first text, and each text is encoded once.

    Raises
    ------
    UserError : for the first text: encoder or tokenizer are missing or do not fit.
    """

    @cache
    def loaded() -> tuple[Any, Any]:
        encoder = loading.component(model, "CLIPTextModel", "text_encoder", download=download, package="transformers")
        tokenizer = _whole(model, "transformers", "CLIPTokenizer", download, subfolder="tokenizer")
        if len(tokenizer) != encoder.config.vocab_size:  # transformers makes an empty one where files are missing
            raise UserError(f"{model}/tokenizer: knows {len(tokenizer)} words, its encoder {encoder.config.vocab_size}")
        return encoder, tokenizer

    @cache
    def states(text: str) -> Tensor:
        encoder, tokenizer = loaded()
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        ids = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return encoder(ids).last_hidden_state.float()

    return states


def _clip(model: str | Path, family: str, prompt: str, negative: str, download: bool = False) -> Embeddings:
    encode = clip(model, download=download)
    return Embeddings(encode(prompt), encode(negative))


def _pipeline(model: str | Path, family: str, prompt: str, negative: str, download: bool = False) -> Embeddings:
    """Of families with several encoders; diffusers knows how their states are put together."""
    kind, network = {
        "sdxl": ("StableDiffusionXLPipeline", "unet"),
        "sd3": ("StableDiffusion3Pipeline", "transformer"),
    }[family]
    pipeline = _whole(model, "diffusers", kind, download, vae=None, **{network: None})
    # An empty prompt that SDXL is to avoid is a tensor of zeros, and diffusers makes that of None alone.
    found = pipeline.encode_prompt(
        prompt,
        prompt,
        **({"prompt_3": prompt} if family == "sd3" else {}),
        negative_prompt=negative or None,
        device="cpu",
        do_classifier_free_guidance=True,
    )
    return Embeddings(*(part.float() for part in found))


def _whole(model: str | Path, package: str, kind: str, download: bool, **options: Any) -> Any:
    where, pinned = loading.at_revision(model)
    try:
        with loading.quiet():
            cls = getattr(needed(package), kind)
            return cls.from_pretrained(where, local_files_only=not download, **options, **pinned)
    except loading.BROKEN as error:
        raise loading.explained(error, str(model), options.get("subfolder", "text encoders"), download) from error
