"""Training steps on a GPU as runners: ours, ours deterministic, and the gsplat package; times by CUDA events.

Steps follow one another without a pause, as in training; a step lasts from the event before it to the event after it,
so what the host does in between counts where the device waits for it. Learning rates are 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from diff_gaussian_rasterization import RasterCamera, fused
from torch import Tensor

from benchmarks import gen
from benchmarks.cases import Times, summary
from benchmarks.floors import Counts
from benchmarks.torch_loss import LAMBDA_DSSIM, torch_loss

WARM_UP, BLOCK = 5, 20  # steps
OURS, DETERMINISTIC, GSPLAT = "ours", "ours, deterministic", "gsplat"


@dataclass(frozen=True)
class Case:
    """A scene of `gen` before a picture of any size [px]; spread over it as over a square one."""

    kind: str
    n: int
    width: int
    height: int
    seed: int = 1

    def __str__(self) -> str:
        count = f"{self.n // 1_000_000}M" if self.n % 1_000_000 == 0 else f"{self.n / 1000:g}k"
        return f"{self.kind} {count}/{self.width}x{self.height}"

    @cached_property
    def values(self) -> gen.Arrays:
        """Raw parameters; copy before changing them."""
        found = gen.scene(self.n, self.width, self.kind, self.seed)
        found["means"][:, 1] *= np.float32(self.height / self.width)
        return found

    @cached_property
    def target(self) -> np.ndarray:
        """The ground-truth picture, float32 [3, H, W]."""
        side = max(self.width, self.height)
        return np.ascontiguousarray(gen.target(side)[:, : self.height, : self.width])

    @property
    def pose(self) -> np.ndarray:
        """World to camera [4, 4]."""
        pose = np.eye(4)
        pose[2, 3] = gen.DISTANCE
        return pose

    @property
    def camera(self) -> RasterCamera:
        """Field of view 0.7 rad across."""
        focal = gen.focal_px(self.width)
        return RasterCamera(self.width, self.height, focal, focal, self.width / 2, self.height / 2, self.pose)


class Runner(Protocol):
    """Something that carries out one step and says how long its parts took, or only that it was carried out."""

    def step(self) -> Any: ...


@contextmanager
def determinism(on: bool) -> Iterator[None]:
    """PyTorch's switch, which our kernels follow; its filling of fresh memory, a tool for debugging, stays off."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


class Ours:
    """One `fused.train_step`: forward, loss, backward, Adam, densification statistics."""

    def __init__(self, case: Case, device: torch.device, *, deterministic: bool = False) -> None:
        self.case, self.deterministic = case, deterministic
        self.six = [torch.from_numpy(v.copy()).to(device) for v in case.values.values()]
        self.mean, self.square = ([torch.zeros_like(p) for p in self.six] for _ in range(2))
        self.losses = [fused.L1SSIM(torch.from_numpy(case.target).to(device), lambda_dssim=LAMBDA_DSSIM)]
        self.stats = fused.Statistics(*(torch.zeros(case.n, device=device) for _ in range(3)))
        self.workspace = fused.Workspace(device=device)

    def step(self) -> None:
        with determinism(self.deterministic):
            fused.train_step(
                self.case.camera,
                self.six,
                exp_avg=self.mean,
                exp_avg_sq=self.square,
                learning_rates=(0.0,) * 6,
                step=100,
                losses=self.losses,
                stats=self.stats,
                workspace=self.workspace,
            )

    def stages(self) -> Times:
        """Of one step, by the kernels' own events."""
        self.workspace.timing = True
        self.step()
        found = dict(self.workspace.facts["stage_ms"])
        self.workspace.timing = False
        return found

    def counts(self) -> Counts:
        """What the scene comes to on the screen."""
        self.workspace.forward(self.case.camera, *self.six)
        pixels = torch.zeros(self.case.n, device=self.six[0].device)
        self.workspace.contributions(None, None, pixels)
        facts = self.workspace.facts
        pairs = int(pixels.double().sum())
        return Counts(self.case.n, facts["drawn"], facts["instances"], pairs, self.case.width, self.case.height)

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The image and the gradients of the six."""
        written = [torch.empty_like(p) for p in self.six]
        with determinism(self.deterministic):
            image = self.workspace.forward(self.case.camera, *self.six)[0]
            gradient = torch.empty_like(image)
            self.workspace.l1_ssim(image, self.losses[0].target, gradient)
            self.workspace.backward(gradient, self.six, written)
        return image, written


def loss_of_others() -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """A differentiable loss for packages without one, and what it is: fused_ssim where installed, else PyTorch's."""
    try:
        from fused_ssim import fused_ssim
    except ImportError:
        return torch_loss, "L1 + SSIM by PyTorch's conv2d (fused_ssim is not installed)"

    def loss(image: Tensor, target: Tensor) -> Tensor:
        similarity = fused_ssim(image[None], target[None])
        return (1 - LAMBDA_DSSIM) * (image - target).abs().mean() + LAMBDA_DSSIM * (1 - similarity)

    return loss, "L1 by PyTorch, SSIM by fused_ssim"


