"""`python -m examples.make_demo_scene -o DIR`: the demo's HR scene in a folder, rendered once and cached."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from arguments.flags import opt, parse_groups
from utils import errors
from utils.errors import UserError
from utils.log import say


@dataclass(frozen=True)
class DemoSceneParams:
    """Where the demo scene is written to"""

    output_path: str = opt("", "folder, made by this command; left alone where it is complete", "-o", result=False)


def main() -> None:
    """Parse, render what the cache lacks, copy."""
    (params,) = parse_groups("python -m examples.make_demo_scene", "The demo's HR scene.", [DemoSceneParams])
    if not params.output_path:
        raise UserError("-o DIR: where is the demo scene to be written?")
    from examples.demo_scene.write import COMPLETE, SceneSettings, cached_scene

    out = Path(params.output_path)
    if not (out / COMPLETE).is_file():
        if out.exists():
            raise UserError(f"{out}: is there and holds no complete demo scene; name another folder")
        partial = out.parent / f".{out.name}.{os.getpid()}.tmp"
        shutil.copytree(cached_scene(SceneSettings()), partial, ignore=shutil.ignore_patterns(".lock"))
        partial.rename(out)
    say(f"wrote {out}; next: python -m scene.downscale -s {out} -o LR --scale 4")


if __name__ == "__main__":
    errors.run(main)
