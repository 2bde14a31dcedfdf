"""What may be done to the clean estimate of a step. Each hook takes and returns space coordinates (see `interfaces`).

An image here is the decoded estimate, 0-1 and not clamped; hooks that work on images decode, change and encode. In an
autoencoder's space that way is not exact: what must hold of the result is done once more at the end (`post.project`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from priors import post, wavelets
from priors.crops import Box
from priors.interfaces import Cond, StepContext
from scene.lr_kernel import LRKernel

DIFFBIR_UNIT = 3000.0  # factor of the guidance scale in DiffBIR's release, whose loss is a mean over all elements
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
P = TypeVar("P", "ProjectLR", "ProjectLRLatent")


@dataclass(frozen=True, eq=False)
class ProjectLR:
    """The image whose LR version is the LR view: A^+ y + (I - A^+ A) x0 (DDNM, Wang et al. 2023).

    Parameters
    ----------
    kernel : A, of the image's size. lr : LR views 0-1; None = the middle frame of what the prior is told.
    tolerance, rounds : see `post.project`; one round does not clip.
    mask : where False the LR pixel says nothing.
    """

    kernel: LRKernel
    lr: Float[Tensor, "B 3 h w"] | None = None
    tolerance: float = 0.0
    rounds: int = 1
    mask: Bool[Tensor, "h w"] | None = None

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        space = context.prior.space
        image = space.decode(x0)
        lr, mask = lr_view(self.lr, context.cond).to(image), None if self.mask is None else self.mask.to(image.device)
        if self.rounds > 1:
            return space.encode(post.project(image, self.kernel, lr, self.tolerance, self.rounds, mask))
        return space.encode(self.kernel.project_soft(image, lr, self.tolerance, mask))

    def cropped(self, box: Box) -> "ProjectLR":
        """The hook for a part of the view: LR pixels whose support leaves the part say nothing.

        Raises
        ------
        UserError : the HR size is no whole multiple of the LR size.
        """
        return _cropped(self, box)


@dataclass(frozen=True, eq=False)
class ProjectLRLatent:
    """`ProjectLR` for latents, as guidance: z0 <- g(A^+ y) + strength (z0 - g(A^+ A g'(z0))), g the encoder.

    Exact only where decoding and encoding undo each other and strength = 1 (DDNM for flow matching). With strength 1 an
    estimate that says what y says stays as it is, whatever the autoencoder loses on the way there and back.

    Parameters
    ----------
    kernel, lr, mask : as in `ProjectLR`. strength : 0 = g(A^+ y) alone, 0.7-0.9 with 1-8 steps, above 1 noisy.
    lr_latent : g(A^+ y) where it is known (`lr_latent_of`); None = encoded at every step.
    """

    kernel: LRKernel
    lr: Float[Tensor, "B 3 h w"] | None = None
    strength: float = 0.8
    lr_latent: Float[Tensor, "B C k l"] | None = None
    mask: Bool[Tensor, "h w"] | None = None

    def __call__(self, x0: Float[Tensor, "B C k l"], context: StepContext) -> Float[Tensor, "B C k l"]:
        space, start = context.prior.space, self.lr_latent
        seen = self.kernel.down(space.decode(x0))
        if start is None:
            lr = lr_view(self.lr, context.cond).to(x0)
            lr = lr if self.mask is None else torch.where(self.mask.to(lr.device), lr, seen)
            start = space.encode(self.kernel.pinv(lr))
        return start + self.strength * (x0 - space.encode(self.kernel.pinv(seen)))

    def cropped(self, box: Box) -> "ProjectLRLatent":
        """See `ProjectLR.cropped`; g(A^+ y) is encoded anew."""
        return replace(_cropped(self, box), lr_latent=None)


@dataclass(frozen=True, eq=False)
class SwapLowBand:
    """Gives the image the low band of a target during the first steps (DiffuseHigh, Kim et al. 2025).

    Parameters
    ----------
    target : image of the final size. wavelet, level, mode : see `wavelets`. steps : how many; 0 = none.
    """

    target: Float[Tensor, "B 3 H W"]
    wavelet: str = "db4"
    level: int = 1
    mode: str = "symmetric"
    steps: int = 5

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        if context.index >= self.steps:
            return x0
        image = context.prior.space.decode(x0)
        swapped = wavelets.swap_low_band(image, self.target.to(image), self.wavelet, self.level, self.mode)
        return context.prior.space.encode(swapped)


@dataclass(frozen=True, eq=False)
class RestorationGuidance:
    """A gradient step towards a smooth restoration, weak at its edges (DiffBIR, Lin et al. 2024).

    x0 <- x0 - 3000 strength dL/dx0, L = mean((x - reference)^2 W), W = `flatness` of the reference, both in the units
    of the space, -1 to 1 for images. The mean is over one view's elements, so the pull falls with its size.

    Parameters
    ----------
    reference : restored image of the final size, 0-1. strength : the release's guidance scale; 0 = off.
    where : "pixel" compares decoded images, its gradient passes through the decoder; "latent" compares latents.
    """

    reference: Float[Tensor, "B 3 H W"]
    strength: float = 0.0
    where: str = "pixel"

    def __post_init__(self) -> None:
        if self.where not in ("pixel", "latent"):
            raise ValueError(f"restoration guidance in {self.where!r}; pixel or latent is expected")

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        if not self.strength:
            return x0
        with torch.enable_grad():
            x = x0.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(x, context).sum(), x)
        return x0 - DIFFBIR_UNIT * self.strength * slope

    def loss(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B"]:
        """L of each view."""
        space, reference = context.prior.space, self.reference.to(x0)
        weight = flatness(reference)
        if self.where == "pixel":
            error = 2 * (space.decode(x0) - reference)  # the release's images are -1 to 1
        else:
            error, weight = x0 - space.encode(reference).detach(), avg_pool2d(weight, space.factor)
        return (error**2 * weight).mean((1, 2, 3))


@dataclass(frozen=True, eq=False)
class RenderConsistency:
    """Replaces the views' images by renders of one 3D model trained on them (3DSR, 2025).

    Parameters
    ----------
    render : (images 0-1 not clamped [B, 3, H, W], context) -> images of the same shape. every : steps between two.
    """

    render: Callable[[Tensor, StepContext], Tensor]
    every: int = 1

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        if context.index % self.every:
            return x0
        space = context.prior.space
        return space.encode(self.render(space.decode(x0), context).to(x0))


@dataclass(frozen=True)
class RefineCondition:
    """Lets the next step see weight x0 + (1 - weight) u as its image condition (AddSR's prediction-based refinement).

    The estimate itself stays as it is. The LR view's share is always the given one, so shares do not compound.

    Parameters
    ----------
    weight : 0-1; 0.5 in the release. name : in `Cond.extra`, an image 0-1 [B, 3, H, W].
    """

    weight: float
    name: str

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        cond = context.cond
        if cond.up is None:
            raise ValueError("this hook needs cond.up, the enlarged LR view")
        if context.last:
            return x0
        image = context.prior.space.decode(x0).clamp(0, 1)
        mixed = self.weight * image + (1 - self.weight) * cond.up.to(image)
        context.cond = replace(cond, extra={**cond.extra, self.name: mixed})
        return x0


@dataclass(frozen=True)
class Clamp:
    """Bounds in space coordinates; those of pixels by default."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        return x0.clamp(self.low, self.high)


def lr_view(lr: Float[Tensor, "B 3 h w"] | None, cond: Cond) -> Float[Tensor, "B 3 h w"]:
    """The LR view itself: `lr`, or the middle frame of what the prior is told. ValueError where there is neither."""
    if lr is not None:
        return lr
    if cond.lr is None:
        raise ValueError("this hook needs the LR view, its own or cond.lr")
    return cond.lr[:, cond.lr.shape[1] // 2]


def cropped_kernel(kernel: LRKernel, box: Box) -> tuple[LRKernel, Bool[Tensor, "h w"]]:
    """A of a part of the view, and the LR pixels of the part whose rows of A are those of the whole view's A.

    Raises
    ------
    UserError : the HR size is no whole multiple of the LR size.
    """
    x, y = box.scale(*kernel.hr_size)
    cut = replace(kernel, hr_size=(x * box.width, y * box.height), lr_size=(box.width, box.height))
    inside = []
    for axis, first, size, scale in (("y", box.top, box.height, y), ("x", box.left, box.width, x)):
        used = kernel.matrix(axis)[first : first + size] != 0
        ours = slice(scale * first, scale * (first + size))
        inside.append(torch.from_numpy(used[:, ours].sum(1) == used.sum(1)))
    return cut, inside[0][:, None] & inside[1]


def _cropped(hook: P, box: Box) -> P:
    """Kernel, LR views and mask of a projection's part."""
    kernel, inside = cropped_kernel(hook.kernel, box)
    mask = inside if hook.mask is None else inside & box.of(hook.mask)
    return replace(hook, kernel=kernel, lr=None if hook.lr is None else box.of(hook.lr), mask=mask)


def flatness(image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """W = 1 - tanh(Sobel magnitude of the luma, summed over blocks of 2x2), one value a block; in (0, 1], 1 = flat.

    Odd sides: the last block is completed by repeating the border.
    """
    luma = (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    sobel = image.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    slopes = conv2d(pad(luma, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None])
    magnitude = slopes.square().sum(1, keepdim=True).sqrt()
    height, width = magnitude.shape[-2:]
    blocks = 4 * avg_pool2d(pad(magnitude, (0, width % 2, 0, height % 2), mode="replicate"), 2)
    return interpolate(1 - blocks.tanh(), scale_factor=2, mode="nearest")[..., :height, :width]
