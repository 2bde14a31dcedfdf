"""Settings of scripts/prepare_frames.py."""

from dataclasses import dataclass
from pathlib import Path

from arguments.flags import opt
from utils.errors import UserError

MAX_SIDE_PX = 4096
WINDOWS = ("auto", "one", "all")


@dataclass(frozen=True)
class PrepareParams:
    """What is taken and made"""

    frames_path: str = opt("", "folder of VIDEO_ID/*.png|jpg; with --sequences a scene folder", result=False)
    n_frames: int = opt(3, "frames of a window, odd; the middle one is the target")
    interval: int = opt(1, "stride between the frames of a window, in frames of the source")
    split: str = opt("train", "part that the folder is for; it becomes part of the name", choices=("train", "val"))
    out: str = opt("", "beginning of the folder's name", "-o", result=False)
    size: str = opt("16,128", "sides of LR and HR frames in px; what is not square is cut around its middle")
    resample: str = opt("bicubic", "LR operator: bicubic (antialiased, a = -0.5) or area", choices=("bicubic", "area"))
    windows: str = opt(
        "auto", "one window a video, around its middle, or all; auto = all with --sequences", choices=WINDOWS
    )
    sequences: str = opt("", "sequences.json that orders the views of a scene", result=False)
    white_background: bool = opt(False, "compose on white instead of black")
    n_worker: int = opt(1, "threads", result=False)
    quiet: bool = opt(False, "no progress, results and errors only", result=False)

    def __post_init__(self) -> None:
        if not self.frames_path or not self.out:
            raise UserError("--frames_path FOLDER and --out NAME are needed")
        if self.n_frames < 1 or self.n_frames % 2 == 0:
            raise UserError(f"--n_frames {self.n_frames}: an odd number is expected, the middle frame is the target")
        if self.interval < 1 or self.n_worker < 1:
            raise UserError(f"--interval {self.interval}, --n_worker {self.n_worker}: 1 or more is expected")
        low, high = self.sides_px
        if not 1 <= low <= high <= MAX_SIDE_PX:
            raise UserError(f"--size {self.size}: 1 <= LR <= HR <= {MAX_SIDE_PX} is expected")

    @property
    def sides_px(self) -> tuple[int, int]:
        """LR and HR. Raises UserError where they are not two whole numbers."""
        parts = [part.strip() for part in self.size.split(",")]
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise UserError(f"--size {self.size}: two whole numbers are expected, as in 16,128")
        return int(parts[0]), int(parts[1])

    @property
    def folder(self) -> Path:
        low, high = self.sides_px
        return Path(f"{self.out}_{self.n_frames}_frames_{self.interval}_seconds_{low}_{high}_{self.split}")
