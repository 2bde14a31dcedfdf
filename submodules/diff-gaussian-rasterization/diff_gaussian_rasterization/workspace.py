"""The layer below `fused.train_step`: forward, losses and backward one by one, on scratch memory of one's own.

Letters and the order of the six parameters are those of `fused`. Everything is a contiguous float32 tensor on the
device of the workspace.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diff_gaussian_rasterization.cameras import ROW, RasterCamera
from diff_gaussian_rasterization.checks import address, check_finite, check_range, check_written, size_of
from diff_gaussian_rasterization.devices import device_from, on
from diff_gaussian_rasterization.leases import at_work, handle, lease, owned, release
from diff_gaussian_rasterization.losses import Loss, loss_of
from diff_gaussian_rasterization.raw import Drawing, check_parameters, check_six
from diff_gaussian_rasterization.step_ops import STATISTICS
from diff_gaussian_rasterization.taps import Taps


class Workspace:
    """Scratch memory and the last forward pass. It only grows; keep one per trainer.

    One thread at a time: a second one is refused with a RuntimeError.

    `backward` and `backward_adam` belong to the last `forward`; the parameters must not have changed in between.

    Parameters
    ----------
    memory_limit : [bytes] of each camera's scratch memory, 0 = none. On the CPU images whose tile lists would need more
        are drawn in bands of tile rows, with the same bits; on CUDA they are refused with a MemoryError.
    device : "cpu", "cuda" (the current one) or "cuda:N", on which all tensors must be. On CUDA the work is queued on
        the current stream; on another stream than the last time it waits for that one.

    Attributes
    ----------
    handle : what the operators know it by. device : see above.

    Raises
    ------
    RuntimeError : CUDA, for which this build has no kernels or this machine no GPU.
    """

    def __init__(self, memory_limit: int = 0, device: str | torch.device = "cpu") -> None:
        check_range("memory_limit", memory_limit, 0, 1 << 62)
        self.device = device_from(device)
        own = lease(0, self.device, [])
        own.memory_limit = int(memory_limit)
        self.handle = handle(own)
        with on(self.device):
            release(owned(self.handle, 1, self.device))  # makes it
        self._lease, self._native = own, own.natives[0]
        self._forward: Drawing | None = None
        self._radii = torch.empty(0, dtype=torch.int32, device=self.device)

    def fix_capacity(self, fixed: bool = True) -> None:
        """For CUDA graphs: from now on no size is read back, and tile lists keep the room that they have.

        Do the same forward pass or step before, on the views with most (Gaussian, tile) pairs: what they needed, and a
        quarter more, is the capacity. Pairs beyond it are left out of the image, and `facts["overflow"]` tells. Do it
        once more afterwards, for all else that grows with the capacity. Then capture `train_step(..., workspace=this)`,
        or calls of this class, with torch.cuda.graph; the camera, learning rates and the number of the step are
        constants of the graph. A replay runs where graph.replay() is called: order it with other uses of the workspace,
        and keep the workspace as long as the graph; memory that it outgrows meanwhile goes with it. On the CPU nothing
        changes.

        Raises
        ------
        RuntimeError : nothing was drawn yet.
        """
        if self.device.type == "cuda":
            with at_work(self._lease):
                for native in self._lease.natives:
                    native.fix_capacity(fixed)

    @property
    def timing(self) -> bool:
        """Whether `facts` has the times of the stages: always on the CPU; on CUDA where it is set, by events."""
        return self.device.type == "cpu" or bool(self._native.timing)

    @timing.setter
    def timing(self, wanted: bool) -> None:
        if self.device.type == "cuda":
            for native in self._lease.natives:
                native.timing = wanted

    def forward(
        self,
        camera: RasterCamera,
        means: Tensor,
        log_scales: Tensor,
        quats: Tensor,
        logit_opacities: Tensor,
        sh0: Tensor,
        shN: Tensor,
        *,
        aux: bool = False,
        filter_3d: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Render.

        Parameters
        ----------
        filter_3d : [N] or None, standard deviation [world units] of the 3D smoothing filter.
        shN may be float16 on CUDA, with which there is no way back.

        Returns
        -------
        image [3, H, W] (background included, not clamped), transmittance [H, W] = 1 - alpha, and with `aux` the inverse
        depth [H, W] = sum of T alpha / z, else None.

        Raises
        ------
        TypeError, ValueError : a parameter or the camera does not fit. MemoryError : no room for the tile lists.
        """
        parameters = [means, log_scales, quats, logit_opacities, sh0, shN]
        count, rest = check_parameters(parameters, camera.sh_degree, self.device, half=True)
        half = shN.dtype == torch.float16
        if filter_3d is not None:
            check_written("filter_3d", filter_3d, (count,), device=self.device)
        plane = (camera.height, camera.width)
        image, transmittance = means.new_empty((3, *plane)), means.new_empty(plane)
        inverse_depth = means.new_empty(plane) if aux else None
        radii = means.new_empty(count, dtype=torch.int32)
        row = check_written("row of the camera", camera.row.detach(), (ROW,), torch.float64)
        with at_work(self._lease) as run:
            self._forward = None  # should this call fail, there is nothing to go back through
            self._radii = radii
            self._native.reserve([0, 0, 0], False)  # below a limit, what a training step left goes
            self._native.forward(
                address(row),
                *plane[::-1],
                camera.sh_degree,
                int(camera.antialiasing),
                [*map(address, parameters), 0, 0],
                address(filter_3d),
                count,
                3,
                3 * rest,
                rest,
                False,
                half,
                [address(image), address(transmittance), address(inverse_depth), 0, 0],
                address(radii),
                not half,
                run,
            )
            serial = self._native.serial
            self._forward = Drawing(count, rest, image, transmittance, inverse_depth, filter_3d, serial)
        return image, transmittance, inverse_depth

    def l1_ssim(
        self,
        image: Tensor,
        target: Tensor,
        grad: Tensor,
        *,
        weight: float = 1.0,
        lambda_dssim: float = 0.2,
        accumulate: bool = False,
        pixel_weights: Tensor | None = None,
    ) -> Loss:
        """Loss of an image against a target of its size; grad = (or +=) weight * dloss/dimage.

        Parameters
        ----------
        pixel_weights : [1, H, W], see `L1SSIM`; None = 1.

        Notes
        -----
        Kerbl et al. 2023, Eq. 7. SSIM: 11x11 Gaussian window, sigma 1.5, zero padding. The gradient of |x| at 0 is 0.
        """
        shape = (3, size_of("image", image, 1), size_of("image", image, 2))
        for name, value in (("image", image), ("target", target), ("grad", grad)):
            check_written(name, value, shape, device=self.device)
        if pixel_weights is not None:
            check_written("pixel_weights", pixel_weights, (1, *shape[1:]), device=self.device)
        terms = image.new_empty(3, dtype=torch.float64)
        with at_work(self._lease) as run:
            self._native.l1_ssim(
                *map(address, (image, target, pixel_weights, grad)),
                shape[2],
                shape[1],
                check_finite("weight", weight),
                check_range("lambda_dssim", lambda_dssim, 0, 1),
                accumulate,
                address(terms),
                run,
            )
        _changed(grad)
        return loss_of(terms)

    def lr_l1_ssim(
        self,
        image: Tensor,
        lr_target: Tensor,
        grad: Tensor,
        taps_x: Taps | tuple[ArrayLike, ArrayLike],
        taps_y: Taps | tuple[ArrayLike, ArrayLike],
        *,
        weight: float = 1.0,
        lambda_dssim: float = 0.2,
        accumulate: bool = False,
    ) -> Loss:
        """Loss of A image against the LR view; grad = (or +=) weight * A^T dloss/d(A image), of the image's size.

        Parameters
        ----------
        image, grad : [3, H, W]; lr_target : [3, h, w].
        taps_x, taps_y : the banded A along each axis as (start int32 [n_out], weight float32 [n_out, taps]); out[i] =
            sum_k weight[i, k] in[start[i] + k]; taps beyond the image must have weight 0.
        """
        height, width = size_of("image", image, 1), size_of("image", image, 2)
        lr_height, lr_width = size_of("lr_target", lr_target, 1), size_of("lr_target", lr_target, 2)
        check_written("image", image, (3, height, width), device=self.device)
        check_written("grad", grad, (3, height, width), device=self.device)
        check_written("lr_target", lr_target, (3, lr_height, lr_width), device=self.device)
        x, y = Taps.of("taps_x", taps_x, lr_width, width), Taps.of("taps_y", taps_y, lr_height, height)
        x, y = x.on(self.device), y.on(self.device)
        terms = image.new_empty(3, dtype=torch.float64)
        with at_work(self._lease) as run:
            self._native.lr_l1_ssim(
                *map(address, (image, lr_target, grad)),
                [address(x.start), address(x.weight)],
                [lr_width, width, x.weight.shape[1]],
                [address(y.start), address(y.weight)],
                [lr_height, height, y.weight.shape[1]],
                check_finite("weight", weight),
                check_range("lambda_dssim", lambda_dssim, 0, 1),
                accumulate,
                address(terms),
                run,
            )
        _changed(grad)
        return loss_of(terms)

    def backward(
        self,
        grad_image: Tensor,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        grad_transmittance: Tensor | None = None,
        grad_inverse_depth: Tensor | None = None,
        grad_means2d: Tensor | None = None,
    ) -> None:
        """Write the gradients of all six parameters (every element; nothing needs zeroing).

        Parameters
        ----------
        grad_image : [3, H, W]; grad_transmittance, grad_inverse_depth : [H, W], the latter needs forward(aux=True).
        parameters, grads : six tensors each, in the order of the module docstring.
        grad_means2d : [N, 3] or None; receives dL/d(screen position) in NDC units (x W/2, y H/2 per pixel), third = 0.
        """
        with at_work(self._lease) as run:
            of = self._of_backward(grad_means2d)
            gradients = of.gradients(grad_image, grad_transmittance, grad_inverse_depth)
            check_six(list(parameters), of.num, of.rest, self.device)
            check_six(list(grads), of.num, of.rest, self.device, "gradient of ")
            self._native.backward(
                [*map(address, parameters), 0, 0],
                address(of.filter_3d),
                address(of.transmittance),
                gradients,
                [*map(address, grads), 0, 0],
                [0] * 8,
                address(grad_means2d),
                0,
                0,
                [0] * 4,
                [0, 0],
                run,
            )
        _changed(*grads, grad_means2d)

    def backward_adam(
        self,
        grad_image: Tensor,
        parameters: Sequence[Tensor],
        *,
        exp_avg: Sequence[Tensor],
        exp_avg_sq: Sequence[Tensor],
        learning_rates: Sequence[float],
        step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        stats: Sequence[Tensor | None] = (None, None, None),
        grad_transmittance: Tensor | None = None,
        grad_inverse_depth: Tensor | None = None,
        grad_means2d: Tensor | None = None,
    ) -> None:
        """Backward, then one dense Adam step on parameters and moments in place (gradients never reach memory).

        Parameters
        ----------
        parameters, exp_avg, exp_avg_sq : six tensors each. learning_rates : six floats.
        step : 1 at the first call, for the bias correction.
        stats : (gradient_norm, count, max_radius) and optionally absolute_norm, each float32 [N] or None, changed in
            place as `fused.Statistics` says.

        Notes
        -----
        Arithmetic of torch.optim.Adam without weight decay, also for Gaussians and bands with zero gradient.
        """
        rates, four = [float(lr) for lr in learning_rates], [*stats, None][:4]
        if len(rates) != 6:
            raise ValueError(f"learning_rates: expected six, got {len(rates)}")
        if len(stats) not in (3, 4):
            raise ValueError(f"stats: expected three or the four {STATISTICS}, got {len(stats)}")
        check_range("step", step, 1, 1 << 62)
        with at_work(self._lease) as run:
            of = self._of_backward(grad_means2d)
            _check_statistics(four, of.num, self.device)
            gradients = of.gradients(grad_image, grad_transmittance, grad_inverse_depth)
            check_six(list(parameters), of.num, of.rest, self.device)
            check_six(list(exp_avg), of.num, of.rest, self.device, "exp_avg of ")
            check_six(list(exp_avg_sq), of.num, of.rest, self.device, "exp_avg_sq of ")
            self._native.backward_adam(
                [*map(address, parameters)],
                address(of.filter_3d),
                address(of.transmittance),
                gradients,
                [0] * 6,
                [*map(address, exp_avg)],
                [*map(address, exp_avg_sq)],
                rates,
                step,
                [*betas],
                eps,
                0,
                address(grad_means2d),
                [*map(address, four)],
                [0, 0],
                run,
            )
        _changed(*parameters, *exp_avg, *exp_avg_sq, *four, grad_means2d)

    def contributions(
        self, max_weight: Tensor | None = None, weight: Tensor | None = None, pixels: Tensor | None = None
    ) -> None:
        """What each Gaussian contributed to the last image, combined in place with what the tensors hold.

        Parameters
        ----------
        max_weight, weight, pixels : float32 [N] or None: the maximum with its largest T alpha of a pixel, plus its sum
            of T alpha, plus its number of pixels. Start from zeros; several images may follow each other.
        """
        with at_work(self._lease) as run:
            num = self._last("contributions").num
            for name, value in (("max_weight", max_weight), ("weight", weight), ("pixels", pixels)):
                if value is not None:
                    check_written(name, value, (num,), device=self.device)
            self._native.contributions([*map(address, (max_weight, weight, pixels))], run)
        _changed(max_weight, weight, pixels)

    @property
    def radii(self) -> Tensor:
        """int32 [N], [px], of the last forward; 0 = not visible by the original's 3-sigma rule."""
        return self._radii

    @property
    def facts(self) -> dict[str, Any]:
        """Of the last calls: drawn, instances, invalid (culled for NaN, Inf or range), bytes, bands, overflow and
        stage_ms.

        The stage `loss` sums the terms since the last forward. With several cameras those of the first; bytes and
        bands of the one that has most, overflow of any (pairs beyond a fixed capacity are missing from the image). On
        CUDA this waits for what is queued on the current stream; bands are 1, and stage_ms is empty without `timing`.
        """
        with at_work(self._lease) as run:
            each = [native.facts(run) for native in self._lease.natives]
        return each[0] | {name: max(facts[name] for facts in each) for name in ("bytes", "bands", "overflow")}

    def _last(self, caller: str) -> Drawing:
        if self._forward is None or self._forward.serial != self._native.serial:
            raise ValueError(f"{caller}: call forward first")
        return self._forward

    def _of_backward(self, grad_means2d: Tensor | None) -> Drawing:
        of = self._last("backward")
        if grad_means2d is not None:
            check_written("grad_means2d", grad_means2d, (of.num, 3), device=self.device)
        return of


def _check_statistics(stats: Sequence[Tensor | None], count: int, device: torch.device) -> None:
    for name, value in zip(STATISTICS, stats, strict=True):
        if value is not None:
            check_written(name, value, (count,), device=device)


def _changed(*tensors: Tensor | None) -> None:
    """Count the versions of tensors that were written by address, so that autograd notices."""
    torch.autograd.graph.increment_version([t for t in tensors if t is not None])
