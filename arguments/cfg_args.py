"""cfg_args: the loading group as the original 3DGS writes it, `Namespace(...)`, read without evaluating anything."""

import ast
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arguments.loading import ModelParams
from utils.atomic import write_text
from utils.errors import UserError

NAMES = ("sh_degree", "source_path", "model_path", "images", "resolution", "white_background", "data_device", "eval")
MAX_BYTES = 1 << 16


def write_cfg_args(folder: str | Path, model: ModelParams) -> Path:
    """Write FOLDER/cfg_args so that 3DGS's viewers and tools open the model. Paths are made absolute, as there."""
    values = {name: value for name, value in asdict(model).items() if name in NAMES}
    values["source_path"] = str(Path(model.source_path).resolve())
    values["data_device"] = model.data_device or "cpu"
    path = Path(folder) / "cfg_args"
    write_text(path, str(Namespace(**values)))
    return path


def read_cfg_args(folder: str | Path) -> dict[str, Any]:
    """The keywords of FOLDER/cfg_args.

    Raises
    ------
    UserError : missing, larger than 64 KiB, or anything but Namespace(name=literal, ...): nothing in it is run.
    """
    path = Path(folder) / "cfg_args"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES} bytes; not a cfg_args file")
        call = ast.parse(path.read_text(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Namespace"):
            raise ValueError("not a Namespace(...) call")
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("only name=value is expected in it")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is {folder} a trained model?") from None
    except (OSError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not a cfg_args file ({error})") from error
