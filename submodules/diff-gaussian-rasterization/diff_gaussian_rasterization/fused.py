"""Training without autograd: raw parameters in, image out, losses with their gradient, and backward + Adam in place.

Letters: N Gaussians, H x W pixels, K = number of spherical-harmonics coefficients beyond the first that `shN` holds
(15 for degree 3). Images are float32 [3, H, W]. Everything is a contiguous float32 CPU tensor. The number of threads
is torch.get_num_threads() at each call; results are bit-equal for any number.

Order of the six parameters, everywhere: means [N, 3], log_scales [N, 3], quats [N, 4] (w x y z, any length),
logit_opacities [N, 1], sh0 [N, 1, 3], shN [N, K, 3].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diff_gaussian_rasterization import _native
from diff_gaussian_rasterization.checks import address, check_range, check_tensor

NAMES = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")
MAX_SIDE_PX = 1 << 15
FRUSTUM_MARGIN = 1.3  # J is linearised no further out than this times tan(fov / 2)


class Loss(NamedTuple):
    """Mean absolute error, mean SSIM, and (1 - lambda) l1 + lambda (1 - ssim)."""

    l1: float
    ssim: float
    loss: float


@dataclass(frozen=True, eq=False)
class RasterCamera:
    """A pinhole camera and how to draw with it.

    Parameters
    ----------
    width, height : [px]
    fx, fy, cx, cy : [px], corner-origin: the centre of the first pixel is at 0.5.
    world_to_camera : [4, 4], OpenCV axes (x right, y down, z forward); array or tensor.
    background : three values.
    sh_degree : bands used, 0 to 3; higher ones in `shN` are left out and get zero gradient.
    scale_modifier : factor on all scales.
    antialiasing : opacity is scaled by sqrt(det without / det with dilation), Mip-Splatting's 2D filter.
    dilation : [px^2], added to both screen variances.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: np.ndarray | Tensor
    background: Sequence[float] | Tensor = (0.0, 0.0, 0.0)
    sh_degree: int = 3
    scale_modifier: float = 1.0
    antialiasing: bool = False
    dilation: float = 0.3

    def native(self) -> Any:
        """The same for the kernels (pixel centres at integers there)."""
        check_range("width", self.width, 0, MAX_SIDE_PX)
        check_range("height", self.height, 0, MAX_SIDE_PX)
        check_range("sh_degree", self.sh_degree, 0, 3)
        check_range("fx", self.fx, 1e-6, 1e9)
        check_range("fy", self.fy, 1e-6, 1e9)
        pose = np.asarray(self.world_to_camera, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError(f"world_to_camera: expected a finite [4, 4] matrix, got {pose.shape}")
        rotation, translation = pose[:3, :3], pose[:3, 3]
        return _native.make_camera(
            width=self.width,
            height=self.height,
            rotation=rotation.ravel().tolist(),
            translation=translation.tolist(),
            centre=np.linalg.solve(rotation, -translation).tolist(),
            pinhole=[self.fx, self.fy, self.cx - 0.5, self.cy - 0.5],
            jacobian_focal=[self.fx, self.fy],
            slope_limit=[FRUSTUM_MARGIN * self.width / (2 * self.fx), FRUSTUM_MARGIN * self.height / (2 * self.fy)],
            background=[float(v) for v in self.background],
            scale_modifier=self.scale_modifier,
            dilation=self.dilation,
            sh_degree=self.sh_degree,
            antialiasing=self.antialiasing,
        )


class Workspace:
    """Scratch memory and the last forward pass. It only grows; keep one per trainer.

    `backward` and `backward_adam` belong to the last `forward`; the parameters must not have changed in between.
    """

    def __init__(self) -> None:
        self._native = _native.Rasterization()
        self._forward: tuple[RasterCamera, int, Tensor, Tensor, Tensor | None] | None = None
        self._radii = torch.empty(0, dtype=torch.int32)

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
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Render.

        Returns
        -------
        image [3, H, W] (background included, not clamped), transmittance [H, W] = 1 - alpha, and with `aux` the inverse
        depth [H, W] = sum of T alpha / z, else None.

        Raises
        ------
        TypeError, ValueError : a parameter or the camera does not fit. MemoryError : no room for the tile lists.
        """
        parameters = _check_six((means, log_scales, quats, logit_opacities, sh0, shN), means.shape[0], "")
        count, rest = means.shape[0], shN.shape[1]
        if (camera.sh_degree + 1) ** 2 - 1 > rest:
            raise ValueError(f"shN: degree {camera.sh_degree} needs more than its {rest} coefficients")
        size = (camera.height, camera.width)
        image, transmittance = torch.empty(3, *size), torch.empty(size)
        inverse_depth = torch.empty(size) if aux else None
        self._radii = torch.empty(count, dtype=torch.int32)
        self._forward = None  # should this call fail, there is nothing to go back through
        self._native.forward(
            camera.native(),
            [*map(address, parameters), 0, 0],
            0,
            count,
            3,
            3 * rest,
            rest,
            False,
            [address(image), address(transmittance), address(inverse_depth), 0, 0],
            address(self._radii),
            torch.get_num_threads(),
        )
        self._forward = (camera, count, image, transmittance, inverse_depth)
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
    ) -> Loss:
        """Loss of an image against a target of its size; grad = (or +=) weight * dloss/dimage.

        Notes
        -----
        Kerbl et al. 2023, Eq. 7. SSIM: 11x11 Gaussian window, sigma 1.5, zero padding. The gradient of |x| at 0 is 0.
        """
        shape = tuple(image.shape)
        check_tensor("image", image, (3, None, None))
        check_tensor("target", target, shape)
        check_tensor("grad", grad, shape)
        terms = self._native.l1_ssim(
            *map(address, (image, target, grad)),
            shape[2],
            shape[1],
            weight,
            check_range("lambda_dssim", lambda_dssim, 0, 1),
            accumulate,
            torch.get_num_threads(),
        )
        return Loss(*terms)

    def lr_l1_ssim(
        self,
        image: Tensor,
        lr_target: Tensor,
        grad: Tensor,
        taps_x: tuple[ArrayLike, ArrayLike],
        taps_y: tuple[ArrayLike, ArrayLike],
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
        check_tensor("image", image, (3, None, None))
        check_tensor("grad", grad, tuple(image.shape))
        check_tensor("lr_target", lr_target, (3, None, None))
        start_x, weight_x = _check_taps("taps_x", taps_x, lr_target.shape[2], image.shape[2])
        start_y, weight_y = _check_taps("taps_y", taps_y, lr_target.shape[1], image.shape[1])
        terms = self._native.lr_l1_ssim(
            *map(address, (image, lr_target, grad)),
            [start_x.ctypes.data, weight_x.ctypes.data],
            [lr_target.shape[2], image.shape[2], weight_x.shape[1]],
            [start_y.ctypes.data, weight_y.ctypes.data],
            [lr_target.shape[1], image.shape[1], weight_y.shape[1]],
            weight,
            check_range("lambda_dssim", lambda_dssim, 0, 1),
            accumulate,
            torch.get_num_threads(),
        )
        return Loss(*terms)

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
        transmittance, gradients, count = self._backward_images(grad_image, grad_transmittance, grad_inverse_depth)
        six = _check_six(parameters, count, "")
        out = _check_six(grads, count, "gradient of ")
        if out[5].shape != six[5].shape:
            raise ValueError(f"gradient of shN: expected shape {list(six[5].shape)}, got {list(out[5].shape)}")
        if grad_means2d is not None:
            check_tensor("grad_means2d", grad_means2d, (count, 3))
        self._native.backward(
            [*map(address, six), 0, 0],
            0,
            transmittance,
            gradients,
            [*map(address, out), 0, 0],
            [0] * 8,
            address(grad_means2d),
            0,
            0,
            torch.get_num_threads(),
        )

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
        stats: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
        grad_transmittance: Tensor | None = None,
        grad_inverse_depth: Tensor | None = None,
        grad_means2d: Tensor | None = None,
    ) -> None:
        """Backward, then one dense Adam step on parameters and moments in place (gradients never reach memory).

        Parameters
        ----------
        parameters, exp_avg, exp_avg_sq : six tensors each. learning_rates : six floats.
        step : 1 at the first call, for the bias correction.
        stats : (grad_norm_sum, count, max_radius), each float32 [N] or None, added to in place: norm of grad_means2d,
            1 where the Gaussian was visible (radii > 0), and the maximum with its radius [px].

        Notes
        -----
        Arithmetic of torch.optim.Adam without weight decay, also for Gaussians and bands with zero gradient.
        """
        transmittance, gradients, count = self._backward_images(grad_image, grad_transmittance, grad_inverse_depth)
        six = _check_six(parameters, count, "")
        mean, square = _check_six(exp_avg, count, "exp_avg of "), _check_six(exp_avg_sq, count, "exp_avg_sq of ")
        if not six[5].shape == mean[5].shape == square[5].shape:
            raise ValueError("shN, its exp_avg and exp_avg_sq must have one shape")
        if len(learning_rates) != 6:
            raise ValueError(f"learning_rates: expected six, got {len(learning_rates)}")
        check_range("step", step, 1, 1 << 62)
        _check_statistics(stats, grad_means2d, count)
        self._native.backward_adam(
            [*map(address, six)],
            0,
            transmittance,
            gradients,
            [0] * 6,
            [*map(address, mean)],
            [*map(address, square)],
            [float(lr) for lr in learning_rates],
            step,
            [*betas],
            eps,
            0,
            address(grad_means2d),
            [*map(address, stats), 0],
            torch.get_num_threads(),
        )

    @property
    def radii(self) -> Tensor:
        """int32 [N], [px], of the last forward; 0 = not visible by the original's 3-sigma rule."""
        return self._radii

    @property
    def facts(self) -> dict[str, Any]:
        """Of the last calls: drawn, instances, invalid (culled for NaN, Inf or range), bytes, stage_ms."""
        return self._native.facts()

    def _backward_images(
        self, grad_image: Tensor, grad_transmittance: Tensor | None, grad_inverse_depth: Tensor | None
    ) -> tuple[int, list[int], int]:
        if self._forward is None:
            raise ValueError("backward: call forward first")
        _, count, image, transmittance, inverse_depth = self._forward
        check_tensor("grad_image", grad_image, tuple(image.shape))
        if grad_transmittance is not None:
            check_tensor("grad_transmittance", grad_transmittance, tuple(transmittance.shape))
        if grad_inverse_depth is not None:
            if inverse_depth is None:
                raise ValueError("grad_inverse_depth: the forward pass was without aux=True")
            check_tensor("grad_inverse_depth", grad_inverse_depth, tuple(inverse_depth.shape))
        gradients = [*map(address, (grad_image, grad_transmittance, grad_inverse_depth)), 0, 0]
        return address(transmittance), gradients, count


def _check_statistics(
    stats: tuple[Tensor | None, Tensor | None, Tensor | None], grad_means2d: Tensor | None, count: int
) -> None:
    for name, value in zip(("grad_norm_sum", "count", "max_radius"), stats, strict=True):
        if value is not None:
            check_tensor(name, value, (count,))
    if grad_means2d is not None:
        check_tensor("grad_means2d", grad_means2d, (count, 3))


def _check_six(tensors: Sequence[Tensor], count: int, what: str) -> list[Tensor]:
    if len(tensors) != 6:
        raise ValueError(f"{what}parameters: expected the six {NAMES}, got {len(tensors)}")
    shapes = ((count, 3), (count, 3), (count, 4), (count, 1), (count, 1, 3), (count, None, 3))
    checked = [check_tensor(what + name, t, shape) for name, t, shape in zip(NAMES, tensors, shapes, strict=True)]
    if checked[5].shape[1] > 15:
        raise ValueError(f"{what}shN: at most 15 coefficients, got {checked[5].shape[1]}")
    return checked


def _check_taps(
    name: str, taps: tuple[ArrayLike, ArrayLike], outputs: int, inputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return start and weight as arrays that the kernels can read."""
    start, weight = (np.ascontiguousarray(t) for t in taps)
    if start.dtype != np.int32 or weight.dtype != np.float32:
        raise TypeError(f"{name}: expected int32 and float32, got {start.dtype} and {weight.dtype}")
    if start.shape != (outputs,) or weight.ndim != 2 or weight.shape[0] != outputs or weight.shape[1] < 1:
        raise ValueError(f"{name}: expected [{outputs}] and [{outputs}, taps], got {start.shape} and {weight.shape}")
    position = start[:, None] + np.arange(weight.shape[1], dtype=np.int64)
    if (start < 0).any() or (start >= inputs).any() or weight[position >= inputs].any():
        raise ValueError(f"{name}: taps reach beyond the {inputs} input pixels")
    return start, weight
