#!/usr/bin/env python3
"""Order the LR views into smooth subsequences: align_sequence.py -s SCENE -m OUT writes OUT/sequences.json."""

from pathlib import Path

from arguments.flags import settings
from arguments.next_step import say_next
from arguments.steps import STEPS, parse
from utils import errors, record
from utils.errors import UserError
from utils.log import say

SCENE_SETTINGS = ("images", "eval", "resolution", "white_background", "allow_missing")


def main() -> None:
    common, model, ordering = parse("order")
    if not model.source_path or not model.model_path:
        raise UserError("align_sequence.py: -s SCENE (the LR views) and -m OUT (the output folder) are needed")
    from ordering import build, describe
    from scene import open_scene
    from scene.files import scene_inputs
    from scene.sequences import FILE_NAME, read_sequences, write_sequences
    from utils.folders import refuse_inside
    from utils.plugins import source_files

    out = Path(model.model_path)
    scene = open_scene(model, common.compat)
    refuse_inside(out, scene.root, scene.hr_root)
    if common.dry_run:
        say(describe(scene, ordering, common.compat))
        return
    kept = {k: v for k, v in settings(common, model, ordering).items() if k not in settings(model)}
    kept |= {name: getattr(model, name) for name in SCENE_SETTINGS}
    plugins = source_files(ordering.ordering, ordering.cost, ordering.gate)
    inputs = {**scene_inputs(scene, scene.cameras), "plugins": plugins}
    with record.step(out, "order", kept, inputs, STEPS["order"].code, common, editable=True) as run:
        if run.up_to_date or run.edited:
            sequences = read_sequences(out / FILE_NAME, required=scene.train, known=scene.test)
        else:
            background = (1.0, 1.0, 1.0) if model.white_background else (0.0, 0.0, 0.0)
            sequences = build(scene, ordering, seed=common.seed, compat=common.compat, background=background)
            write_sequences(out / FILE_NAME, sequences)
        run.outputs = [out / FILE_NAME]
        run.notes = sequences.summary() | ({"edited": True} if run.edited else {})
    say(f"wrote {out / FILE_NAME}: {sequences.headline()}")
    say_next("order", "upsample", model.model_path)


if __name__ == "__main__":
    errors.run(main)
