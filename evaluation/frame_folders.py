"""The pseudo-HR frames of a model: where they and what they are compared with lie, and everything measured of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arguments.evaluation import MetricsParams
from evaluation import information
from evaluation.confidence import confidence_paths, measure_confidence
from evaluation.frames import frame_paths, measure_frames
from evaluation.order_quality import measure_order
from evaluation.saved import saved_settings
from scene import Scene, load_scene
from scene.sequences import FILE_NAME
from upsampling.geometry import FOLDER as GEOMETRY
from utils.errors import UserError
from utils.record import read_record


@dataclass(frozen=True)
class FrameFolders:
    """Frames, and what there is beside them.

    Parameters
    ----------
    scene : holds their truth. frames : folder of NAME.png. single : frames made without neighbours, or None.
    geometry : folder of the model's depths; may not exist.
    jump_deg : a step of the schedule over more degrees is a jump.
    """

    scene: Scene
    frames: Path
    single: Path | None
    geometry: Path
    jump_deg: float

    def inputs(self) -> dict[str, list[Path]]:
        """Files that are read, by group."""
        groups = {
            "frames": frame_paths(self.scene, self.frames),
            "single_frames": frame_paths(self.scene, self.single) if self.single else {},
            "confidence": confidence_paths(self.scene, self.frames),
            "geometry": information.geometry_files(self.scene, self.geometry),
            "order": {FILE_NAME: path} if (path := self.frames.parent / FILE_NAME).is_file() else {},
        }
        return {name: list(paths.values()) for name, paths in groups.items() if paths or name == "frames"}

    def measure(self, background: str) -> dict[str, Any] | None:
        """Return "frames" of metrics.json: PSNR, gains, what the order did, worth of the confidence."""
        measured = measure_frames(self.scene, self.frames, background, self.single)
        if measured is None:
            return None
        order = measure_order(self.scene, self.frames, measured["per_view"], self.jump_deg, self.geometry)
        return measured | {"order": order, "confidence": measure_confidence(self.scene, self.frames, background)}

    def maps(self, device: torch.device) -> information.Kinds:
        """Compute the information maps; none without depths, or for frames of the LR size."""
        scale = information.frames_scale(self.scene, self.frames)
        return information.scene_maps(self.scene, self.geometry, scale, device) if scale > 1 else {}

    def information(self, kinds: information.Kinds, background: str) -> dict[str, Any] | None:
        """Return "information" of metrics.json."""
        if not kinds:
            return None
        scale = information.frames_scale(self.scene, self.frames)
        found: dict[str, Any] = {"scale": scale, "near_deg": information.NEAR_DEG}
        for kind, maps in kinds.items():
            found[kind] = information.summary(maps)
            if self.single is not None:
                folders = self.frames, self.single
                found[kind]["gain"] = information.gain_by_information(self.scene, *folders, maps, background)
        return found


def frame_folders(folder: Path, params: MetricsParams) -> FrameFolders | None:
    """Find the frames of a folder of rendered views, and the scene that holds their truth; None without frames.

    Raises
    ------
    UserError : --frames or --single_frames was given, and the frames or the scene are not there.
    """
    notes = (read_record(folder, "render") or {}).get("notes", {})
    model = folder / str(notes.get("model", "."))
    if params.frames == "none":  # what train.py calls it where it trains on no frames
        return None
    frames = Path(params.frames) if params.frames else model / "hr"
    single = Path(params.single_frames) if params.single_frames else None
    if single is not None and not single.is_dir():
        raise UserError(f"--single_frames {single}: no such folder")
    saved = saved_settings(model)
    if not frames.is_dir() or "source_path" not in saved:
        if params.frames or single:
            reason = "no such folder" if not frames.is_dir() else f"{model}/cfg_args does not say which scene"
            raise UserError(f"--frames {frames}: {reason}")
        return None
    recorded = str(notes.get("hr_root", ""))
    hr_root = params.hr_root or (str(folder / recorded) if recorded else saved.get("hr_root"))
    keys = ("images", "eval", "resolution", "allow_missing", "compat")
    options: dict[str, Any] = {key: saved[key] for key in keys if key in saved}
    scene = load_scene(saved["source_path"], hr_root=hr_root or None, **({"eval": False} | options))
    return FrameFolders(scene, frames, single, model / GEOMETRY, params.jump_deg)
