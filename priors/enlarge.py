"""u, the LR view at HR size: one definition for training data, networks and samplers of this project's own priors."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def enlarged(lr: Float[Tensor, "B C h w"], width: int, height: int) -> Float[Tensor, "B C {height} {width}"]:
    """Bicubic enlargement (a = -0.5, borders renormalised), not clamped; equals Pillow's in float to 2e-6."""
    # Only with `antialias` does torch take a = -0.5; when enlarging it widens nothing.
    return interpolate(lr, (height, width), mode="bicubic", antialias=True, align_corners=False)
