"""LPIPS, the learned perceptual distance, with our own feature networks: three variants, smaller is more alike.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1, weights v0.1:
features of five layers, each pixel's vector scaled to length 1, squared differences weighted per channel, averaged
over the image, summed over the layers.

`LPIPS` is what the 3DGS code reports under that name: VGG fed with values in [0, 1] although the constants that shift
and scale them were made for [-1, 1]. `LPIPS_vgg` and `LPIPS_alex` scale correctly. Variants that share a backbone share
one network, and pass through it together where that is on a GPU, as many at a time as its memory holds.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from utils.errors import UserError
from utils.lpips_weights import LAYERS, lpips_weights

SHIFT = (-0.030, -0.088, -0.188)  # of inputs in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
CACHE_BYTES = 1 << 30
PIXEL_BYTES = 2048  # what an image needs on its way through VGG: four maps of 64 channels, and the features it leaves


@dataclass(frozen=True)
class Backbone:
    """A feature network: convolutions with ReLU, in order.

    Parameters
    ----------
    convolutions : (stride, padding) of each convolution, whose ReLU follows it.
    pools : max pooling comes before the convolutions of these indices.
    pool_px : kernel of the pooling, stride 2.
    taps : features are taken after the ReLU of these convolutions.
    """

    convolutions: tuple[tuple[int, int], ...]
    pools: tuple[int, ...]
    pool_px: int
    taps: tuple[int, ...]


BACKBONES = {
    "alex": Backbone(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), (1, 2), 3, (0, 1, 2, 3, 4)),
    "vgg": Backbone(((1, 1),) * 13, (2, 4, 7, 10), 2, (1, 3, 6, 9, 12)),
}


@dataclass(frozen=True)
class Variant:
    """How an LPIPS is computed: its backbone, and whether images in [0, 1] are first brought to [-1, 1]."""

    backbone: str
    scaled: bool


VARIANTS = {
    "LPIPS": Variant("vgg", False),
    "LPIPS_vgg": Variant("vgg", True),
    "LPIPS_alex": Variant("alex", True),
}


class Network:
    """One backbone with its linear heads, on one device, float32; channels innermost on a processor.

    Parameters
    ----------
    backbone : "alex" or "vgg".
    tensors : by the names of utils.lpips_weights: features.N.weight, features.N.bias, lin.K.weight.
    device : where it runs.
    """

    def __init__(self, backbone: str, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.net = BACKBONES[backbone]
        self.layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.convolutions = [
            (
                tensors[f"features.{layer}.weight"].to(device).contiguous(memory_format=self.layout),
                tensors[f"features.{layer}.bias"].to(device),
            )
            for layer in LAYERS[backbone]
        ]
        self.heads = [tensors[f"lin.{k}.weight"].flatten().to(device) for k in range(len(self.net.taps))]

    def features(self, x: Float[Tensor, "n 3 H W"]) -> list[Float[Tensor, "n c h w"]]:
        """Compute the five feature maps of n images, each pixel's vector scaled to length 1."""
        x, taps = x.contiguous(memory_format=self.layout), []
        for i, (stride, padding) in enumerate(self.net.convolutions):
            if i in self.net.pools:
                x = max_pool2d(x, self.net.pool_px, 2)
            x = conv2d(x, *self.convolutions[i], stride, padding).relu_()
            if i in self.net.taps:
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPSILON))
        return taps

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, ""]:
        """Compare the features of two images of one size; stays on the device."""
        layers = ((p - q).square().mean((0, 2, 3)) @ w for p, q, w in zip(a, b, self.heads, strict=True))
        return sum(layers, self.heads[0].new_zeros(()))


