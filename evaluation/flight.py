"""A smooth flight through a scene's cameras, as a video.

The train cameras are brought into a short open path, a few of them become key frames, and the flight follows a spline:
cubic in position, scipy's RotationSpline (continuous angular velocity and acceleration on SO(3)) in orientation.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from ordering.tour import tour_path
from scene.cameras import Camera, intrinsics, world_to_camera_from
from scene.image_files import write_png
from utils.atomic import writing
from utils.errors import UserError
from utils.log import Progress, warn

KEYS_PER_SECOND = 1.25
Frames = Iterable[UInt8[np.ndarray, "H W 3"]]


def view_distances(cameras: Sequence[Camera]) -> Float[np.ndarray, "N N"]:
    """Distance of cameras in units of the median nearest neighbour, plus the angle between them over 30 degrees."""
    centres = np.array([camera.centre for camera in cameras])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    nearest = np.sort(distance, axis=1)[:, 1]
    rotations = np.array([camera.world_to_camera[:3, :3] for camera in cameras])
    cosine = (np.einsum("aij,bij->ab", rotations, rotations) - 1) / 2
    angle_deg = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return distance / max(float(np.median(nearest)), 1e-9) + angle_deg / 30


def key_cameras(cameras: Sequence[Camera], count: int) -> list[Camera]:
    """Choose `count` cameras that stand far apart, in the order of a short path through them.

    Farthest-point sampling keeps the flight from darting between neighbours.
    """
    cost = view_distances(cameras)
    chosen = [0]
    while len(chosen) < min(count, len(cameras)):
        chosen.append(int(cost[:, chosen].min(axis=1).argmax()))
    path = tour_path(cost[np.ix_(chosen, chosen)])
    return [cameras[chosen[i]] for i in path]


def flight_path(cameras: Sequence[Camera], frames: int, width: int, height: int) -> list[Camera]:
    """Interpolate cameras along the spline through `cameras`.

    Parameters
    ----------
    cameras : key cameras in order, at least 1; the flight starts at the first and ends at the last.
    frames : how many cameras to return, >= 1.
    width, height : size in px of the frames; focal lengths are those of the first key camera, relative to the width.

    Returns
    -------
    Cameras "00000", "00001", ...; equal steps in time, keys at times proportional to the square root of their distance
    (centripetal: no loops between close keys).
    """
    first = cameras[0]
    K = intrinsics(first.fx * width / first.width, first.fx * width / first.width, width / 2, height / 2)
    if len(cameras) == 1:
        return [Camera(f"{i:05d}", width, height, K, first.world_to_camera) for i in range(frames)]
    cost = view_distances(cameras)
    steps = np.sqrt(np.maximum(cost[np.arange(len(cameras) - 1), np.arange(1, len(cameras))], 1e-6))
    keys = np.concatenate([[0.0], np.cumsum(steps)])
    times = np.linspace(0, keys[-1], frames)
    centres = CubicSpline(keys, np.array([c.centre for c in cameras]))(times)
    c2w = Rotation.from_matrix(np.array([c.world_to_camera[:3, :3].T for c in cameras]))
    turned = RotationSpline(keys, c2w)(times).as_matrix()
    return [
        Camera(f"{i:05d}", width, height, K, world_to_camera_from(R.T, -R.T @ centre))
        for i, (R, centre) in enumerate(zip(turned, centres, strict=True))
    ]


def write_flight(
    draw: Callable[[Camera], UInt8[np.ndarray, "H W 3"]],
    cameras: Sequence[Camera],
    out: Path,
    seconds: float,
    fps: int,
    size: tuple[int, int],
) -> Path:
    """Render a flight and write OUT/flight.mp4 (or OUT/flight/00000.png ... where no encoder is there).

    Parameters
    ----------
    draw : renders a camera to uint8 RGB.
    cameras : the cameras to fly through.
    size : (width, height) of the video; made even, as encoders need it.
    """
    if not cameras:
        raise UserError("a flight needs at least one train camera")
    keys = key_cameras(cameras, max(4, round(seconds * KEYS_PER_SECOND)))
    width, height = (max(2, side // 2 * 2) for side in size)
    path = flight_path(keys, max(2, round(seconds * fps)), width, height)
    progress = Progress("flight", len(path), "frame")

    def frames() -> Frames:
        for i, camera in enumerate(path):
            yield draw(camera)
            progress.update(i + 1)
        progress.close()

    return write_video(out / "flight.mp4", frames(), fps, (width, height))


def write_video(path: Path, frames: Frames, fps: int, size: tuple[int, int]) -> Path:
    """Encode frames as MP4: H.264 with PyAV where it is installed, else MPEG-4 with OpenCV, else a folder of PNGs.

    Returns
    -------
    What was written: `path`, or the folder of the same name without suffix.
    """
    encode = _encoder()
    if encode is None:
        warn("neither PyAV nor OpenCV can write MP4 here: the flight becomes PNGs (pip install av)")
        folder = path.with_suffix("")
        for i, frame in enumerate(frames):
            write_png(folder / f"{i:05d}.png", frame)
        return folder
    with writing(path) as tmp:
        video = tmp.with_name(f"{tmp.name}.mp4")  # both encoders take the container from the name
        try:
            encode(video, frames, fps, size)
            os.replace(video, tmp)
        finally:
            video.unlink(missing_ok=True)
    return path


def _encoder() -> Callable[[Path, Frames, int, tuple[int, int]], None] | None:
    try:
        import av  # noqa: F401
    except ImportError:
        pass
    else:
        return _encode_av
    try:
        import cv2
    except ImportError:
        return None
    return _encode_cv2 if hasattr(cv2, "VideoWriter") else None


def _encode_av(path: Path, frames: Frames, fps: int, size: tuple[int, int]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "17"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _encode_cv2(path: Path, frames: Frames, fps: int, size: tuple[int, int]) -> None:
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    if not writer.isOpened():
        raise UserError(f"{path.parent}: OpenCV cannot write MP4 here; pip install av")
    try:
        for frame in frames:
            writer.write(np.ascontiguousarray(frame[..., ::-1]))  # OpenCV's channel order
    finally:
        writer.release()
