"""Where a run's results go. No heavy import here: it is asked before PyTorch is loaded."""

from pathlib import Path

from arguments.loading import ModelParams
from utils.errors import UserError
from utils.folders import refuse_inside


def output_folder(model: ModelParams, frames: str = "") -> Path:
    """-m, or output/SCENE with a number appended where that is taken.

    Raises
    ------
    UserError : no scene was given, or -m lies in the scene, in the frames or in the truth.
    """
    if not model.source_path:
        raise UserError("train.py: -s SCENE is needed")
    if model.model_path:
        refuse_inside(model.model_path, model.source_path, model.hr_root, "" if frames == "none" else frames)
        return Path(model.model_path)
    base = Path("output") / Path(model.source_path).resolve().name
    taken = (Path(f"{base}_{n}" if n > 1 else base) for n in range(1, 10_000))
    return next(folder for folder in taken if not folder.exists())
