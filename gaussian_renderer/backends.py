"""The rasterizers that `render` can choose from: our native one, the gsplat package on a GPU, the plain reference.

All take activated Splats and give the same RenderOutput; radii and the gradient of `means2d` follow the original
3DGS code whatever the backend, because densification counts on them.
"""

import re
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gaussian_renderer import reference
from gaussian_renderer.splats import (
    RenderOutput,
    RenderSettings,
    Splats,
    depth_map,
    full_covariances,
    screen_means,
    viewed_colors,
)
from scene.cameras import Camera
from utils.compute import choose_device, use_device
from utils.errors import UserError
from utils.log import warn


@runtime_checkable
class Rasterizer(Protocol):
    """Splats seen by a camera become an image; differentiable in every tensor of `splats`."""

    def __call__(self, camera: Camera, splats: Splats, settings: RenderSettings) -> RenderOutput: ...


def instruction_set() -> str:
    """Return the one that the native kernels use.

    Raises
    ------
    UserError : the package is not built, or SPLAT_ISA is none of this processor's instruction sets.
    """
    try:
        from diff_gaussian_rasterization import isa

        return isa()
    except ImportError as error:
        raise UserError(
            f"--rasterizer native: {error}; build it with `make build`, or use --rasterizer reference (slow)"
        ) from error
    except RuntimeError as error:
        raise UserError(f"--rasterizer native: {error}") from error


def missing_on_gpu(device: torch.device) -> str | None:
    """Say why the native kernels cannot use this GPU; None = they can.

    Raises
    ------
    UserError : the package is not built.
    """
    instruction_set()
    from diff_gaussian_rasterization import _native

    build: str = _native.cuda_build
    if build.startswith("no: "):
        return f"it was built without CUDA kernels ({build.removeprefix('no: ')})"
    major, minor = torch.cuda.get_device_capability(device)
    if not _covers(build, major, minor):
        return f"its CUDA kernels were built for {build}, this GPU has compute capability {major}.{minor}"
    return None


def _covers(build: str, major: int, minor: int) -> bool:
    """Whether one of CMake's architectures runs on this GPU: machine code within a major version, PTX from there on.

    True also for a name without a number (native, all), which does not say.
    """
    listed = re.findall(r"(\d+)\w*(-real|-virtual)?", build)
    for number, kind in listed:
        architecture = divmod(int(number), 10)
        if kind != "-real" and architecture <= (major, minor):
            return True
        if kind != "-virtual" and architecture[0] == major and architecture[1] <= minor:
            return True
    return not listed


def device_for(flag: str, rasterizer: str) -> str:
    """Return the device that --device means, and make it the current one; "auto" is a GPU only where all runs there.

    Raises
    ------
    UserError : a GPU was asked for that is not there, or that the rasterizer cannot use.
    """
    device = choose_device(flag)
    if device.type == "cuda" and rasterizer == "native" and (problem := missing_on_gpu(device)):
        if flag != "auto":
            raise UserError(
                f"--device {flag}: the native rasterizer cannot use it: {problem}; "
                "use --rasterizer gsplat or --device cpu"
            )
        warn(f"--device auto: on the CPU although there is a GPU, which the native rasterizer cannot use: {problem}")
        device = torch.device("cpu")
    use_device(device)
    return str(device)


def native_rasterizer(camera: Camera, splats: Splats, settings: RenderSettings) -> RenderOutput:
    """Render with our own kernels, submodules/diff-gaussian-rasterization.

    Raises
    ------
    UserError : the package is not built, SPLAT_ISA is none of this processor's instruction sets, the Gaussians are not
        float32, or on a device that the build has no kernels for.

    Notes
    -----
    Needs contiguous float32; anything that is not contiguous is copied.
    """
    instruction_set()
    from diff_gaussian_rasterization import RasterCamera, rasterize_extended

    _check_native(splats)
    pinhole = RasterCamera(
        width=camera.width,
        height=camera.height,
        fx=camera.fx,
        fy=camera.fy,
        cx=camera.cx,
        cy=camera.cy,
        world_to_camera=camera.world_to_camera,
        background=settings.background.tolist(),
        sh_degree=settings.sh_degree,
        scale_modifier=settings.scale_modifier,
        antialiasing=settings.antialiasing,
        dilation=settings.dilation,
    )
    means2d = screen_means(splats.means)
    tensors = {name: value.contiguous() for name, value in vars(splats).items() if value is not None}
    means, opacities, limit = tensors.pop("means"), tensors.pop("opacities"), settings.memory_bytes or None
    out = rasterize_extended(pinhole, means, opacities, means2d=means2d, memory_limit=limit, **tensors)
    depth = depth_map(out.alpha, out.inverse_depth)
    return RenderOutput(out.color, out.alpha, out.inverse_depth, depth, out.radii, means2d)


