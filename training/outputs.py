"""What a training run leaves in OUT, under the names that viewers and plot scripts of the original 3DGS know."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scene import Scene
from scene.gaussians import Gaussians
from scene.ply import write_gaussians, write_points
from scene.trained_model import ply_path
from training.exposure import FILE_NAME as EXPOSURES
from training.objective import Terms
from training.views import TrainingViews
from utils.atomic import write_json, write_text
from utils.errors import UserError
from utils.log import JsonLines

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # utils.atomic's names: .FILE.PID.tmp
STEP = "train"  # of our lines in log.jsonl, which other steps write too


def write_static(out: Path, scene: Scene, views: TrainingViews) -> list[Path]:
    """Write cameras.json (test views first, as the original does) and input.ply; return what was written."""
    names = [*scene.test, *scene.train]
    cameras = [views.views[n].camera if n in views.views else scene.cameras[n] for n in names]
    write_json(out / "cameras.json", [camera.to_json(i) for i, camera in enumerate(cameras)], indent=None)
    written = [out / "cameras.json"]
    if scene.points is not None:
        write_points(out / "input.ply", scene.points)
        written.append(out / "input.ply")
    return written


def save_ply(out: Path, iteration: int, gaussians: Gaussians) -> Path:
    """Write the model of one iteration."""
    path = ply_path(out, iteration)
    write_gaussians(path, gaussians)
    return path


def clear_earlier(out: Path) -> int:
    """Remove models, checkpoints and log lines of an earlier run, so that none passes for a result of this one.

    Returns
    -------
    Bytes of log.jsonl that stay: the lines of other steps.
    """
    for folder in out.glob("point_cloud/iteration_*"):
        if re.fullmatch(r"iteration_\d+", folder.name) and not folder.is_symlink():
            shutil.rmtree(folder)
    for path in out.glob("checkpoints/iteration_*.safetensors"):
        path.unlink()
    for name in ("nan_report.json", EXPOSURES):
        (out / name).unlink(missing_ok=True)
    log = out / "log.jsonl"
    if not log.exists():
        return 0
    write_text(log, "".join(line for line in _whole_lines(log) if not _is_ours(line)))
    return log.stat().st_size


def clear_later(out: Path, iteration: int) -> None:
    """Remove models and checkpoints after `iteration`, where a run goes on that may end otherwise than the earlier."""
    for path in (*out.glob("point_cloud/iteration_*"), *out.glob("checkpoints/iteration_*.safetensors")):
        found = re.fullmatch(r"iteration_(\d+)(\.safetensors)?", path.name)
        if found and int(found[1]) > iteration and not path.is_symlink():
            path.unlink() if found[2] else shutil.rmtree(path)


def remove_leftovers(out: Path) -> None:
    """Remove temporary files of writers that were killed; only for who holds the folder's lock."""
    for pattern in ("", "checkpoints/", "point_cloud/*/"):
        for path in out.glob(f"{pattern}.*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink()


def _whole_lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines(keepends=True) if line.endswith("\n")]


def _is_ours(line: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return True  # torn by a crash: nobody can read it
    return isinstance(value, dict) and value.get("step") == STEP


@runtime_checkable
class Board(Protocol):
    """The part of TensorBoard's SummaryWriter that is used."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...
    def close(self) -> None: ...


def tensorboard(out: Path) -> Board:
    """Open a TensorBoard writer in OUT.

    Raises
    ------
    UserError : the tensorboard package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: the package is not installed; pip install tensorboard") from None
    return SummaryWriter(str(out))


class Log:
    """Numbers of a run: log.jsonl, and TensorBoard's events under the original's tags where it is given.

    Parameters
    ----------
    path : log.jsonl. keep_bytes : length to cut it to. interval : iterations between lines.
    """

    def __init__(self, path: Path, keep_bytes: int, interval: int, board: Board | None = None) -> None:
        self.path, self.interval, self.board = path, interval, board
        self.lines = JsonLines(path, keep_bytes)

    def cut(self, keep_bytes: int) -> None:
        """Take back what was written after `keep_bytes`."""
        self.lines.close()
        self.lines = JsonLines(self.path, keep_bytes)

    def iteration(self, iteration: int, terms: Terms, seconds: float, **facts: Any) -> None:
        """Log one iteration, if it is its turn; `seconds` goes to TensorBoard alone, so that logs can be compared."""
        if iteration % self.interval == 0 or iteration == 1:
            known = {name: value for name, value in vars(terms).items() if value is not None}
            self.lines.write(step=STEP, iteration=iteration, **known, **facts)
        if self.board:
            l1 = terms.lr_l1 if terms.l1 is None else terms.l1
            self.board.add_scalar("train_loss_patches/l1_loss", l1 or 0.0, iteration)
            self.board.add_scalar("train_loss_patches/total_loss", terms.loss, iteration)
            self.board.add_scalar("iter_time", 1000 * seconds, iteration)

    def measured(self, iteration: int, group: str, l1: float, psnr: float, total_points: int) -> None:
        """Log what views of one group came to."""
        self.lines.write(step=STEP, iteration=iteration, views=group, l1=l1, psnr=psnr)
        if self.board:
            self.board.add_scalar(f"{group}/loss_viewpoint - l1_loss", l1, iteration)
            self.board.add_scalar(f"{group}/loss_viewpoint - psnr", psnr, iteration)
            self.board.add_scalar("total_points", total_points, iteration)

    def close(self) -> None:
        """Close both."""
        self.lines.close()
        if self.board:
            self.board.close()
