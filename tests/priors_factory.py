"""Small pictures, videos and configurations for the tests of priors."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG: dict[str, Any] = {
    "name": "small",
    "objective": "sr3",
    "prediction": "x0",
    "stem": "unshuffle",
    "datasets": {
        "train": {
            "datatype": "moving",
            "dataroot": "",
            "l_resolution": 8,
            "r_resolution": 16,
            "batch_size": 2,
        },
        "val": {"datatype": "moving", "dataroot": "", "l_resolution": 8, "r_resolution": 16, "data_len": 3},
    },
    "model": {
        "unet": {
            "inner_channel": 8,
            "norm_groups": 4,
            "channel_multiplier": [1, 2],
            "attn_res": [],
            "res_blocks": 1,
            "dropout": 0.1,
        },
        "beta_schedule": {"train": {"n_timestep": 50}, "val": {"n_timestep": 50}},
        "resshift": {"steps": 4, "kappa": 2.0, "p": 0.3, "m": 0.2},
        "diffusion": {"n_frames": 3},
    },
    "train": {
        "n_iter": 4,
        "val_freq": 3,
        "save_checkpoint_freq": 2,
        "print_freq": 1,
        "optimizer": {"type": "adamw", "lr": 1e-3},
    },
    "validation": {"steps": 3, "eta": 0.0, "count": 2, "batch_size": 2},
}


def smooth_picture(width: int, height: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3] of a few waves, so that an LR view says much about it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(
        rng.normal(size=3) * np.sin(x * rng.normal(0, 0.4) + y * rng.normal(0, 0.4) + rng.normal())[..., None]
        for _ in range(6)
    )
    return np.rint(255 / (1 + np.exp(-waves))).astype(np.uint8)


def write_pictures(root: Path, count: int = 2) -> Path:
    """Pictures that MovingCrops of 16 px can move over."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(smooth_picture(200, 64, i)).save(root / f"p_{i}.png")
    return root


def write_videos(root: Path, videos: int, frames: int, width: int = 37, height: int = 41, suffix: str = ".png") -> Path:
    """root/vid_V/frame_N: every frame another picture."""
    for v in range(videos):
        (root / f"vid_{v}").mkdir(parents=True, exist_ok=True)
        for n in range(frames):
            Image.fromarray(smooth_picture(width, height, 100 * v + n)).save(root / f"vid_{v}" / f"frame_{n}{suffix}")
    return root


def small_config(root: Path, **dotted: Any) -> dict[str, Any]:
    """CONFIG on the pictures of `root`; keywords are keys with __ for dots."""
    values = deepcopy(CONFIG)
    for part in ("train", "val"):
        values["datasets"][part]["dataroot"] = str(root)
    for name, value in dotted.items():
        *path, last = name.split("__")
        owner = values
        for key in path:
            owner = owner.setdefault(key, {})
        owner[last] = value
    return values
