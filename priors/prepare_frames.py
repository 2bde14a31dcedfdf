"""Training folders for small priors: windows of n frames at a stride, LR, HR and enlarged LR beside one another.

Layout and names are those of the multi-frame SR3 code, so that either program trains on them:
OUT_{n}_frames_{stride}_seconds_{l}_{r}_{split}/{lr_L,hr_R,sr_L_R}/VIDEO_ID/*.png. Sources are folders of video frames,
or the ordered subsequences of a scene (sequences.json). LR is made of the 8-bit HR frame, by a known operator and
rounded once; sr is the enlarged 8-bit LR frame. prepared.json is written last: with it the folder is complete, and by
it a later call finds files that are missing or changed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from arguments.flags import parse_groups, settings
from arguments.prepare_frames import PrepareParams
from priors.frame_data import PREPARED, image_names, natural_key, window
from scene import Scene, load_scene
from scene.image_files import read_image, write_png
from scene.images import composite, resized
from scene.lr_images import lr_image
from scene.lr_kernel import FILE_NAME as KERNEL_FILE
from scene.lr_kernel import LRKernel, LRKernelFile
from scene.sequences import check_sequences, read_sequences
from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.folders import refuse_inside
from utils.keys import same_key
from utils.locks import LOCK_NAME, locked
from utils.log import Progress, note, say, set_quiet
from utils.outputs import damaged_outputs, output_facts, remove_outputs
from utils.provenance import package_versions

STARTED = ".prepare_frames.started.json"


@dataclass(frozen=True)
class Clip:
    """An ordered source: frames by name, and the label of each in file names."""

    name: str
    frames: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Clips, and how a frame of theirs is read. facts : what it is made of, as JSON."""

    clips: list[Clip]
    read: Callable[[str], np.ndarray]
    facts: dict[str, object]


def prepare(params: PrepareParams) -> Path:
    """Make the folder, go on where an interrupted call stopped, or find it made.

    Returns
    -------
    The folder.

    Raises
    ------
    UserError : bad source, no video long enough, an image smaller than HR, or a folder that holds something else.
    """
    out = params.folder
    refuse_inside(out, params.frames_path)
    source = scene_source(params) if params.sequences else video_source(Path(params.frames_path))
    targets, clips = plan(source, params)
    key: dict[str, Any] = {"settings": settings(params), "source": source.facts, "clips": clips}
    with locked(out):
        made = _record(out / PREPARED)
        if same_key(made, key) and "outputs" in made:  # a folder of earlier code lacks them and is gone through
            damaged = damaged_outputs(out, made["outputs"])
            if not damaged:
                note(f"{out}: up to date")
                return out
            note(f"{out}: {damaged[0]} is missing or changed ({len(damaged)} in all) and made anew")
            remove_outputs(out, damaged)
        _claim(out, key)
        _write(source, targets, params, out)
        _write_kernel(params, out)
        files = [path for places in targets.values() for place in places for path in _paths(place, params, out)]
        write_json(out / PREPARED, key | {"outputs": output_facts(out, [*files, out / KERNEL_FILE])})
        (out / STARTED).unlink()
    return out


def video_source(root: Path) -> Source:
    """Folders of PNG or JPEG frames, in natural order of their names.

    Raises
    ------
    UserError : no such folder, or none with frames in it.
    """
    folders = (
        sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name)) if root.is_dir() else []
    )
    clips: list[Clip] = []
    bytes_of: dict[str, int] = {}
    for folder in folders:
        names = image_names(folder)
        frames = tuple(f"{folder.name}/{name}" for name in names)
        if frames:
            clips.append(Clip(folder.name, frames, _labels([Path(name).stem for name in names])))
            bytes_of |= {frame: (root / frame).stat().st_size for frame in frames}
    if not clips:
        raise UserError(f"{root}: no folders with PNG or JPEG frames in it; one folder a video is expected")
    return Source(clips, lambda frame: read_image(root / frame), {"bytes": bytes_of})


def scene_source(params: PrepareParams) -> Source:
    """The subsequences of a scene, each a clip; HR images are taken where the scene knows them.

    Raises
    ------
    UserError : the scene or the file cannot be read, or the file names views that the scene does not have.
    """
    scene = load_scene(Path(params.frames_path), resolution=1)
    sequences = read_sequences(params.sequences)
    check_sequences(sequences, (), scene.cameras, params.sequences)
    name = scene.root.resolve().name
    clips = [
        Clip(f"{name}_{number:03}", s.frames, _labels([str(i) for i in range(len(s.frames))]))
        for number, s in enumerate(sequences.subsequences, 1)
    ]
    return Source(clips, lambda view: _view(scene, view), {"order": [list(clip.frames) for clip in clips]})


def _view(scene: Scene, name: str) -> UInt8[np.ndarray, "H W C"]:
    image = scene.hr_image(name)
    return scene.images.decode(name) if image is None else image


def _labels(stems: list[str]) -> tuple[str, ...]:
    """Numbers of five digits: those in the names where all are numbers, else the positions."""
    numbered = [stem.zfill(5) for stem in stems if stem.isascii() and stem.isdigit()]
    if len(set(numbered)) == len(stems):
        return tuple(numbered)
    return tuple(f"{i:05}" for i in range(len(stems)))


