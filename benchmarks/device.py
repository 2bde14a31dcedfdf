"""The GPU that numbers come from, and why there are none without one.

python -m benchmarks.device        one line of JSON about the GPU; exit code 2 and one line where none can be used
"""

import functools
import json
import shutil
import subprocess
import warnings
from typing import Any

from utils import errors
from utils.errors import UserError


def reason(available: bool, build: str) -> str | None:
    """Why the rasterizer's CUDA kernels cannot run here; None where they can.

    Parameters
    ----------
    available : whether PyTorch can use a GPU.
    build : the rasterizer's `cuda_build`: architectures, or "no: " and why not.
    """
    if not available:
        return "no GPU here: torch.cuda.is_available() is False"
    if build.startswith("no: "):
        return f"the rasterizer was built without its CUDA kernels ({build.removeprefix('no: ')})"
    return None


@functools.cache
def why_not() -> str | None:
    """`reason` on this machine."""
    import torch  # slow to import: only once somebody asks
    from diff_gaussian_rasterization import _native

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a driver too old for it; then there is no GPU, that is all
        available = torch.cuda.is_available()
    return reason(available, _native.cuda_build)


def required(what: str) -> None:
    """Refuse to go on without a GPU.

    Raises
    ------
    UserError : the kernels cannot run here.
    """
    if why := why_not():
        raise UserError(f"{what}: {why}")


def driver() -> str:
    """The driver's version, "unknown" where nvidia-smi does not say."""
    if not shutil.which("nvidia-smi"):
        return "unknown"
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() or "unknown"


def facts() -> dict[str, Any]:
    """What numbers from the first GPU depend on."""
    import torch
    from diff_gaussian_rasterization import _native

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "kernels": _native.cuda_build,
    }


def main() -> None:
    required("benchmarks.device")
    print(json.dumps(facts()))


if __name__ == "__main__":
    errors.run(main)
