"""The paper's own YAML files (blender.yml, mip360.yml of Sequence Matters): flat `key: value` lines, read as settings.

No YAML library: the format in use is one scalar or one bracketed list a line. Keys that describe the authors' folder
layout have no meaning here and are left out with a notice; the command line wins (their loader let the file win).
"""

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.log import note

RENAMED = {"vsr_model": "upsampler", "vsr_model_path": "weights", "upscale_factor": "scale"}
WITHOUT_MEANING = {
    "hr_source_dir",
    "lr_source_dir",
    "vsr_save_dir",
    "video_save_path",
    "spynet_path",
    "downscale_factor",
}
KEPT = {
    "als",
    "num_images_in_sequence",
    "similarity",
    "thres_values",
    "subpixel",
    "lambda_tex",
    "white_background",
    "port",
}


def read_paper_config(path: str | Path) -> dict[str, Any]:
    """Settings of one of the paper's YAML files under this project's names.

    Raises
    ------
    UserError : missing file, a line that is not `key: value`, or an unknown key.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    settings: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        key, colon, value = (part.strip() for part in text.partition(":"))
        if not colon:
            raise UserError(f"{path}, line {number}: `key: value` is expected, found {text!r}")
        if key in WITHOUT_MEANING:
            note(f"{path}: {key} has no meaning here and is left out")
        elif key in KEPT or key in RENAMED:
            if (parsed := _scalar(value)) is not None:
                settings[RENAMED.get(key, key)] = parsed
        else:
            raise UserError(f"{path}, line {number}: unknown key {key!r}")
    return settings


def _scalar(text: str) -> Any:
    """A YAML scalar or flow list of scalars; None for null."""
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    words = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")