def plan(source: Source, params: PrepareParams) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(VIDEO_ID/LABEL places that each frame goes to, frames of each VIDEO_ID).

    Raises
    ------
    UserError : no clip is long enough.
    """
    every = params.windows == "all" or (params.windows == "auto" and bool(params.sequences))
    targets: dict[str, list[str]] = {}
    clips: dict[str, list[str]] = {}
    for clip in source.clips:
        for video, places in _windows(clip, params.n_frames, params.interval, every):
            clips[video] = [clip.frames[i] for i in places]
            for i in places:
                targets.setdefault(clip.frames[i], []).append(f"{video}/{clip.labels[i]}")
    short = sum(len(clip.frames) <= params.interval * (params.n_frames - 1) for clip in source.clips)
    if not clips:
        need = params.interval * (params.n_frames - 1) + 1
        longest = max(len(clip.frames) for clip in source.clips)
        raise UserError(
            f"{params.frames_path}: {params.n_frames} frames at --interval {params.interval} need {need} frames, "
            f"the longest clip has {longest}"
        )
    if short:
        note(f"{short} of {len(source.clips)} clips are too short and were left out")
    return targets, clips


def _windows(clip: Clip, frames: int, stride: int, every: bool) -> Iterator[tuple[str, list[int]]]:
    """(VIDEO_ID, positions) of the windows that lie inside the clip."""
    count, reach = len(clip.frames), stride * (frames // 2)
    middles = range(reach, count - reach) if every else [count // 2] if reach <= count // 2 < count - reach else []
    for middle in middles:
        yield f"{clip.name}_{clip.labels[middle]}" if every else clip.name, window(middle, frames, stride)


def triple(
    image: UInt8[np.ndarray, "H W C"], params: PrepareParams
) -> tuple[UInt8[np.ndarray, "L L 3"], UInt8[np.ndarray, "R R 3"], UInt8[np.ndarray, "R R 3"]]:
    """(LR, HR, enlarged LR) of one frame, 8 bit.

    Raises
    ------
    UserError : the frame is smaller than HR; nothing is enlarged to be truth.
    """
    low, high = params.sides_px
    rows, cols = image.shape[:2]
    side = min(rows, cols)
    if side < high:
        raise UserError(f"{cols}x{rows} px is smaller than the HR side of --size {params.size}")
    top, left = (rows - side) // 2, (cols - side) // 2
    background = (1.0, 1.0, 1.0) if params.white_background else (0.0, 0.0, 0.0)
    square = composite(image[top : top + side, left : left + side], background)
    hr = resized(np.rint(255 * square).astype(np.uint8), high, high)
    lr = lr_image(hr, LRKernel(params.resample, "renormalise", (high, high), (low, low)))
    return lr, hr, resized(lr, high, high)


def _paths(place: str, params: PrepareParams, out: Path) -> list[Path]:
    """The three files of VIDEO_ID/LABEL, in the order of `triple`."""
    low, high = params.sides_px
    return [out / kind / f"{place}.png" for kind in (f"lr_{low}", f"hr_{high}", f"sr_{low}_{high}")]


def _write(source: Source, targets: dict[str, list[str]], params: PrepareParams, out: Path) -> None:
    def make(frame: str) -> None:
        paths = [_paths(place, params, out) for place in targets[frame]]
        if all(path.is_file() for three in paths for path in three):
            return  # of an interrupted call of the same plan
        try:
            images = triple(source.read(frame), params)
        except UserError as error:
            raise UserError(f"{frame}: {error}") from error
        for three in paths:
            for path, image in zip(three, images, strict=True):
                write_png(path, image)

    progress = Progress(f"prepare {out.name}", len(targets), "frame")
    with ThreadPoolExecutor(params.n_worker) as pool:
        try:
            for done, _ in enumerate(pool.map(make, targets), 1):
                progress.update(done)
        finally:
            pool.shutdown(cancel_futures=True)
            progress.close()


def _write_kernel(params: PrepareParams, out: Path) -> None:
    low, high = params.sides_px
    size = {"hr": [high, high], "used": [high, high], "lr": [low, low]}
    made = {"settings": settings(params), "versions": package_versions()}
    LRKernelFile(params.resample, scale=high / low, sizes=(size,), made=made).write(out / KERNEL_FILE)


def _record(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _claim(out: Path, key: dict[str, object]) -> None:
    """Mark the folder as ours and incomplete. Raises UserError where it holds anything of another plan."""
    found = {p.name for p in out.iterdir()} - {LOCK_NAME}
    if found and not any(same_key(_record(out / name), key) for name in (STARTED, PREPARED)):
        raise UserError(f"{out} holds frames of another source or other settings; remove it or choose another --out")
    write_json(out / STARTED, key)
    (out / PREPARED).unlink(missing_ok=True)


def main() -> None:
    """Parse, prepare, say what was made."""
    description = "Make the training folders of a small prior from video frames or from the sequences of a scene."
    (params,) = parse_groups("scripts/prepare_frames.py", description, [PrepareParams], section="prepare_frames")
    set_quiet(params.quiet)
    out = prepare(params)
    count = sum(p.is_dir() for p in (out / f"hr_{params.sides_px[1]}").iterdir())
    say(f"wrote {out}: {count} windows of {params.n_frames} frames, {params.resample}")
