"""Frames of a study's task against the HR truth: `python -m evaluation.study.frame_quality -s SCENE -m TASK`.

Writes TASK/frames.json: {background: what `evaluation.frames.measure_frames` found, null where there is no truth}.
"""

from pathlib import Path

from arguments.flags import parse_groups
from arguments.loading import ModelParams
from arguments.study import FrameQualityParams
from utils import errors
from utils.atomic import write_json
from utils.log import say

FILE_NAME = "frames.json"


def main() -> None:
    """Measure TASK/hr and write what was found."""
    model, params = parse_groups("frame_quality", "Frames against the HR truth.", [ModelParams, FrameQualityParams])
    from evaluation.frames import measure_frames
    from evaluation.order_quality import measure_order
    from scene import open_scene
    from upsampling.geometry import FOLDER

    scene, task = open_scene(model, ""), Path(model.model_path)
    found = {background: measure_frames(scene, task / "hr", background) for background in params.backgrounds}
    for frames in found.values():
        if frames is not None:
            geometry = Path(params.geometry or task / FOLDER)
            frames["order"] = measure_order(scene, task / "hr", frames["per_view"], params.jump_deg, geometry)
    write_json(task / FILE_NAME, found)
    for background, frames in found.items():
        say(f"{background}: " + (f"{frames['PSNR']:.2f} dB in {frames['views']} views" if frames else "no truth"))


if __name__ == "__main__":
    errors.run(main)
