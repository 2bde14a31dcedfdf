"""Settings that the makers of LR scenes share: `python -m scene.downscale` and `python -m scene.degrade`."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class LRSceneParams:
    """Which LR scene is made from which HR scene"""

    source_path: str = opt("", "HR scene: NeRF-synthetic, COLMAP or transforms.json; only read", "-s", result=False)
    output_path: str = opt("", "folder of the LR scene", "-o", result=False)
    scale: int = opt(4, "HR px per LR px; sides that it does not divide lose their last px, right and bottom")
    images: str = opt("images", "image folder of a COLMAP scene", "-i")
    allow_missing: bool = opt(False, "skip images that a scene lists and the disk lacks")
    overwrite: bool = opt(False, "replace an LR scene that was made with other settings", result=False)
    quiet: bool = opt(False, "no progress, results and errors only", result=False)

    def __post_init__(self) -> None:
        if not self.source_path or not self.output_path:
            raise UserError("-s HR_SCENE and -o LR_FOLDER are needed")
        if self.scale < 1:
            raise UserError(f"--scale {self.scale}: 1 or more is expected")
