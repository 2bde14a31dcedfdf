"""CLIP-IQA: how much nearer a picture is to a praising text than to a blaming one, 0 to 1, larger is better; no truth.

Wang et al., "Exploring CLIP for Assessing the Look and Feel of Images", AAAI 2023: softmax over 100 x the cosines of
the image's embedding with those of a pair of texts, first entry. Two definitions are in use, whose numbers differ:
CLIPIQA_tm, as torchmetrics: one pair. CLIPIQA_pyiqa, as pyiqa: the mean over five pairs.

Both are defined on CLIP RN50 without positional embedding, at the image's own size. A folder of open_clip's RN50 is
that (evaluation.clip_resnet). A folder of transformers' CLIPModel, a vision transformer, is also taken: it sees the
centre of the image at its own input size, and the protocol says that the numbers are not the published definition's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluation import clip_resnet
from priors.extra import needed
from utils.errors import UserError, one_line
from utils.provenance import hash_files, sha256
from utils.state_dicts import read_state_dict
from utils.weights import ResolvedWeights

PROMPTS: dict[str, tuple[tuple[str, str], ...]] = {
    "CLIPIQA_tm": (("Good photo.", "Bad photo."),),
    "CLIPIQA_pyiqa": (
        ("Good image", "bad image"),
        ("Sharp image", "blurry image"),
        ("sharp edges", "blurry edges"),
        ("High resolution image", "low resolution image"),
        ("Noise-free image", "noisy image"),
    ),
}
LOGIT_SCALE = 100.0
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
OPEN_CLIP = "open_clip_model.safetensors"
FILES = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin")
TO_GET_IT = (
    "name a folder with open_clip's RN50 (open_clip_model.safetensors and its tokenizer, as timm/resnet50_clip.openai "
    "holds them) or one of transformers' CLIPModel; or the hub's name of it, with --download where it is not cached"
)


def probabilities(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "two_m d"], scale: float = LOGIT_SCALE
) -> Float[Tensor, "n m"]:
    """For each image and each pair of texts (2 i praises, 2 i + 1 blames): the softmax's first entry.

    Embeddings of any length; cosines are taken.
    """
    images, texts = (x / x.norm(dim=1, keepdim=True) for x in (images, texts))
    return (scale * images @ texts.T).unflatten(1, (-1, 2)).softmax(dim=2)[..., 0]


@dataclass(frozen=True)
class Clip:
    """A model that embeds images and texts in one space.

    Parameters
    ----------
    image : RGB 0-1 [3, H, W] -> embedding [1, d]. text : of texts -> [m, d].
    name : what it is, for protocols. record : name and hash, for the results. files : what it was read from.
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Sequence[str]], Tensor]
    name: str
    record: dict[str, str]
    files: list[Path]


class ClipIqa:
    """Measures images in one or both definitions; texts are embedded once, each image once.

    Parameters
    ----------
    clip : the model. variants : names out of PROMPTS.
    """

    def __init__(self, clip: Clip, variants: Sequence[str] = tuple(PROMPTS)) -> None:
        unknown = [name for name in variants if name not in PROMPTS]
        if unknown:
            raise UserError(f"no CLIP-IQA variant {unknown[0]!r}: choose among {', '.join(PROMPTS)}")
        self.clip = clip
        with torch.no_grad():
            self.texts = {name: clip.text([text for pair in PROMPTS[name] for text in pair]) for name in variants}

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "3 H W"]) -> dict[str, float]:
        """{variant: score} of an RGB image in 0-1, 32 px a side or more.

        Raises
        ------
        UserError : too small an image.
        """
        if min(image.shape[1:]) < 32:
            raise UserError(f"CLIP-IQA needs 32x32 px or more, this image has {image.shape[2]}x{image.shape[1]}")
        found = self.clip.image(image)
        return {name: float(probabilities(found, texts).mean()) for name, texts in self.texts.items()}


def load_clip(source: str, device: torch.device | str = "cpu", *, download: bool = False) -> Clip:
    """The model of a folder, or of a repository of the hub.

    Parameters
    ----------
    source : folder, or the hub's name of a repository: then its cached copy, fetched first with `download`.

    Raises
    ------
    UserError : transformers is not installed, nothing is there, or it is no such model.
    """
    if not source:
        raise UserError(f"--extra_metrics CLIPIQA...: --clip DIR is needed; {TO_GET_IT}")
    folder = Path(source) if Path(source).is_dir() else _snapshot(source, download)
    load = _load_resnet if (folder / OPEN_CLIP).is_file() else _load_transformer
    try:
        return load(folder, torch.device(device))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"--clip {source}: cannot be loaded ({one_line(error)[:200]}); {TO_GET_IT}") from error


def _snapshot(name: str, download: bool) -> Path:
    """The cached copy of a hub's repository."""
    hub = needed("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(FILES), local_files_only=not download))
    except Exception as error:  # its own errors, those of its transport, and ValueError for what is no name
        why = type(error).__name__
        raise UserError(
            f"--clip {name}: no such folder, and not to be had as a repository ({why}); {TO_GET_IT}"
        ) from error


def _facts(folder: Path, kind: str) -> tuple[dict[str, str], list[Path]]:
    """The record and the files of a model's folder."""
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return {"model": kind, "folder": folder.name, "sha256": hash_files(files)["sha256"]}, files


def _load_resnet(folder: Path, device: torch.device) -> Clip:
    """open_clip's RN50 with transformers' tokenizer."""
    path = folder / OPEN_CLIP
    state = read_state_dict(ResolvedWeights(path, "clip", sha256(path), "--clip", "unknown"))
    clip_resnet.check_state(state, str(path))
    state = {name: value.float().to(device) if value.is_floating_point() else value for name, value in state.items()}
    tokenizer = needed("transformers").CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))

    def image(x: Tensor) -> Tensor:
        return clip_resnet.encode_image(state, ((x.to(device) - mean) / std)[None])

    def text(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt")["input_ids"]
        return clip_resnet.encode_text(state, tokens.to(device))

    record, files = _facts(folder, "RN50")
    return Clip(image, text, f"RN50 without positional embedding, native size, {record['sha256'][:12]}", record, files)


def _load_transformer(folder: Path, device: torch.device) -> Clip:
    """transformers' CLIPModel with its own preparation of images."""
    transformers = needed("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(device).float()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # by its file: the common name wants torchvision, and says so on every import
    prepare = needed("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil.from_pretrained(
        folder, local_files_only=True
    )

    def image(x: Tensor) -> Tensor:
        levels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        pixels = prepare(images=[np.ascontiguousarray(levels)], return_tensors="pt")["pixel_values"]
        return model.get_image_features(pixels.to(device)).pooler_output

    def text(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt").to(device)
        return model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output

    vision = model.config.vision_config
    kind = f"ViT {vision.hidden_size} wide, {vision.patch_size} px patches at {vision.image_size} px"
    record, files = _facts(folder, kind)
    return Clip(image, text, f"{kind} (not the published RN50), {record['sha256'][:12]}", record, files)
