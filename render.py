"""Render test and train views, depth, geometry, HR frames or a flight from a trained model: render.py -m MODEL."""

import sys

from arguments.next_step import say_next
from evaluation.saved import parse_with_saved
from utils import errors
from utils.log import say


def main() -> None:
    """Parse, render, say what was written and what comes next."""
    common, model, pipeline, render = parse_with_saved("render", sys.argv[1:])
    from evaluation.run_render import render_model

    out = render_model(common, model, pipeline, render)
    if common.dry_run:
        return
    if render.geometry or render.hr_frames:
        say(f"wrote {out}/{'geometry' if render.geometry else 'hr_frames'}")
    elif render.sampling_weights:
        say(f"wrote {out}/sampling\nnext: python train.py --confidence {out}/sampling")
    elif render.flight:
        say(f"wrote {out}/flight.mp4" if (out / "flight.mp4").is_file() else f"wrote {out}/flight/")
    else:
        say(f"wrote {out}/test and {out}/train as far as there are such views")
        say_next("render", "metrics", str(out))


if __name__ == "__main__":
    errors.run(main)
