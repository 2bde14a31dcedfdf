"""Our rasterizer as runners: the fused interface, in this process or with an instruction set of its own in another."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from diff_gaussian_rasterization import RasterCamera, fused, isa

from benchmarks import gen
from benchmarks.cases import Case, Times, timed_step
from scene.lr_kernel import LRKernel

LR_SCALE = 4
LAMBDA_TEX = 0.4  # weight of the HR term where there are two (Ko et al., "Sequence Matters", AAAI 2025)
OTHER_TAPS = 1 + 2.0**-20  # factor of the second set of taps, see Fused
SETTLE_S = 10.0  # how long a process may take to end


def camera_of(case: Case) -> RasterCamera:
    """The benchmark's camera."""
    pose = np.eye(4)
    pose[2, 3] = gen.DISTANCE
    focal = gen.focal_px(case.size)
    return RasterCamera(case.size, case.size, focal, focal, case.size / 2, case.size / 2, pose)


class Fused:
    """One `fused.train_step` on raw parameters; nothing that one step caches helps the next.

    Parameters
    ----------
    two_term : the paper's objective, L(R, V) at full size and L(A R, I) at a quarter of it, instead of the first alone.

    Notes
    -----
    A workspace keeps the matrices of the last LR taps. Steps with both terms take turns with two sets of taps that
    differ in their last bits, so each step makes these matrices anew; train.py, one kernel for all views, need not.
    """

    def __init__(self, case: Case, threads: int, *, two_term: bool = False) -> None:
        self.six = [torch.from_numpy(v.copy()) for v in case.values.values()]
        self.mean, self.square = ([torch.zeros_like(p) for p in self.six] for _ in range(2))
        self.camera, self.threads = camera_of(case), threads
        self.turns = (
            [objective(case, taps_factor) for taps_factor in (1.0, OTHER_TAPS)] if two_term else [[hr_term(case)]]
        )
        self.steps = 0
        self.stats = fused.Statistics(*(torch.zeros(case.n) for _ in range(3)))
        self.workspace = fused.Workspace()

    def step(self) -> Times:
        torch.set_num_threads(self.threads)
        losses = self.turns[self.steps % len(self.turns)]
        self.steps += 1
        start = time.perf_counter()
        fused.train_step(
            self.camera,
            self.six,
            exp_avg=self.mean,
            exp_avg_sq=self.square,
            learning_rates=(0.0,) * 6,
            step=100,
            losses=losses,
            stats=self.stats,
            workspace=self.workspace,
        )
        whole = (time.perf_counter() - start) * 1e3
        stages = self.workspace.facts["stage_ms"]
        if len(losses) > 1:  # the kernels time each term alone; the call's overhead goes with them here
            stages["loss"] = whole - sum(ms for name, ms in stages.items() if name != "loss")
        return {**stages, "whole": whole}

    @property
    def facts(self) -> dict[str, Any]:
        """Instruction set; of the last step: Gaussians drawn, (tile, Gaussian) instances, bytes of scratch memory."""
        return {"isa": isa(), **{k: self.workspace.facts[k] for k in ("drawn", "instances", "bytes")}}


def hr_term(case: Case, weight: float = 1.0) -> fused.L1SSIM:
    """L1 + SSIM at full size."""
    return fused.L1SSIM(torch.from_numpy(case.target), weight=weight)


def objective(case: Case, taps_factor: float) -> list[fused.L1SSIM | fused.LowResolution]:
    """Both terms of the paper's loss, the LR operator's taps along each axis times `taps_factor`."""
    kernel = LRKernel("bicubic", "renormalise", (case.size,) * 2, (case.size // LR_SCALE,) * 2)
    taps = {axis: (start, weight * np.float32(taps_factor)) for axis in "xy" for start, weight in [kernel.taps(axis)]}
    lr_target = kernel.down(torch.from_numpy(case.target)).contiguous()
    lr_term = fused.LowResolution(lr_target, taps["x"], taps["y"], weight=1 - LAMBDA_TEX)
    return [hr_term(case, LAMBDA_TEX), lr_term]


class Written:
    """The same stages one by one, the gradients written instead of Adam's step: what is left is Adam's share."""

    def __init__(self, case: Case, threads: int) -> None:
        self.six = [torch.from_numpy(v.copy()) for v in case.values.values()]
        self.written = [torch.zeros_like(p) for p in self.six]
        self.camera, self.threads = camera_of(case), threads
        self.target, self.gradient = torch.from_numpy(case.target), torch.empty(case.target.shape)
        self.workspace = fused.Workspace()

    def step(self) -> Times:
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        image, _, _ = self.workspace.forward(self.camera, *self.six)
        self.workspace.l1_ssim(image, self.target, self.gradient)
        self.workspace.backward(self.gradient, self.six, self.written)
        whole = (time.perf_counter() - start) * 1e3
        return {**self.workspace.facts["stage_ms"], "whole": whole}


class Worker:
    """`Fused` under another SPLAT_ISA. The set is chosen once a process, so this one takes its turns through a pipe."""

    def __init__(self, case: Case, threads: int, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, (self.pipe, theirs) = name, context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, case, threads, name), daemon=True)
        self.process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()

    def step(self) -> Times:
        self.pipe.send(None)
        return self._receive()

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self.pipe.close()
        self.process.join(SETTLE_S)

    def __del__(self) -> None:
        self.pipe.close()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join(SETTLE_S)
            raise RuntimeError(
                f"the process that runs {self.name} ended with code {self.process.exitcode}; its message is above"
            ) from None


def serve(pipe: Connection, case: Case, threads: int, name: str) -> None:
    """Carry out one step for every message, until the other end closes."""
    os.environ["SPLAT_ISA"] = name  # read when the first kernel is called
    runner = Fused(case, threads)
    runner.step()
    pipe.send(runner.facts)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(timed_step(runner))
