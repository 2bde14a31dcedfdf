"""The metrics that --extra_metrics adds: loaded once, measured per view, named in the protocol."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from arguments.evaluation import MetricsParams
from evaluation.dists import TO_GET_IT, Dists
from evaluation.no_reference import PROMPTS, ClipIqa, load_clip
from utils.errors import UserError
from utils.provenance import hash_files

Measure = Callable[[UInt8[np.ndarray, "H W c"], Tensor, Tensor, str], dict[str, float]]


@dataclass
class ExtraMetrics:
    """What is measured beside PSNR, SSIM and LPIPS.

    Parameters
    ----------
    measures : each takes the image in 8 bit, image and truth as [3, H, W] 0-1, and its name for messages.
    definitions : fields of the protocol, by name.
    weights : records of the models, for metrics.json. files : what they were read from.
    """

    measures: list[Measure] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def __call__(
        self, levels: UInt8[np.ndarray, "H W c"], image: Tensor, truth: Tensor, where: str
    ) -> dict[str, float]:
        """{metric: value} of one view, without those that it has no value of. Raises UserError naming `where`."""
        found: dict[str, float] = {}
        for measure in self.measures:
            found |= measure(levels, image, truth, where)
        return found


def load_extra(params: MetricsParams, device: torch.device) -> ExtraMetrics | None:
    """What the flags ask for; None where they ask for nothing.

    Raises
    ------
    UserError : a model, a file or a folder that is needed is not named or not there.
    """
    wanted = params.extra_metrics
    if not wanted:
        return None
    extra = ExtraMetrics()
    clip = [name for name in wanted if name in PROMPTS]
    if clip:
        _add_clip(extra, params, clip, device)
    if "DISTS" in wanted:
        _add_dists(extra, params, device)
    if "NIQE_fit" in wanted:
        _add_niqe(extra, params)
    return extra


def _add_clip(extra: ExtraMetrics, params: MetricsParams, variants: list[str], device: torch.device) -> None:
    model = load_clip(params.clip, device, download=params.download)
    iqa = ClipIqa(model, variants)
    extra.measures.append(lambda levels, image, truth, where: iqa(image))
    extra.definitions["clipiqa"] = f"CLIPIQA_tm: 1 pair of texts, CLIPIQA_pyiqa: 5 pairs; CLIP {model.name}"
    extra.weights["clip"] = model.record
    extra.files += model.files


def _add_dists(extra: ExtraMetrics, params: MetricsParams, device: torch.device) -> None:
    if not params.dists:
        raise UserError(f"--extra_metrics DISTS: --dists FILE is needed; {TO_GET_IT}")
    dists, extra.weights["dists"] = Dists.load(params.dists, device)
    extra.measures.append(lambda levels, image, truth, where: {"DISTS": dists(image, truth)})
    extra.files.append(Path(params.dists))
    extra.definitions["dists"] = "VGG16, Hanning L2 pooling, at the images' own size"


def _add_niqe(extra: ExtraMetrics, params: MetricsParams) -> None:
    if not params.niqe_fit:
        raise UserError("--extra_metrics NIQE_fit: --niqe_fit DIR, a folder of pristine images, is needed")
    from evaluation.niqe import fit_files, pristine_files  # half a second of import

    files = pristine_files(params.niqe_fit)
    model = fit_files(files, f"--niqe_fit {params.niqe_fit}")
    extra.files += files

    def measure(levels: UInt8[np.ndarray, "H W c"], image: Tensor, truth: Tensor, where: str) -> dict[str, float]:
        score = model.score(levels, where)
        return {} if score is None else {"NIQE_fit": score}

    extra.measures.append(measure)
    extra.definitions["niqe"] = f"96 px blocks, luma; fitted to {len(files)} images, {hash_files(files)['sha256'][:12]}"
