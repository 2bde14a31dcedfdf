"""Settings of render.py. What is left out comes from the model's own cfg_args and run.json."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class RenderParams:
    """What is rendered"""

    # Iteration and splits are no part of the step's key: they show in its inputs, so asking for more is no conflict.

    iteration: int = opt(-1, "iteration of the model; -1 = the latest", result=False)
    skip_train: bool = opt(False, "leave out the train views", result=False)
    skip_test: bool = opt(False, "leave out the test views", result=False)
    keep_names: bool = opt(False, "name PNGs after the images instead of 00000.png, 00001.png, ...")
    background: str = opt(
        "", "black or white, independent of training; default: as the model was trained", choices=("", "black", "white")
    )
    output_path: str = opt("", "folder to write to; default: the model's", result=False)
    depth: bool = opt(False, "also write the depth of each view: depth/*.npy (z) and depth/*.png (near = bright)")
    geometry: bool = opt(False, "write geometry/NAME.npz (z-depth and alpha of every view at LR size), nothing else")
    hr_frames: int = opt(
        0,
        "write hr_frames/NAME.png, each train view at this many times its LR size (RGBA where the scene has alpha),"
        " nothing else: frames of a model, for vsr_upsample.py --internal and train.py --frames; 0 = off",
    )
    sampling_weights: int = opt(
        0,
        "write sampling/NAME.png, grey maps of this many times the LR size, nothing else: SplatSuRe's weights of the"
        " frames' pixels, from a model of the LR views, for train.py --confidence; 0 = off",
    )
    sampling_ratio: float = opt(
        1.1, "largest over smallest size in the views from which --sampling_weights trusts the LR views alone"
    )
    flight: bool = opt(False, "write flight.mp4, a smooth flight through the train cameras, nothing else")
    flight_seconds: float = opt(8.0, "length of the flight [s]")
    flight_fps: int = opt(30, "frames per second of the flight")
    scale_modifier: float = opt(1.0, "factor on the size of all splats")
    half_sh: bool = opt(
        False, "colour coefficients in half precision: half their memory; native rasterizer on a GPU only"
    )

    def __post_init__(self) -> None:
        if self.iteration < -1:
            raise UserError(f"--iteration {self.iteration}: -1 (latest) or a number of steps is expected")
        for name in ("hr_frames", "sampling_weights"):
            if not 0 <= getattr(self, name) <= 16:
                raise UserError(f"--{name} {getattr(self, name)}: HR size over LR size, 1 to 16, is expected; 0 = off")
        if (self.hr_frames > 0) + (self.sampling_weights > 0) + self.geometry + self.flight > 1:
            raise UserError(
                "--hr_frames, --sampling_weights, --geometry and --flight write nothing else: one at a time"
            )
        if not 0 < self.flight_seconds <= 3600 or not 1 <= self.flight_fps <= 240:
            raise UserError("--flight_seconds up to 3600 and --flight_fps from 1 to 240 are expected")
        if not self.sampling_ratio >= 1:  # written so that NaN is refused
            raise UserError(f"--sampling_ratio {self.sampling_ratio}: 1 or more is expected")
        if not 0 < self.scale_modifier < 1e6:
            raise UserError(f"--scale_modifier {self.scale_modifier}: a positive number is expected")
