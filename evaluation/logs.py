"""Reading log.jsonl, the numbers of a training."""

from pathlib import Path
from typing import Any

from utils.atomic import parse_json
from utils.errors import UserError
from utils.log import warn

MAX_LOG_BYTES = 64 << 20


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read log.jsonl; a torn last line (a run under way) is left out, a broken one with a warning."""
    if not path.is_file() or path.stat().st_size > MAX_LOG_BYTES:
        return []
    found = []
    for line in path.read_bytes().decode(errors="replace").split("\n")[:-1]:
        try:
            value = parse_json(line, str(path)) if line.strip() else None
        except UserError as error:
            warn(f"left out: {error}")
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def last_measured(path: Path) -> dict[str, float]:
    """PSNR [dB] of each group of views ("test", "train", "frames", "lr") when it was measured last."""
    lines = [line for line in read_log(path) if line.get("step") == "train" and "views" in line]
    return {str(line["views"]): float(line["psnr"]) for line in lines}