class Gsplat:
    """The same step with gsplat.rasterization, a loss from outside and torch.optim.Adam(fused=True); no statistics."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        raw = {k: torch.from_numpy(v.copy()).to(device).requires_grad_() for k, v in case.values.items()}
        self.raw = raw
        self.optimizer = torch.optim.Adam(list(raw.values()), lr=0.0, eps=1e-15, fused=True)
        self.target = torch.from_numpy(case.target).to(device)
        camera = case.camera
        intrinsics = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
        self.view = torch.tensor(case.pose, dtype=torch.float32, device=device)[None]
        self.intrinsics = torch.tensor(intrinsics, dtype=torch.float32, device=device)[None]
        self.loss, _ = loss_of_others()

    def render(self) -> Tensor:
        """[3, H, W]."""
        from gsplat import rasterization

        raw = self.raw
        image, _, _ = rasterization(
            means=raw["means"],
            quats=raw["quats"],
            scales=raw["log_scales"].exp(),
            opacities=raw["logit_opacities"].sigmoid()[:, 0],
            colors=torch.cat([raw["sh0"], raw["shN"]], dim=1),
            viewmats=self.view,
            Ks=self.intrinsics,
            width=self.case.width,
            height=self.case.height,
            near_plane=0.2,
            sh_degree=3,
            packed=False,
        )
        return image[0].permute(2, 0, 1)

    def step(self) -> list[torch.cuda.Event]:
        """Events between rendering, loss, backward and Adam."""
        marks = [mark()]
        image = self.render()
        marks.append(mark())
        leaf = image.detach().requires_grad_()
        self.loss(leaf, self.target).backward()
        marks.append(mark())
        image.backward(leaf.grad)
        marks.append(mark())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.append(mark())
        return marks


def mark() -> torch.cuda.Event:
    """An event on the current stream, now."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def block(runner: Runner, steps: int = BLOCK) -> list[Times]:
    """Times of consecutive steps; nothing waits for the device but the steps themselves."""
    for _ in range(WARM_UP):
        runner.step()
    marks, inner = [mark()], []
    for _ in range(steps):
        inner.append(runner.step())
        marks.append(mark())
    marks[-1].synchronize()
    times = [{"whole": a.elapsed_time(b)} for a, b in pairwise(marks)]
    names = ("render", "loss", "backward", "adam")
    for found, own in zip(times, inner, strict=True):
        if own:
            found |= {name: a.elapsed_time(b) for name, (a, b) in zip(names, pairwise(own), strict=True)}
    return times


def measure(runners: dict[str, Runner], rounds: int) -> dict[str, dict[str, Times]]:
    """Minimum and median of whole steps and their parts, the runners taking turns in blocks of steps."""
    times: dict[str, list[Times]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            times[name] += block(runner)
    found = {name: summary(each) for name, each in times.items()}
    for name, runner in runners.items():
        if isinstance(runner, Ours):
            stages = summary([runner.stages() for _ in range(BLOCK)])
            for statistic, values in stages.items():
                found[name][statistic] |= with_sums(values)
    return found


def with_sums(stages: Times) -> Times:
    """The stages with `render` and `backward`, which holds Adam, added up."""
    render = sum(stages[k] for k in ("preprocess", "sort_bin", "forward"))
    return {**stages, "render": render, "backward": stages["blend_backward"] + stages["geometry"]}


def relative(found: Tensor, wanted: Tensor) -> float:
    """L2 of the difference over L2 of `wanted`; 0 where both are 0."""
    difference = torch.linalg.vector_norm((found - wanted).double())
    return float(difference / torch.linalg.vector_norm(wanted.double())) if difference else 0.0


def spread(case: Case, device: torch.device, runs: int = 5) -> dict[str, Any]:
    """How far runs of the same step lie apart.

    Returns
    -------
    deterministic_equal : whether `runs` runs gave the same bits, image and gradients. fast_image_equal : the same of
    the image on the fast path. fast : for each of the six gradients the largest relative L2 distance of a fast run from
    the deterministic ones, and largest : of all elements, the largest distance over that gradient's largest element.
    """
    still = Ours(case, device, deterministic=True)
    image, wanted = still.gradients()
    equal = True
    for _ in range(runs - 1):
        again, found = still.gradients()
        equal &= torch.equal(image, again) and all(map(torch.equal, wanted, found))
    quick = Ours(case, device)
    distance, largest, image_equal = [0.0] * len(wanted), 0.0, True
    for _ in range(runs):
        again, found = quick.gradients()
        image_equal &= torch.equal(image, again)
        distance = [max(d, relative(f, w)) for d, f, w in zip(distance, found, wanted, strict=True)]
        largest = max(
            [largest, *(float((f - w).abs().max() / w.abs().max()) for f, w in zip(found, wanted, strict=True))]
        )
    fields = dict(zip(fused.NAMES, distance, strict=True))
    return {
        **{"case": str(case), "seed": case.seed, "runs": runs},
        **{"deterministic_equal": equal, "fast_image_equal": image_equal, "fast": fields, "largest": largest},
    }
