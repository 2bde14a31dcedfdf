"""Settings that several scripts share: how a run behaves, what is loaded, how it is rasterized.

Names, short flags and defaults of the loading and pipeline groups are those of the original 3DGS code.
"""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError

COMPAT = ("", "sequence_matters")
RASTERIZERS = ("native", "gsplat", "reference")


@dataclass(frozen=True)
class CommonParams:
    """How the run behaves"""

    seed: int = opt(0, "seed of every random number", result=False)
    quiet: bool = opt(False, "no progress, results and errors only", result=False)
    device: str = opt("auto", "auto, cpu, or cuda[:N]", result=False)
    threads: int = opt(0, "CPU threads; 0 = all", result=False)
    skip_done: bool = opt(
        False, "do nothing where results of the same inputs, settings and code are there", result=False
    )
    overwrite: bool = opt(False, "replace results that were made with other settings", result=False)
    dry_run: bool = opt(False, "check inputs, print sizes, memory and time, write nothing", result=False)
    compat: str = opt("", "sequence_matters: the paper's released behaviour, quirk by quirk", choices=COMPAT)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UserError(f"--threads {self.threads}: 0 (all) or more is expected")
        if not (
            self.device in ("auto", "cpu", "cuda") or (self.device.startswith("cuda:") and self.device[5:].isdigit())
        ):
            raise UserError(f"--device {self.device}: auto, cpu, cuda or cuda:N is expected")


@dataclass(frozen=True)
class ModelParams:
    """What is loaded"""

    sh_degree: int = opt(3, "maximum spherical-harmonics degree", choices=range(4))
    source_path: str = opt("", "scene folder: NeRF-synthetic, COLMAP or transforms.json", "-s", result=False)
    model_path: str = opt("", "output folder", "-m", result=False)
    images: str = opt("images", "image folder of a COLMAP scene", "-i")
    resolution: int = opt(-1, "1, 2, 4, 8 divide; -1 caps the width at 1600 px; else a width in px", "-r")
    white_background: bool = opt(False, "compose on white instead of black", "-w")
    data_device: str = opt(
        "",
        "cpu: images wait in main memory also when training runs on a GPU; default: on it where they fit",
        result=False,
    )
    eval: bool = opt(False, "hold out test views")
    hr_root: str = opt("", "folder with the high-resolution truth; default: what lr_kernel.json says", result=False)
    lr_kernel: str = opt("", "how the LR views were made: bicubic, area, or a JSON file; default: lr_kernel.json")
    allow_missing: bool = opt(False, "skip images that a scene lists and the disk lacks")

    def __post_init__(self) -> None:
        if self.resolution == 0 or self.resolution < -1:
            raise UserError(f"--resolution {self.resolution}: -1, 1, 2, 4, 8 or a width in px is expected")


@dataclass(frozen=True)
class PipelineParams:
    """How Gaussians become pixels"""

    convert_SHs_python: bool = opt(False, "evaluate spherical harmonics in PyTorch")
    compute_cov3D_python: bool = opt(False, "compute 3D covariances in PyTorch")
    debug: bool = opt(False, "accepted for scripts written for 3DGS; no effect", result=False)
    antialiasing: bool = opt(False, "opacity compensation for the screen-space dilation")
    dilation: float = opt(0.3, "blur of every splat on the screen [px^2]; Mip-Splatting has 0.1")
    rasterizer: str = opt("native", "native, gsplat (GPU package) or reference (plain PyTorch)", choices=RASTERIZERS)
    raster_memory: int = opt(
        0, "bound of the native rasterizer's own memory [MB], kept by drawing in bands; 0 = no bound", result=False
    )

    def __post_init__(self) -> None:
        if self.raster_memory < 0:
            raise UserError(f"--raster_memory {self.raster_memory}: 0 (no bound) or a number of MB is expected")
        if not 0 <= self.dilation < float("inf"):  # written so that NaN is refused
            raise UserError(f"--dilation {self.dilation}: 0 or more is expected")

    @property
    def raster_memory_bytes(self) -> int:
        """The bound that the kernels are given; 0 = none."""
        return self.raster_memory * 1_000_000
