"""From noise to images: one step for every affine process, and the loop around it.

A step from t to an earlier t', with the clean estimate x0 and stochasticity eta in [0, 1]:

    eps   = (x_t - a x0 - b u) / s
    sigma = eta (s' / s) sqrt(max(s^2 - r^2 s'^2, 0))
    x_t'  = a' x0 + b' u + sqrt(s'^2 - sigma^2) eps + sigma xi,   xi ~ N(0, I)

By process and eta this is DDIM (VP, 0), the posterior of DDPM (VP, 1, consecutive times), Euler's step (EDM and Flow,
0), the posterior of ResShift (1), and "clean estimate plus fresh noise" (Flow, 1). Song et al. 2021, equations 12 and
16, with b u carried along.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from priors.interfaces import Cond, Process, ScorePrior, StepContext

HookCall = Callable[[Tensor, StepContext], Tensor]  # an `interfaces.Hook`


def step(
    process: Process,
    x_t: Float[Tensor, "*shape"],
    x0: Float[Tensor, "*shape"],
    t: float,
    t_next: float,
    *,
    u: Float[Tensor, "*shape"] | None = None,
    eta: float = 0.0,
    noise: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """x at the less noisy time t_next; x0 itself where that is clean.

    Parameters
    ----------
    x_t, x0, u : in space coordinates; u is needed where the process uses it.
    t : not clean. eta : 0 = deterministic. noise : xi, standard normal; needed where eta > 0 and t_next is not clean.

    Raises
    ------
    ValueError : t has no noise, or u or noise is missing.
    """
    now, then = process.coefficients(t), process.coefficients(t_next)
    if now.s <= 0:
        raise ValueError(f"a step from time {t}, which has no noise")
    r = process.ratio(t, t_next)
    sigma = eta * (then.s / now.s) * math.sqrt(max(now.s**2 - (r * then.s) ** 2, 0.0))
    eps = (_without_up(process, x_t, now.b, u) - now.a * x0) / now.s
    x = then.a * x0 + math.sqrt(max(then.s**2 - sigma**2, 0.0)) * eps
    if then.b and u is not None:
        x = x + then.b * u
    if sigma > 0:
        if noise is None:
            raise ValueError("a stochastic step needs noise")
        x = x + sigma * noise
    return x


def noised(
    process: Process,
    x0: Float[Tensor, "*shape"],
    t: float,
    noise: torch.Generator | Float[Tensor, "*shape"],
    u: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """a x0 + b u + s eps, a draw of q(x_t | x0).

    Parameters
    ----------
    noise : eps, or the generator on the CPU that draws it.

    Raises
    ------
    ValueError : the process uses u and there is none.
    """
    a, b, s = process.coefficients(t)
    if b and u is None:
        raise ValueError("this process needs u, the enlarged LR view")
    eps = noise if isinstance(noise, Tensor) else standard_noise(x0, noise)
    x = a * x0 + s * eps
    return x if u is None or not b else x + b * u


def standard_noise(
    like: Float[Tensor, "B *shape"], generator: torch.Generator, shared: bool = False
) -> Float[Tensor, "B *shape"]:
    """N(0, 1) of the shape, dtype and device of `like`; drawn on the CPU, so that every device gets the same.

    shared : one draw for all of the batch.
    """
    shape = (1, *like.shape[1:]) if shared else tuple(like.shape)
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device).expand(like.shape)


@torch.no_grad()
def sample(
    prior: ScorePrior,
    cond: Cond,
    times: Sequence[float],
    generator: torch.Generator,
    *,
    hooks: Sequence[HookCall] = (),
    eta: float = 0.0,
    begin: Float[Tensor, "B C h w"] | None = None,
    shape: tuple[int, int, int, int] | None = None,
    names: Sequence[str] = (),
    shared_noise: bool = False,
) -> Float[Tensor, "B C h w"]:
    """Walk down `times`; at each the prior's clean estimate goes through the hooks in their order.

    Parameters
    ----------
    cond : what the prior is told; a hook may change it for the steps that follow. u comes from `cond.up` as it is at
        the start.
    times : strictly descending, at least two, the last one `prior.process.clean`.
    begin : a clean guess in space coordinates, noised to times[0]; None = from noise, then `shape` is [B, C, h, w].
        Where the process uses u, "from noise" begins at u itself under that noise (Yue et al. 2023).
    names : the views of the batch, for the hooks.
    shared_noise : the same noise for every element of the batch, so that neighbouring views get like details.

    Returns
    -------
    The clean end of the walk in space coordinates, what the last hook returned; not clamped.

    Raises
    ------
    ValueError : times do not descend to clean, neither begin nor shape is given, or u is needed and cond.up is None.
    """
    process = prior.process
    if len(times) < 2 or times[-1] != process.clean or any(a <= b for a, b in pairwise(times)):
        raise ValueError(f"times {list(times)[:3]}..: descending to {process.clean} is expected")
    u = up_coordinates(prior, cond)
    x0 = _beginning(cond, begin, shape, u)
    x = noised(process, x0, times[0], standard_noise(x0, generator, shared_noise), u)
    for index, (t, t_next) in enumerate(pairwise(times)):
        context = StepContext(prior, cond, index, len(times) - 1, t, t_next, names)
        x0 = prior.x0(x, t, cond)
        for hook in hooks:
            x0 = hook(x0, context)
        cond = context.cond
        noise = standard_noise(x, generator, shared_noise) if eta > 0 and t_next != process.clean else None
        x = step(process, x, x0, t, t_next, u=u, eta=eta, noise=noise)
    return x


def up_coordinates(prior: ScorePrior, cond: Cond) -> Float[Tensor, "B C h w"] | None:
    """u in space coordinates where the prior's process uses it, else None. Raises ValueError: cond.up is None."""
    if not prior.process.uses_up:
        return None
    if cond.up is None:
        raise ValueError("this process needs cond.up, the enlarged LR view")
    return prior.space.encode(cond.up)


def _beginning(
    cond: Cond, begin: Tensor | None, shape: tuple[int, int, int, int] | None, u: Tensor | None
) -> Float[Tensor, "B C h w"]:
    if begin is not None:
        return begin
    if u is not None:
        return u
    if shape is None:
        raise ValueError("either begin or shape must be given")
    image = cond.up if cond.up is not None else cond.lr
    if image is not None:
        return image.new_zeros(shape)
    return torch.zeros(shape, device=None if cond.prompt is None else cond.prompt.device)


def _without_up(process: Process, x_t: Tensor, b: float, u: Tensor | None) -> Tensor:
    if not b:
        return x_t
    if u is None:
        raise ValueError("this process needs u, the enlarged LR view")
    return x_t - b * u