def _check_native(splats: Splats) -> None:
    dtype, device = splats.means.dtype, splats.means.device
    if dtype != torch.float32:
        raise UserError(f"--rasterizer native: the Gaussians are {dtype} on {device}; it needs float32")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--rasterizer native: the Gaussians are on {device}; use --device cpu or cuda")
    if device.type == "cuda" and (problem := missing_on_gpu(device)):
        raise UserError(
            f"--rasterizer native: the Gaussians are on {device}, but {problem}; "
            "use --rasterizer gsplat or --device cpu"
        )


def gsplat_arguments(camera: Camera, splats: Splats, settings: RenderSettings) -> dict[str, Any]:
    """Keyword arguments of `gsplat.rasterization` (1.4 and later) for one view.

    Returns
    -------
    means [N, 3]; quats [N, 4] (w x y z) and scales [N, 3], or covars [N, 3, 3]; opacities [N]; colors [N, 4]: RGB as
    seen by the camera and 1 / z; viewmats [1, 4, 4] world to camera, OpenCV axes; Ks [1, 3, 3] pixels, corner origin
    (gsplat too samples pixel i at i + 1/2); backgrounds [1, 4]; sizes and modes.

    Notes
    -----
    Colours are evaluated here, not by gsplat, so that 1 / z can be blended as a fourth channel: gsplat's own depth
    modes give sum(w z), from which the inverse depth of the original code, sum(w / z), cannot be had.
    """
    means = splats.means
    to_camera = torch.as_tensor(camera.world_to_camera).to(means)  # [4, 4]
    z = means @ to_camera[2, :3] + to_camera[2, 3]
    in_front = z > reference.NEAR_Z  # the others are culled; no infinities may enter the gradient of z
    colors = splats.colors
    if colors is None:
        assert splats.sh is not None
        colors = viewed_colors(camera, means, splats.sh, settings.sh_degree)
    inverse_z = torch.where(in_front, 1 / torch.where(in_front, z, 1.0), 0.0)
    shape: dict[str, Tensor | None]
    if splats.covariances is not None:
        shape = {"quats": None, "scales": None, "covars": full_covariances(splats.covariances)}
    else:
        assert splats.scales is not None
        shape = {"quats": splats.quats, "scales": splats.scales * settings.scale_modifier}
    return {
        "means": means,
        **shape,
        "opacities": splats.opacities[:, 0],
        "colors": torch.cat([colors, inverse_z[:, None]], dim=1),  # [N, 4]
        "viewmats": to_camera[None],
        "Ks": torch.as_tensor(camera.K).to(means)[None],
        "width": camera.width,
        "height": camera.height,
        "near_plane": reference.NEAR_Z,
        "eps2d": settings.dilation,
        "sh_degree": None,
        "packed": False,
        "backgrounds": torch.cat([settings.background.to(means), means.new_zeros(1)])[None],
        "render_mode": "RGB",
        "rasterize_mode": "antialiased" if settings.antialiasing else "classic",
    }


def gsplat_rasterizer(camera: Camera, splats: Splats, settings: RenderSettings) -> RenderOutput:
    """Render through the registry's gsplat package.

    Raises
    ------
    UserError : the tensors are not on a GPU, or the package is not installed.

    Notes
    -----
    Known differences from `native`: gsplat limits the Jacobian at the image's own borders + 0.3 tan(fov/2) (other only
    for off-centre principal points), passes no gradient where alpha is capped, and its antialiasing has no floor.
    """
    if not splats.means.is_cuda:
        raise UserError(
            f"--rasterizer gsplat: the Gaussians are on {splats.means.device}; it needs an NVIDIA GPU (--device cuda), "
            "or use --rasterizer native"
        )
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise UserError(f"--rasterizer gsplat: {error}; pip install gsplat, or use --rasterizer native") from error
    means2d = screen_means(splats.means)
    images, alphas, meta = rasterization(**gsplat_arguments(camera, splats, settings))
    _collect_screen_gradient(meta["means2d"], means2d, camera)
    image = images[0].permute(2, 0, 1)  # [4, H, W]
    alpha = alphas[0, :, :, 0]
    radii = reference.radii(camera, splats, settings)
    return RenderOutput(image[:3], alpha, image[3], depth_map(alpha, image[3]), radii, means2d)


def _collect_screen_gradient(pixels: Tensor, means2d: Tensor, camera: Camera) -> None:
    """Add gsplat's gradient of the projected means [1, N, 2] (pixels) to `means2d.grad` (normalised coordinates)."""
    if not pixels.requires_grad:
        return
    half_size = pixels.new_tensor([camera.width / 2, camera.height / 2])

    def add(gradient: Tensor) -> None:
        if means2d.grad is None:
            means2d.grad = torch.zeros_like(means2d)
        means2d.grad[:, :2] += gradient[0] * half_size

    pixels.register_hook(add)


RASTERIZERS: dict[str, Rasterizer] = {
    "native": native_rasterizer,
    "gsplat": gsplat_rasterizer,
    "reference": reference.rasterize,
}