class Lpips:
    """Measures images in any number of variants; each network is loaded once, features of truths are remembered.

    Parameters
    ----------
    variants : names out of VARIANTS.
    device : where the networks run.
    cache_bytes : bound of the remembered features (one 800x800 truth takes 0.31 GB with VGG).

    Raises
    ------
    UserError : unknown variant, or weights that cannot be found (it names the command that installs them).
    """

    def __init__(
        self,
        variants: tuple[str, ...] = tuple(VARIANTS),
        device: torch.device | str = "cpu",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        unknown = [name for name in variants if name not in VARIANTS]
        if unknown:
            raise UserError(f"no LPIPS variant {unknown[0]!r}: choose among {', '.join(VARIANTS)}")
        self.variants, self.device, self.cache_bytes = variants, torch.device(device), cache_bytes
        self.networks: dict[str, Network] = {}
        self.weights: dict[str, dict[str, str]] = {}
        for backbone in dict.fromkeys(VARIANTS[name].backbone for name in variants):
            tensors, self.weights[backbone] = lpips_weights(backbone)
            self.networks[backbone] = Network(backbone, tensors, self.device)
        self.remembered: OrderedDict[tuple[str, str], list[Tensor]] = OrderedDict()

    @torch.no_grad()
    def __call__(
        self, image: Float[Tensor, "3 H W"], truth: Float[Tensor, "3 H W"], truth_key: str = ""
    ) -> dict[str, float]:
        """Measure one image against its truth.

        Parameters
        ----------
        image, truth : [3, H, W] RGB in [0, 1], at least 32 px a side.
        truth_key : when given, features of the truth are remembered under it, for other images of the same truth.

        Returns
        -------
        {variant: distance}.

        Raises
        ------
        UserError : too small an image: a feature map would be empty.
        """
        if min(truth.shape[1:]) < 32:
            size = f"{truth.shape[2]}x{truth.shape[1]}"
            raise UserError(f"LPIPS needs images of 32x32 px or more, this one has {size}: use --no_lpips")
        fixed = torch.are_deterministic_algorithms_enabled()
        with torch.backends.cudnn.flags(enabled=True, deterministic=fixed, allow_tf32=False):  # float32, not 10 bits
            truths = self._truth_features(truth, truth_key)
            images = self._features({name: self._input(name, image) for name in self.variants})
        distances = [self._network(name).distance(images[name], truths[name]) for name in self.variants]
        return dict(zip(self.variants, torch.stack(distances).tolist(), strict=True))  # the one wait for the device

    def _network(self, variant: str) -> Network:
        return self.networks[VARIANTS[variant].backbone]

    def _input(self, variant: str, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "1 3 H W"]:
        x = image[None].to(self.device, torch.float32)
        x = 2 * x - 1 if VARIANTS[variant].scaled else x
        shift, scale = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        return (x - shift) / scale

    def _features(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """Features of one input per variant; those of one backbone share passes where memory allows."""
        found: dict[str, list[Tensor]] = {}
        for backbone, network in self.networks.items():
            names = [name for name in inputs if VARIANTS[name].backbone == backbone]
            at_once = self._batch(inputs[names[0]]) if names else 1
            for start in range(0, len(names), at_once):
                group = names[start : start + at_once]
                taps = network.features(torch.cat([inputs[name] for name in group]))
                each = zip(*(tap.split(1) for tap in taps), strict=True)
                found |= dict(zip(group, map(list, each), strict=True))
        return found

    def _batch(self, x: Tensor) -> int:
        """Images of this size that pass together: one on a processor, which gains nothing from more."""
        if self.device.type == "cpu":
            return 1
        return max(torch.cuda.mem_get_info(self.device)[0] // (2 * PIXEL_BYTES * x.shape[2] * x.shape[3]), 1)

    def _truth_features(self, truth: Tensor, key: str) -> dict[str, list[Tensor]]:
        """Features of a truth in every variant, out of memory or computed and then remembered."""
        known = {name: self.remembered[name, key] for name in self.variants if (name, key) in self.remembered}
        fresh = self._features({name: self._input(name, truth) for name in self.variants if name not in known})
        for name, features in fresh.items():
            if key and _bytes(features) <= self.cache_bytes:
                self.remembered[name, key] = [_alone(tap) for tap in features]
        for name in known | fresh:
            if (name, key) in self.remembered:
                self.remembered.move_to_end((name, key))
        while sum(map(_bytes, self.remembered.values())) > self.cache_bytes:
            self.remembered.popitem(last=False)
        return known | fresh


def _alone(tap: Tensor) -> Tensor:
    """`tap` in memory of its own, where it is a part of a batch that would be kept along with it."""
    return tap if tap.untyped_storage().nbytes() == tap.numel() * tap.element_size() else tap.clone()


def _bytes(features: list[Tensor]) -> int:
    return sum(f.numel() * f.element_size() for f in features)
