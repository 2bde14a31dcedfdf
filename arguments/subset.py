"""Settings of scene.subset."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class SubsetParams:
    """Which part of a NeRF-synthetic scene is taken, and at what size"""

    source_path: str = opt("", "NeRF-synthetic scene; only read", "-s")
    output_path: str = opt("", "folder of the smaller scene", "-o")
    hr_root: str = opt("", "folder in which images are looked for that lie outside the scene")
    azimuth: tuple[float, ...] = opt(
        (0.0, 360.0), "camera between these angles about the z axis, in degrees, the second one left out"
    )
    scale: int = opt(1, "also shrink every image by this whole number (antialiased bicubic), test views too")

    def __post_init__(self) -> None:
        if not self.source_path or not self.output_path:
            raise UserError("-s SCENE and -o FOLDER are needed")
        if len(self.azimuth) != 2 or not 0 <= self.azimuth[0] < self.azimuth[1] <= 360:
            raise UserError(f"--azimuth {self.azimuth}: two angles are expected, 0 <= first < second <= 360")
        if self.scale < 1:
            raise UserError(f"--scale {self.scale}: 1 or more is expected")
