"""The command that follows a step, as a line to be copied."""

import shlex
from dataclasses import fields

from arguments.flags import as_flags
from arguments.loading import ModelParams


def next_step(script: str, model: ModelParams, compat: str = "") -> str:
    """`next: python SCRIPT -s SCENE -m OUT ...` with every loading flag that differs from its default."""
    words = ["python", script, "-s", model.source_path, "-m", model.model_path]
    changed = {f.name: getattr(model, f.name) for f in fields(model) if getattr(model, f.name) != f.default}
    changed = {name: value for name, value in changed.items() if name not in ("source_path", "model_path")}
    return "next: " + shlex.join([*words, *as_flags(changed | ({"compat": compat} if compat else {}))])
