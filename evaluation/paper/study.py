"""From a data set and networks to a study file: every row of the paper's tables as a variant.

Rows: "bicubic", "hr" (the bound, trained on the truth), and for each network "single-NET" (t = 1), "s-NET", "als-NET".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments.steps import METHODS
from scene.check import NERF_SYNTHETIC

COMPAT = "sequence_matters"


@dataclass(frozen=True)
class DataSet:
    """What the paper does with one of its data sets.

    Parameters
    ----------
    name : its folder and its name in scene.check. published : its set in published.toml.
    ordered, limited : settings of S, and what ALS adds.
    """

    name: str
    published: str
    config: str
    scenes: tuple[str, ...]
    ordered: Mapping[str, Any]
    limited: Mapping[str, Any]


BLENDER = DataSet(
    "nerf_synthetic",
    "blender",
    "blender.toml",
    NERF_SYNTHETIC,
    {"cost": "orb", "num_images_in_sequence": 100},
    {"thres_values": [15.0, 30.0, 45.0]},
)
MIP360 = DataSet(
    "mipnerf360",
    "mip360",
    "mip360.toml",
    ("bicycle", "flowers", "garden", "stump", "treehill", "room", "counter", "kitchen", "bonsai"),  # as printed there
    {"cost": "pose", "num_images_in_sequence": 8},
    {"thres_values": [30.0, 50.0]},
)


def row_name(kind: str, network: str) -> str:
    """Name of a variant: kind = single, s or als."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '_', network)}"


def study_text(
    data: DataSet, folders: Mapping[str, Path], networks: Sequence[str], seeds: Sequence[int], corrected: bool
) -> str:
    """A study file (TOML) with all rows of a data set's tables.

    Parameters
    ----------
    folders : the HR scene of each scene's name.
    corrected : LR views and variants without the release's quirks.
    """
    config = Path(__file__).resolve().parents[2] / "configs" / data.config
    lines = [
        "# Written by scripts/reproduce_tables.sh. Of this file `python -m evaluation.study` tells plan and status.",
        _line("config", str(config)),
        _line("seeds", list(seeds)),
        _line("backgrounds", ["black"]),
    ]
    for name, folder in folders.items():
        lines += ["", f"[scenes.{name}]", *(_line(k, v) for k, v in _scene(data, folder, corrected).items())]
    for name, table in _variants(data, networks, corrected).items():
        lines += ["", f"[variants.{json.dumps(name)}]", *(_line(k, v) for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _scene(data: DataSet, folder: Path, corrected: bool) -> dict[str, Any]:
    hr = str(folder.resolve())
    words = ["python", "-m", "scene.downscale", "-s", hr, "-o", "{task}/lr", "--scale", "4"]
    if not corrected or data is MIP360:  # there it is the paper's sizes that make results comparable
        words += ["--compat", COMPAT]
    table: dict[str, Any] = {"prepare": " ".join(_quoted(word) for word in words), "source": "{prepared}/lr"}
    table["hr"] = hr if data is BLENDER else "{prepared}/lr"
    return table | {"metrics": {"lpips": ["LPIPS"]}}


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./{}-]+", word) else "'" + word.replace("'", "'\"'\"'") + "'"


def _variants(data: DataSet, networks: Sequence[str], corrected: bool) -> dict[str, dict[str, Any]]:
    assert COMPAT in METHODS
    greedy = {"ordering": "greedy", **data.ordered}
    als = {"ordering": "als", **data.ordered, **data.limited}
    whatever = {"max_angle": 180.0} if corrected else {}  # the release hands features on whatever the angle
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"bicubic": (greedy, {"upsampler": "bicubic"})}
    for network in networks:
        chosen = {"upsampler": network}
        rows[row_name("single", network)] = greedy, chosen | {"propagation": "none"}
        rows[row_name("s", network)] = greedy, chosen | whatever | {"propagation": "path"}
        rows[row_name("als", network)] = als, chosen | whatever | {"propagation": "path"}
    common: dict[str, Any] = {"method": COMPAT} | ({"flags": {"compat": ""}} if corrected else {})
    made = {name: common | {"order": order, "upsample": up} for name, (order, up) in rows.items()}
    bound: dict[str, Any] = {"source": "hr"} | common
    if data is MIP360:
        bound["train"] = {"images": "images_gt"}
    return made | {"hr": bound}


def _line(key: str, value: Any) -> str:
    return f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_line(k, v) for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # texts and numbers are written alike in both
