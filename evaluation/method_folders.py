"""FOLDER/{test,train}/ours_N: what is left of an earlier rendering there must not pass for a part of a new one."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from scene.trained_model import ply_path
from utils.log import note

METHOD = re.compile(r"ours_(\d+)")  # as the original names them; other folders are not ours to remove
KINDS = {"renders": (".png",), "gt": (".png",), "depth": (".png", ".npy")}


def method_folder(out: Path, split: str, iteration: int) -> Path:
    """Where the views of one split and one model lie."""
    return out / split / f"ours_{iteration}"


def keep_only(folder: Path, written: Iterable[Path] = ()) -> None:
    """Remove all views from a method's folder but those `written`."""
    kept = set(written)
    for kind, suffixes in KINDS.items():
        for path in [p for p in folder.glob(f"{kind}/*") if p.suffix in suffixes and p not in kept]:
            path.unlink()


def remove_orphans(out: Path, model: Path) -> None:
    """Remove the views of iterations that the model's folder holds no longer: their numbers belong to no model."""
    for folder in (f for split in ("test", "train") for f in sorted((out / split).glob("ours_*"))):
        found = METHOD.fullmatch(folder.name)
        if found and folder.is_dir() and not folder.is_symlink() and not ply_path(model, int(found[1])).is_file():
            note(f"{folder}: removed, {model} holds no model of this iteration any more")
            shutil.rmtree(folder)
