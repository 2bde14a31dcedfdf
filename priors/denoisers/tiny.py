"""The small network of our own that a CPU can train, and the prior made of it.

Letters as in `interfaces`; F = frames of the LR window, s = the factor from LR to HR. The network is told 1000 a, so
that any respacing of the times, and any process, speaks to it in the same unit (SR3's continuous noise level).

Two stems. "unshuffle": x_t and u are folded to LR size (s x s pixels become channels) and stand before the F frames;
the network works at LR size, s^2 times cheaper. "full": the F enlarged frames stand before x_t, as in SR3 for several
frames. Folded noise does not fit through a narrow trunk, so "unshuffle" predicts x0 (or v), never eps.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import gcd
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from priors.enlarge import enlarged
from priors.extra import needed
from priors.interfaces import Coefficients, Cond, Process, Space
from priors.processes import VP, Flow, ResShift, x0_from_eps, x0_from_v
from priors.spaces import PixelSpace
from utils.errors import UserError, one_line
from utils.state import load_state, save_state

STEMS = ("unshuffle", "full")
PREDICTIONS = ("x0", "eps", "v")
SCHEDULES = ("linear", "cosine")
RESIDUAL = 0.25  # x0 - u in [-1, 1] coordinates is divided by this, so that the network's output is of order 1
LEVEL = 1000.0  # what a = 1 is to the network's time embedding
KIND = "seqsplat small prior"
SCHEMA = 1
LIMITS = {"frames": 99, "scale": 16, "blocks": 8, "groups": 64}


@dataclass(frozen=True)
class TinyConfig:
    """The network's shape.

    Parameters
    ----------
    frames : F, odd; the middle one is the view itself. scale : s, HR px per LR px ("full" takes any sizes).
    stem, prediction : see the module. noisy : False = a regressor, which sees no x_t.
    widths : channels of each level, each level half as large as the one before; multiples of `groups`.
    blocks : residual blocks of a level. attention : which levels have it; the middle always has.
    groups : of the group norms. dropout : 0-1.

    Raises
    ------
    UserError : values that make no network; names the first.
    """

    frames: int = 3
    scale: int = 4
    stem: str = "unshuffle"
    prediction: str = "x0"
    noisy: bool = True
    widths: tuple[int, ...] = (32, 64)
    blocks: int = 1
    attention: tuple[bool, ...] = (False, False)
    groups: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"small prior: {name} = {getattr(self, name)}; 1 to {most} is expected")
        if self.frames % 2 == 0:
            raise UserError(f"small prior: {self.frames} frames have no middle one; use an odd number")
        if self.stem not in STEMS or self.prediction not in PREDICTIONS:
            raise UserError(
                f"small prior: stem {self.stem!r}, prediction {self.prediction!r}: one of {', '.join(STEMS)} and of "
                f"{', '.join(PREDICTIONS)} are expected"
            )
        if self.stem == "unshuffle" and self.prediction == "eps":
            raise UserError('small prior: prediction "eps" learns nothing with stem "unshuffle"; use "full", or "x0"')
        if not self.noisy and self.prediction != "x0":
            raise UserError(f'small prior: a regressor predicts "x0", not {self.prediction!r}')
        if not 1 <= len(self.widths) <= 6 or any(not 0 < w <= 2048 or w % self.groups for w in self.widths):
            raise UserError(f"small prior: widths {self.widths}: 1 to 6 multiples of {self.groups} groups are expected")
        if len(self.attention) != len(self.widths) or not 0 <= self.dropout < 1:
            raise UserError("small prior: one attention flag for each width and a dropout in [0, 1) are expected")

    @property
    def in_channels(self) -> int:
        """What the stem makes: 3 F + 3 s^2 (x_t and u) when folded, 3 F + 3 (x_t) at full size."""
        if self.stem == "full":
            return 3 * self.frames + 3 * self.noisy
        return 3 * self.frames + 3 * self.scale**2 * (1 + self.noisy)

    @property
    def out_channels(self) -> int:
        return 3 if self.stem == "full" else 3 * self.scale**2


@dataclass(frozen=True)
class ProcessSpec:
    """A process as settings, for files.

    Parameters
    ----------
    kind : "vp", "resshift", or "none" for a regressor. steps : T.
    schedule, first, last : betas of "vp"; "cosine" needs no ends. kappa, power, least : kappa, p and m of ResShift.
    """

    kind: str = "vp"
    steps: int = 2000
    schedule: str = "cosine"
    first: float = 1e-6
    last: float = 1e-2
    kappa: float = 2.0
    power: float = 0.3
    least: float = 0.04

    def make(self) -> Process:
        """The process itself. Raises UserError for a kind or schedule that is not known."""
        if self.kind == "none":
            return Flow(1.0)
        if self.kind == "resshift":
            return cast(Process, ResShift(self.steps, self.kappa, self.power, self.least))
        if self.kind != "vp" or self.schedule not in SCHEDULES:
            raise UserError(
                f"process {self.kind!r}, schedule {self.schedule!r}: vp, resshift or none and "
                f"{' or '.join(SCHEDULES)} are known"
            )
        cosine = self.schedule == "cosine"
        return cast(Process, VP.cosine(self.steps) if cosine else VP.linear(self.steps, self.first, self.last))


class TinyNet(nn.Module):
    """A small U-Net behind one of the two stems; its last layer starts at 0, so "x0" starts as the bicubic image.

    Parameters
    ----------
    config : its shape. seed : of its weights; the global generators stay as they were.
    unet : another U-Net of that shape, with its weights: (what the stem makes, 1000 a) -> something with `sample`.
    """

    unet: Any

    def __init__(self, config: TinyConfig, seed: int = 0, unet: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        if unet is not None:
            self.unet = unet
            return
        heads = [w for w, has in zip(config.widths, config.attention, strict=True) if has] + [config.widths[-1]]
        kinds = ["Attn" if has else "" for has in config.attention]
        diffusers = needed("diffusers")
        with torch.random.fork_rng(devices=[]):  # torch's layers draw their first weights from the global generator
            torch.random.default_generator.manual_seed(seed)
            self.unet = diffusers.UNet2DModel(
                in_channels=config.in_channels,
                out_channels=config.out_channels,
                block_out_channels=config.widths,
                layers_per_block=config.blocks,
                down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
                up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
                attention_head_dim=gcd(*heads),
                norm_num_groups=config.groups,
                dropout=config.dropout,
            )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(
        self,
        x: Float[Tensor, "B 3 H W"] | None,
        lr: Float[Tensor, "B F 3 h w"],
        up: Float[Tensor, "B 3 H W"],
        level: Float[Tensor, "B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """What is predicted, in its own unit: eps, v, or (x0 - u) / 0.25.

        Parameters
        ----------
        x : x_t in [-1, 1] coordinates, times the process's network scale; None for a regressor.
        lr, up : of the window and of its middle frame, images 0-1. level : a of each sample.

        Raises
        ------
        UserError : another number of frames than F, or HR and LR sizes that do not fit the stem.
        """
        config = self.config
        _check_shapes(config, lr, up)
        if (x is not None) != config.noisy:
            raise ValueError("a regressor takes no x_t, a denoiser needs one")
        seen = _full(x, lr, up) if config.stem == "full" else _folded(x, lr, up, config.scale)
        rows, cols = seen.shape[-2:]
        step = 2 ** (len(config.widths) - 1)  # odd sizes would not meet their own enlargement again
        seen = pad(seen, (0, -cols % step, 0, -rows % step), mode="replicate")
        weight = next(self.unet.parameters())  # in half precision, channels innermost: see `load_prior`
        seen = seen.to(weight.dtype)
        if weight.dtype != torch.float32:
            seen = seen.contiguous(memory_format=torch.channels_last)
        out = self.unet(seen, LEVEL * level).sample[..., :rows, :cols].to(level.dtype)
        return out if config.stem == "full" else pixel_shuffle(out, config.scale)


def _check_shapes(config: TinyConfig, lr: Tensor, up: Tensor) -> None:
    if lr.shape[1] != config.frames:
        raise UserError(f"small prior: a window of {lr.shape[1]} frames, {config.frames} are expected")
    (h, w), (rows, cols) = lr.shape[-2:], up.shape[-2:]
    if config.stem == "unshuffle" and (rows, cols) != (config.scale * h, config.scale * w):
        raise UserError(f"small prior: made for x{config.scale}; {w}x{h} px to {cols}x{rows} px is not that")


def _folded(x: Tensor | None, lr: Tensor, up: Tensor, scale: int) -> Tensor:
    noisy = [] if x is None else [pixel_unshuffle(x, scale)]
    return torch.cat([*noisy, pixel_unshuffle(2 * up - 1, scale), (2 * lr - 1).flatten(1, 2)], 1)  # [B, C, h, w]


def _full(x: Tensor | None, lr: Tensor, up: Tensor) -> Tensor:
    """The F enlarged frames in the order of the clip, then x_t: [B, 3 F + 3, H, W]."""
    middle = lr.shape[1] // 2
    frames = [up if f == middle else enlarged(lr[:, f], up.shape[-1], up.shape[-2]) for f in range(lr.shape[1])]
    return torch.cat([*(2 * frame - 1 for frame in frames), *([] if x is None else [x])], 1)


def clean_estimate(
    predicted: Float[Tensor, "B 3 H W"],
    x_t: Float[Tensor, "B 3 H W"],
    up: Float[Tensor, "B 3 H W"],
    c: Coefficients,
    prediction: str,
) -> Float[Tensor, "B 3 H W"]:
    """x0 in [-1, 1] coordinates of what a network predicted at coefficients c; `up` is an image 0-1."""
    if prediction == "x0":
        return 2 * up - 1 + RESIDUAL * predicted
    return x0_from_eps(x_t, predicted, c) if prediction == "eps" else x0_from_v(x_t, predicted, c)


@dataclass(eq=False)
class TinyPrior:
    """The `ScorePrior` of a small network; of a regressor x_t is not looked at, and one step gives its answer.

    Parameters
    ----------
    net : frozen and in evaluation mode where it comes from `load_prior`. process, space : as in `interfaces`.
    """

    net: TinyNet
    process: Process
    space: Space = field(default_factory=lambda: cast(Space, PixelSpace()))

    def x0(self, x_t: Float[Tensor, "B 3 H W"], t: float, cond: Cond) -> Float[Tensor, "B 3 H W"]:
        """See `interfaces.ScorePrior`. Of a longer window of LR frames the middle F are seen.

        Raises
        ------
        UserError : no LR frames, fewer than F, or sizes that do not fit.
        """
        config, c = self.net.config, self.process.coefficients(t)
        if cond.lr is None:
            raise UserError("small prior: it needs LR views, and the condition has none")
        spare = cond.lr.shape[1] - config.frames
        if spare < 0 or spare % 2:
            raise UserError(f"small prior: it sees {config.frames} frames; a window of {cond.lr.shape[1]} was given")
        lr = cond.lr[:, spare // 2 : cond.lr.shape[1] - spare // 2]
        up = cond.up if cond.up is not None else enlarged(lr[:, config.frames // 2], x_t.shape[-1], x_t.shape[-2])
        level = torch.full((len(lr),), c.a if config.noisy else 0.0, dtype=lr.dtype, device=lr.device)
        seen = self.process.network_scale(t) * x_t if config.noisy else None
        return clean_estimate(self.net(seen, lr, up, level), x_t, up, c, config.prediction)


def save_prior(path: str | Path, net: TinyNet, process: ProcessSpec, record: Mapping[str, Any]) -> None:
    """Write a trained network atomically. record : JSON values for people. Raises UserError where that fails."""
    info = {"kind": KIND, "schema": SCHEMA, "network": asdict(net.config), "process": asdict(process)}
    save_state(path, net.state_dict(), info | {"record": dict(record)})


def load_prior(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TinyPrior:
    """Read what `save_prior` wrote: frozen, in evaluation mode.

    Parameters
    ----------
    dtype : of the network of residuals, which are small (bfloat16: 0.05 grey levels rms in an image, 0.6 of the time on
        a processor with AVX512-BF16); all around it is float32. Networks that predict eps or v, which is divided by a
        small a, always compute in float32.

    Raises
    ------
    UserError : not such a file, damaged, or its tensors are not those of its own settings.
    """
    tensors, info = load_state(path)
    if not isinstance(info, dict) or info.get("kind") != KIND or info.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a small prior of schema {SCHEMA}; `python -m priors.train_sr` writes one")
    config = _typed(TinyConfig(), info.get("network"), f"{path}: network")
    process = _typed(ProcessSpec(), info.get("process"), f"{path}: process").make()
    net = TinyNet(config)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors are not those of its settings ({one_line(error)[:200]})") from error
    net = net.eval().requires_grad_(False).to(device)
    if config.prediction == "x0" and dtype != torch.float32:
        nn.Module.to(net.unet, dtype=dtype)  # diffusers' own `to` warns of nothing
        net.unet.to(memory_format=torch.channels_last)
    return TinyPrior(net, process)


def _typed(default: Any, values: Any, where: str) -> Any:
    """`default` with `values` in place, each of its default's type."""
    if not isinstance(values, dict) or set(values) != {f.name for f in fields(default)}:
        raise UserError(f"{where}: exactly {', '.join(f.name for f in fields(default))} are expected")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in given.items():
        expected = type(getattr(default, name))
        fits = type(value) is expected or (expected is float and type(value) is int)
        if fits and isinstance(value, tuple):
            fits = all(type(v) is type(getattr(default, name)[0]) for v in value)
        if not fits:
            raise UserError(f"{where}: {name} = {value!r} is of the wrong type")
    return replace(default, **given)
