"""What a part of scripts/gpu_check.sh found, as JSON: the last words of the tests, trained models, equal bits.

python -m benchmarks.gpu_parts tests LOG --json FILE
python -m benchmarks.gpu_parts scene MODEL --seconds S --json FILE
python -m benchmarks.gpu_parts determinism FOLDER --json FILE
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from arguments.flags import Parser, underscored
from benchmarks import device, report
from utils import errors
from utils.atomic import read_json, write_text
from utils.errors import UserError
from utils.provenance import sha256

CLOSING = re.compile(r"^=* ?((?:\d+ \w+(?:, )?)+) in [\d.]+s")
SANITIZER = re.compile(r"^========= (?:ERROR SUMMARY|RACECHECK SUMMARY): (.*)$", re.M)
Found = dict[str, Any]


def tests(log: str) -> Found:
    """The counts of pytest's closing lines, or the summaries of compute-sanitizer, in the order they came.

    Raises
    ------
    UserError : there are none: nothing ran to its end.
    """
    found = [match[1] for line in log.splitlines() if (match := CLOSING.match(line))] + SANITIZER.findall(log)
    if not found:
        raise UserError("the log has no closing line of pytest and no summary of compute-sanitizer")
    return {"summaries": found}


def scene(model: Path, seconds: float) -> Found:
    """Quality of a trained model, and how long each step took.

    Parameters
    ----------
    seconds : of all attempts together; a training that was cut short counts only its last part in run.json.
    """
    results = read_json(model / "results.json")
    name, quality = max(results.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    steps = read_json(model / "run.json")["steps"]
    return {
        "iterations": int(name.rpartition("_")[2]),
        "quality": quality,
        "minutes_of_all_attempts": seconds / 60,
        "minutes": {step: record["seconds"] / 60 for step, record in steps.items()},
    }


def last_psnr(model: Path) -> float:
    """PSNR [dB] of the test views, the last time training measured it."""
    lines = [line for line in (model / "log.jsonl").read_text().splitlines() if '"views": "test"' in line]
    if not lines:
        raise UserError(f"{model}: training measured no test views")
    return float(re.findall(r'"psnr": ([-\d.e+]+)', lines[-1])[0])


def determinism(folder: Path) -> Found:
    """Whether models in `fixed*` have equal bits, and the quality of those in `fast*`, one a seed."""
    plys = {
        m.name: sorted(m.glob("point_cloud/iteration_*/point_cloud.ply"))[-1] for m in sorted(folder.glob("fixed*"))
    }
    hashes = {name: sha256(path) for name, path in plys.items()}
    psnr = {m.name: last_psnr(m) for m in sorted(folder.glob("fast*"))}
    if len(hashes) < 2 or len(psnr) < 2:
        raise UserError(f"{folder}: at least two models each, fixed* and fast*, are expected")
    spread = max(psnr.values()) - min(psnr.values())
    return {"equal": len(set(hashes.values())) == 1, "sha256": hashes, "fast_psnr": psnr, "fast_psnr_spread_db": spread}


def record(found: Found, path: Path) -> None:
    """Write it with what it depends on."""
    head = {"commit": report.machine()["commit"], "gpu": device.facts()}
    write_text(path, report.json_text(report.rounded_values({**head, **found})) + "\n")


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.gpu_parts", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("what", choices=["tests", "scene", "determinism"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0, help="of all attempts (scene)")
    parser.add_argument("--json", type=Path, required=True, help="the numbers go here")
    return parser.parse_args(underscored(words))


def main() -> None:
    args = parse(sys.argv[1:])
    device.required("benchmarks.gpu_parts")
    if args.what == "tests":
        found = tests(args.path.read_text(errors="replace"))
    elif args.what == "scene":
        found = scene(args.path, args.seconds)
    else:
        found = determinism(args.path)
    record(found, args.json)
    if found.get("equal") is False:
        raise UserError(f"{args.path}: runs with --deterministic differ")


if __name__ == "__main__":
    errors.run(main)
