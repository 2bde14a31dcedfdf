#!/usr/bin/env python3
"""Train 3D Gaussians on a scene, or on pseudo-HR frames under LR consistency."""

from arguments.next_step import say_next
from arguments.steps import parse
from training.output_folder import output_folder
from training.signals import StopRequest
from utils import errors
from utils.locks import LOCK_NAME, locked
from utils.log import say


def main() -> None:
    common, model, pipeline, optimisation, training, guidance = parse("train")
    out = output_folder(model, training.frames)
    stop = StopRequest()
    if (out / LOCK_NAME).is_file() and not common.dry_run:
        with locked(out):  # a folder in use is refused at once, before PyTorch is loaded
            pass
    from training.job import Settings
    from training.report import measurer
    from training.session import train

    ply = train(Settings(common, model, pipeline, optimisation, training, guidance), out, stop, measurer)
    if ply is not None:
        say(f"wrote {ply}")
        say_next("train", "render", str(out))


if __name__ == "__main__":
    errors.run(main)
