"""What a prior is made of, so that every system of the field is the same few parts.

Letters, in this package: x0 a clean image, y its LR view, u the LR view enlarged to HR size, eps standard noise, and
x_t = a x0 + b u + s eps what a network sees at time t. Batches come first: [B, C, H, W].

Images are RGB, float32, 0-1. A *space* is where a process noises: pixels in [-1, 1], or latents of an autoencoder. Only
a space knows the way between the two; samplers and networks work in space coordinates, hooks say which they mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


class Coefficients(NamedTuple):
    """x_t = a x0 + b u + s eps."""

    a: float
    b: float
    s: float


@runtime_checkable
class Process(Protocol):
    """How clean images become noise; times are the process's own, `clean` the one at which x_t = x0.

    Attributes
    ----------
    clean : time with a = 1, b = 0, s = 0. last : the noisiest time that the network knows.
    uses_up : whether b is ever other than 0.
    """

    @property
    def clean(self) -> float: ...
    @property
    def last(self) -> float: ...
    @property
    def uses_up(self) -> bool: ...

    def coefficients(self, t: float) -> Coefficients: ...

    def ratio(self, t: float, earlier: float) -> float:
        """r of the transition from a less noisy time: x_t = r x_earlier + ... + sqrt(s^2 - r^2 s'^2) eps."""
        ...

    def times(self, steps: int, start: float | None = None) -> list[float]:
        """`steps` times from `start` (None = `last`) down, then `clean`: steps + 1 numbers."""
        ...

    def network_time(self, t: float) -> float:
        """What the network is told for t."""
        ...

    def network_scale(self, t: float) -> float:
        """Factor of x_t before the network sees it."""
        ...


@runtime_checkable
class Space(Protocol):
    """Where a process noises.

    Attributes
    ----------
    channels : C of its tensors. factor : image pixels per element along each axis.
    """

    @property
    def channels(self) -> int: ...
    @property
    def factor(self) -> int: ...

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Space coordinates of images 0-1 (not clamped); an autoencoder's mode, never a sample. Differentiable."""
        ...

    def decode(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images, not clamped. Differentiable."""
        ...


@dataclass(frozen=True, eq=False)
class Cond:
    """What a network is told beside x_t. Unused parts are None.

    Parameters
    ----------
    lr : LR views 0-1, a centred window of F frames in the order of the clip; F is odd, the middle one the view itself.
    up : u, that view enlarged to HR size, image 0-1.
    prompt : embeddings of a text, [B or 1, tokens, width]. negative : of what is not wanted, for guidance.
    pooled, negative_pooled : pooled embeddings, [B or 1, width].
    guidance : scale of classifier-free guidance, 1 = none.
    noise_level : of noise that was added to the LR view, in the network's own unit.
    extra : what one family alone needs (tags' embeddings, an image for a ControlNet), by name.
    """

    lr: Float[Tensor, "B F 3 h w"] | None = None
    up: Float[Tensor, "B 3 H W"] | None = None
    prompt: Tensor | None = None
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    guidance: float = 1.0
    noise_level: float = 0.0
    extra: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class ScorePrior(Protocol):
    """What a diffusion model knows. Samplers make images of one, SDS a gradient."""

    @property
    def process(self) -> Process: ...
    @property
    def space(self) -> Space: ...

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """The clean estimate, in space coordinates; without a graph unless gradients are on."""
        ...


@dataclass(eq=False)
class StepContext:
    """What a hook may look at, and the one thing that it may change: `cond`, which the next step then sees.

    Parameters
    ----------
    index : of this step, 0 to steps - 1. t, t_next : times before and after it.
    names : the views of the batch, "" where there are none.
    """

    prior: ScorePrior
    cond: Cond
    index: int
    steps: int
    t: float
    t_next: float
    names: Sequence[str] = ()

    @property
    def last(self) -> bool:
        """Whether no step follows, so that nobody would see another `cond`."""
        return self.index + 1 == self.steps


@runtime_checkable
class Hook(Protocol):
    """Changes the clean estimate of a step, in space coordinates."""

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]: ...
