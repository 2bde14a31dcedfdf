"""The README's picture: one detail of the demo, five times. `python -m examples.demo_picture` after `make demo`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from examples.demo import SCALE, DemoParams
from scene.image_files import read_image, write_png
from scene.lr_kernel import LRKernel
from utils import errors, log

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "demo.png"
VIEW = 2  # the departure board, seen from the front
DETAIL = (96, 176, 276, 306)  # left, top, right, bottom in HR pixels
ENLARGED = 1.6
GAP_PX = 6


def to_lr(truth: np.ndarray) -> Image.Image:
    """The view at the size of the LR views, made as they are."""
    height, width = truth.shape[:2]
    kernel = LRKernel("bicubic", "renormalise", (width, height), (width // SCALE, height // SCALE))
    planes = kernel.down(torch.from_numpy(truth).movedim(2, 0) / 255)
    return Image.fromarray((planes.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, 2).numpy())


def main() -> None:
    """Write docs/images/demo.png: the view at LR size, the models bicubic, video, seqsplat, the truth."""
    out = Path(DemoParams().output_path)
    folder = max((out / "video" / "white" / "test").iterdir()).name
    truth = read_image(out / "video" / "white" / "test" / folder / "gt" / f"{VIEW:05}.png")
    height, width = truth.shape[:2]
    small = to_lr(truth).resize((width, height), Image.Resampling.NEAREST)
    renders = [out / variant / "white" / "test" / folder / "renders" for variant in ("bicubic", "video", "seqsplat")]
    panels = [np.asarray(small), *(read_image(render / f"{VIEW:05}.png") for render in renders), truth]
    details = [Image.fromarray(panel).crop(DETAIL) for panel in panels]
    width, height = (round((DETAIL[i + 2] - DETAIL[i]) * ENLARGED) for i in (0, 1))
    sheet = np.full((height, len(details) * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for i, detail in enumerate(details):
        left = i * (width + GAP_PX)
        sheet[:, left : left + width] = np.asarray(detail.resize((width, height), Image.Resampling.LANCZOS))
    write_png(PICTURE, sheet)
    log.say(f"wrote {PICTURE}")


if __name__ == "__main__":
    errors.run(main)
