"""DISTS, the distance of structure and texture, with our own network: 0 for equal images, smaller is more alike.

Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", TPAMI 2020, equations 3 to 6: of the
image itself (values 0-1) and of five stages of VGG16, whose max pooling is a Hanning L2 pooling here, the means
(texture) and covariances (structure) of each channel are compared; learned weights alpha and beta sum all of them.
Images are compared at their own size, as torchmetrics does; the authors' command line first shrinks large ones to
256 px.

The backbone is that of LPIPS (utils.lpips_weights). alpha and beta are a 12 KB file that the authors publish and two
packages carry, the same bytes: DISTS_pytorch/weights.pt of dists-pytorch 0.1 (MIT), and
torchmetrics/functional/image/dists_models/weights.pt of torchmetrics (Apache-2.0).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from evaluation.lpips import BACKBONES
from utils.errors import UserError
from utils.lpips_weights import LAYERS, lpips_weights
from utils.provenance import sha256
from utils.state_dicts import read_state_dict
from utils.weights import ResolvedWeights

SHA256 = "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"
TO_GET_IT = (
    "`pip download --no-deps dists-pytorch==0.1`, unzip DISTS_pytorch/weights.pt from it, and name that file with "
    "--dists FILE"
)
CHANNELS = (3, 64, 128, 256, 512, 512)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
C = 1e-6
POOL = (0.5, 1.0, 0.5)  # the inner part of a Hanning window of 5


@dataclass(frozen=True)
class ChannelWeights:
    """alpha (of means) and beta (of covariances) of every channel; together they sum to 1."""

    alpha: Float[Tensor, "1475"]
    beta: Float[Tensor, "1475"]


def read_channel_weights(path: str | Path) -> ChannelWeights:
    """Read the published file.

    Raises
    ------
    UserError : missing (says how to get it), or not the published bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--dists {path}: no such file; to get the weights of DISTS: {TO_GET_IT}")
    found = sha256(path)
    if found != SHA256:
        raise UserError(f"--dists {path}: SHA-256 is {found}, the published file has {SHA256}; {TO_GET_IT}")
    state = read_state_dict(ResolvedWeights(path, "dists", found, "--dists", "MIT"))
    alpha, beta = (state[name].double().flatten() for name in ("alpha", "beta"))
    total = alpha.sum() + beta.sum()
    return ChannelWeights((alpha / total).float(), (beta / total).float())


class Dists:
    """Measures images; the network is loaded once.

    Parameters
    ----------
    backbone : VGG16 by the names of utils.lpips_weights.
    weights : of the channels.
    device : where it runs, in float32.
    """

    def __init__(
        self, backbone: dict[str, Tensor], weights: ChannelWeights, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        self.convolutions = [
            (
                backbone[f"features.{layer}.weight"].to(self.device).contiguous(memory_format=self.layout),
                backbone[f"features.{layer}.bias"].to(self.device),
            )
            for layer in LAYERS["vgg"]
        ]
        self.alpha, self.beta = (w.to(self.device).split(CHANNELS) for w in (weights.alpha, weights.beta))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple["Dists", dict[str, str]]:
        """The metric with its published weights, and their record for the results.

        Raises
        ------
        UserError : weights of the channels or of the backbone that are not there (says how to get them).
        """
        weights = read_channel_weights(path)
        backbone, record = lpips_weights("vgg")
        return cls(backbone, weights, device), {"sha256": SHA256, "licence": "MIT", "backbone": record["sha256"]}

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "3 H W"], truth: Float[Tensor, "3 H W"]) -> float:
        """The distance of two RGB images in 0-1 of one size, 32 px a side or more; symmetric.

        Raises
        ------
        UserError : too small an image: the last stage would be empty.
        """
        if min(truth.shape[1:]) < 32:
            raise UserError(f"DISTS needs images of 32x32 px or more, this one has {truth.shape[2]}x{truth.shape[1]}")
        fixed = torch.are_deterministic_algorithms_enabled()
        with torch.backends.cudnn.flags(enabled=True, deterministic=fixed, allow_tf32=False):
            both = [self.features(x.to(self.device, torch.float32)) for x in (image, truth)]
        layers = zip(*both, self.alpha, self.beta, strict=True)
        return float(sum((_layer(p, q, alpha, beta) for p, q, alpha, beta in layers), torch.zeros(())))

    def features(self, image: Float[Tensor, "3 H W"]) -> list[Float[Tensor, "c h w"]]:
        """The image and the five stages (after ReLU)."""
        mean, std = (image.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        x, taps = ((image - mean) / std)[None].contiguous(memory_format=self.layout), [image]
        net = BACKBONES["vgg"]
        for i, (weight, bias) in enumerate(self.convolutions):
            x = _l2_pooled(x) if i in net.pools else x
            x = conv2d(x, weight, bias, *net.convolutions[i]).relu_()
            if i in net.taps:
                taps.append(x[0])
        return taps


def _l2_pooled(x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h2 w2"]:
    """Root of the Hanning-weighted mean of squares, at every second pixel."""
    row = x.new_tensor(POOL) / sum(POOL)
    window = (row[:, None] * row[None, :]).expand(x.shape[1], 1, 3, 3)
    return (conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _layer(
    p: Float[Tensor, "c h w"], q: Float[Tensor, "c h w"], alpha: Float[Tensor, "c"], beta: Float[Tensor, "c"]
) -> Float[Tensor, ""]:
    """The part of one stage, of differences, so that equal images give exactly 0; sums in float64, on the CPU."""
    mean_p, mean_q = _mean(p), _mean(q)
    p, q = p - mean_p.float()[:, None, None], q - mean_q.float()[:, None, None]
    texture = (mean_p - mean_q).square() / (mean_p.square() + mean_q.square() + C)  # 1 - (2 pq + C) / (p^2 + q^2 + C)
    structure = _mean((p - q).square()) / (_mean(p.square()) + _mean(q.square()) + C)
    return (alpha.double() @ texture + beta.double() @ structure).cpu()


def _mean(x: Float[Tensor, "c h w"]) -> Float[Tensor, "c"]:
    return x.mean((1, 2), dtype=torch.float64)
