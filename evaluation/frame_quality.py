"""Frames of a study's task against the HR truth: `python -m evaluation.frame_quality -s SCENE -m TASK`.

Writes TASK/frames.json: {background: what `evaluation.frames.measure_frames` found, null where there is no truth; with
"order" (evaluation.order_quality), "confidence" (evaluation.confidence, null without maps) and "alignment": {"flow_px",
"disagreement"}, means over the views that have them}.
"""

from pathlib import Path

from arguments.evaluation import FrameQualityParams
from arguments.flags import parse_groups
from arguments.loading import ModelParams
from utils import errors
from utils.atomic import read_json, write_json
from utils.log import say

FILE_NAME = "frames.json"
ALIGNMENT_FILE = "alignment.json"  # of the upsampling step


def alignment_means(path: Path) -> dict[str, float]:
    """Means over views of what alignment.json says of each, {} where frames were made alone."""
    views = read_json(path)["views"].values() if path.is_file() else []
    found = {key: [v[key] for v in views if v.get(key) is not None] for key in ("flow_px", "disagreement")}
    return {key: sum(values) / len(values) for key, values in found.items() if values}


def main() -> None:
    """Measure TASK/hr and write what was found."""
    model, params = parse_groups("frame_quality", "Frames against the HR truth.", [ModelParams, FrameQualityParams])
    from evaluation.confidence import measure_confidence
    from evaluation.frames import measure_frames
    from evaluation.order_quality import measure_order
    from scene import open_scene
    from upsampling.geometry import FOLDER

    scene, task = open_scene(model, ""), Path(model.model_path)
    found = {background: measure_frames(scene, task / "hr", background) for background in params.backgrounds}
    for background, frames in found.items():
        if frames is not None:
            geometry = Path(params.geometry or task / FOLDER)
            frames["order"] = measure_order(scene, task / "hr", frames["per_view"], params.jump_deg, geometry)
            frames["alignment"] = alignment_means(task / "hr" / ALIGNMENT_FILE)
            frames["confidence"] = measure_confidence(scene, task / "hr", background)
    write_json(task / FILE_NAME, found)
    for background, frames in found.items():
        say(f"{background}: " + (f"{frames['PSNR']:.2f} dB in {frames['views']} views" if frames else "no truth"))


if __name__ == "__main__":
    errors.run(main)
