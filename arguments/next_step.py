"""The command that follows a step, as a line to be copied."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from arguments.flags import as_flags, parse_given
from arguments.loading import ModelParams
from arguments.steps import STEPS
from utils.log import say

UNDER_RUN = "SEQSPLAT_UNDER_RUN"  # set by run.py, which runs all steps, for the scripts that it starts
LOADS = ("order", "upsample", "train")  # steps whose scene is not known from OUT


def say_next(after: str, name: str, out: str) -> None:
    """Print the command of step `name` after that of step `after`, which is this process's; nothing under run.py."""
    if not os.environ.get(UNDER_RUN):
        say(next_step(name, out, parse_given(STEPS[after].script, "", STEPS[after].groups)))


def next_step(name: str, out: str, given: Mapping[str, Any]) -> str:
    """`next: python SCRIPT -s SCENE -m OUT ...`.

    Parameters
    ----------
    given : flags of the command before. Its configuration file is repeated, and where the step cannot know them from
        OUT all that say what is loaded.
    """
    words = ["python", STEPS[name].script, *(["-s", given["source_path"]] if name in LOADS else []), "-m", out]
    words += ["--config", given["config"]] if given.get("config") else []
    loading = [f.name for f in fields(ModelParams) if f.name not in ("source_path", "model_path")]
    repeated = {key: given[key] for key in (*loading, "compat") if name in LOADS and key in given}
    return "next: " + shlex.join([*words, *as_flags(repeated)])
