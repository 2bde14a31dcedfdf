#!/usr/bin/env python3
"""Upsample ordered LR views (-s SCENE -m OUT writes OUT/hr/NAME.png) or a folder (--frames DIR -o DIR)."""

from functools import cache, partial
from pathlib import Path

from arguments.flags import settings
from arguments.next_step import say_next
from arguments.steps import parse, upsample_code
from utils import errors, record
from utils.errors import UserError
from utils.log import say

SCENE_SETTINGS = ("images", "eval", "resolution", "allow_missing", "lr_kernel")


def main() -> None:
    common, model, flags, prior = parse("upsample")
    if not flags.frames and not (model.source_path and model.model_path):
        raise UserError("vsr_upsample.py: -s SCENE -m OUT (ordered views) or --frames DIR -o DIR (a folder) are needed")
    from upsampling import Job, checked, clear, describe, internal_inputs, load, resolve_weights, run, summary
    from upsampling.precision import precision
    from upsampling.registry import made_of, weight_files
    from upsampling.sources import folder_source, scene_source
    from utils.compute import choose_device, device_facts, set_threads, use_device, use_fixed_order
    from utils.folders import refuse_inside

    out = Path(flags.output_path or model.model_path)
    if flags.frames:
        folder, source = out, folder_source(flags.frames, model.lr_kernel)
    else:
        folder = out / "hr"
        source = scene_source(model, flags, out, common.compat)
    refuse_inside(folder, flags.frames or model.source_path, source.hr_root, flags.internal)
    weights, device = resolve_weights(flags), choose_device(common.device)
    inputs = {**source.inputs, **internal_inputs(flags, prior, source), "weights": weight_files(flags, weights, prior)}
    net = partial(load, flags, weights, device, common.seed, prior, source.kernel)
    job = cache(lambda: checked(Job(net(), flags, source, folder, common.compat, device)))
    set_threads(common.threads)
    if flags.deterministic and device.type == "cuda":
        use_fixed_order()
    use_device(device)
    if common.dry_run:
        say(describe(job()))
        return
    kept = {k: v for k, v in settings(common, model, flags, prior).items() if k not in settings(model)}
    kept |= {name: getattr(model, name) for name in SCENE_SETTINGS} | {"flow": source.flow}
    kept["precision"] = str(precision(flags.precision, device))  # what "auto" means differs between machines
    removes = partial(clear, folder, source)
    with record.step(out, "upsample", kept, inputs, upsample_code(flags), common, clear=removes, ready=job) as attempt:
        if not attempt.up_to_date:
            attempt.outputs, attempt.notes = run(job(), attempt.resume)
            attempt.notes |= device_facts(device) | made_of(flags, weights, prior)
    say("; ".join(filter(None, [f"wrote {len(source.sequences.saved)} frames to {folder}", summary(folder)])))
    if not flags.frames:
        say_next("upsample", "train", model.model_path)


if __name__ == "__main__":
    errors.run(main)
