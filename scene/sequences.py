"""sequences.json: the whole schedule of a video network - which calls, which frames in each, which results are kept.

One frame a line, so that it reads, diffs and can be edited by hand: move a line to move a frame, set "save" to choose
the call whose result is kept. `cost` and `angle_deg` describe the step from the line above; they are for the report,
nothing is computed from them, and a hand-edited file may leave them out.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.atomic import read_json, write_text
from utils.errors import UserError

FILE_NAME = "sequences.json"
FORMAT = "seqsplat-sequences"
VERSION = 1
MAX_STEP = 1e30  # larger step costs are nonsense, and integers of any length would not fit a float
_FRAME_KEYS = {"name", "save", "cost", "angle_deg"}


@dataclass(frozen=True)
class Subsequence:
    """One call of the video network.

    Parameters
    ----------
    frames : names in the order in which the network sees them, each at most once.
    save : positions in `frames` whose result is kept, ascending.
    padded : the network sees the first and the last frame twice; the two extra results are dropped.
    costs : cost of each step in the unit of the ordering, len(frames) - 1 values, None = not measurable; may be empty.
    angles_deg : angle of each step about the scene's centre, in degrees; likewise.
    """

    frames: tuple[str, ...]
    save: tuple[int, ...]
    padded: bool = False
    costs: tuple[float | None, ...] = ()
    angles_deg: tuple[float | None, ...] = ()

    @property
    def saved(self) -> tuple[str, ...]:
        """Names whose result is kept from this call."""
        return tuple(self.frames[i] for i in self.save)


@dataclass(frozen=True)
class Sequences:
    """All calls, in the order in which they are made.

    Parameters
    ----------
    method : name of the ordering that made them, or what the user wrote.
    settings : what the ordering was given, for the record (JSON values).
    cost, unit : name and unit of the step costs ("orb", "bits").
    """

    subsequences: tuple[Subsequence, ...]
    method: str = "by hand"
    settings: dict[str, Any] = field(default_factory=dict)
    cost: str = ""
    unit: str = ""

    @property
    def saved(self) -> tuple[str, ...]:
        """Names of all frames that are kept, in the order in which they come out."""
        return tuple(name for s in self.subsequences for name in s.saved)

    def step_angles_deg(self) -> list[float]:
        """All measured step angles, for means and worst cases."""
        return [a for s in self.subsequences for a in s.angles_deg if a is not None]

    def step_costs(self) -> list[float]:
        """All measured step costs, for means and worst cases."""
        return [c for s in self.subsequences for c in s.costs if c is not None]

    def summary(self) -> dict[str, Any]:
        """Counts, mean and worst step, for the record and the report."""
        result: dict[str, Any] = {
            "subsequences": len(self.subsequences),
            "views": len(self.saved),
            "frames_upsampled": sum(len(s.frames) + 2 * s.padded for s in self.subsequences),
        }
        for name, steps in (("step_deg", self.step_angles_deg()), ("step_cost", self.step_costs())):
            if steps:
                result |= {f"mean_{name}": sum(steps) / len(steps), f"worst_{name}": max(steps)}
        return result

    def headline(self) -> str:
        """The summary in one line for people."""
        s = self.summary()
        calls = "1 call" if s["subsequences"] == 1 else f"{s['subsequences']} calls"
        text = f"{self.method}: {s['views']} views in {calls}, {s['frames_upsampled']} frames in all"
        if "mean_step_deg" in s:
            text += f"; step mean {s['mean_step_deg']:.1f}, worst {s['worst_step_deg']:.1f} degrees"
        if "mean_step_cost" in s and self.unit != "deg":
            text += f"; {self.cost} mean {s['mean_step_cost']:.3g}, worst {s['worst_step_cost']:.3g} {self.unit}"
        return text


def check_sequences(
    sequences: Sequences, required: Iterable[str], known: Iterable[str] = (), where: str = FILE_NAME
) -> None:
    """Check a schedule against the views of a scene.

    Parameters
    ----------
    required : names that must be saved exactly once.
    known : other names that may take part, and may be saved at most once (test views in the paper's clips).
    where : what messages call the schedule.

    Raises
    ------
    UserError : an unknown name (with the nearest known one), a required name saved never, any name saved twice.
    """
    required = list(dict.fromkeys(required))
    allowed = dict.fromkeys([*required, *known])
    saved_in: dict[str, int] = {}
    for number, subsequence in enumerate(sequences.subsequences, 1):
        for name in subsequence.frames:
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{where}: subsequence {number}: the scene has no view {name!r}{hint}")
        for name in subsequence.saved:
            if name in saved_in:
                raise UserError(
                    f"{where}: {name!r} is saved by subsequences {saved_in[name]} and {number}; keep one of the two"
                )
            saved_in[name] = number
    missing = [name for name in required if name not in saved_in]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(required)} views are saved by no subsequence, the first is "
            f'{missing[0]!r}; set "save": true on one line of each'
        )


def write_sequences(path: str | Path, sequences: Sequences) -> None:
    """Write sequences.json atomically. Raises UserError where that fails."""
    write_text(path, _text(sequences))


def _text(sequences: Sequences) -> str:
    head = {
        "format": FORMAT,
        "version": VERSION,
        "method": sequences.method,
        "settings": sequences.settings,
        "cost": sequences.cost,
        "unit": sequences.unit,
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}," for k, v in head.items()]
    blocks = []
    for s in sequences.subsequences:
        rows = [f"      {json.dumps(row, allow_nan=False)}" for row in _rows(s)]
        blocks.append(f'    {{"padded": {json.dumps(s.padded)}, "frames": [\n' + ",\n".join(rows) + "\n    ]}")
    return "{\n" + "\n".join(lines) + '\n  "sequences": [\n' + ",\n".join(blocks) + "\n  ]\n}\n"


def _rows(s: Subsequence) -> list[dict[str, Any]]:
    saved = set(s.save)
    rows: list[dict[str, Any]] = [{"name": name, "save": i in saved} for i, name in enumerate(s.frames)]
    for key, values in (("cost", s.costs), ("angle_deg", s.angles_deg)):
        for row, value in zip(rows[1:], values, strict=False):
            row[key] = None if value is None else round(value, 3)
    return rows


def read_sequences(path: str | Path, required: Iterable[str] | None = None, known: Iterable[str] = ()) -> Sequences:
    """Read and check sequences.json, also one written or edited by hand.

    Parameters
    ----------
    required, known : see `check_sequences`; None = check the file against itself only.

    Raises
    ------
    UserError : not readable, not of this format, or refused by `check_sequences`; names the file and the entry.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("sequences"), list):
        raise UserError(f'{path}: an object with "format": "{FORMAT}" and a list "sequences" is expected')
    if data.get("version") != VERSION:
        raise UserError(f"{path}: version {data.get('version')!r}; this program reads version {VERSION}")
    texts = [data.get(key, "") for key in ("method", "cost", "unit")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(data.get("settings", {}), dict):
        raise UserError(f"{path}: method, cost and unit must be texts and settings an object")
    subsequences = tuple(_subsequence(s, f"{path}: subsequence {i}") for i, s in enumerate(data["sequences"], 1))
    method, cost, unit = texts
    result = Sequences(subsequences, method or "by hand", data.get("settings", {}), cost, unit)
    check_sequences(
        result, result.saved if required is None else required, _members(result, required, known), str(path)
    )
    return result


def _members(sequences: Sequences, required: Iterable[str] | None, known: Iterable[str]) -> Iterable[str]:
    return known if required is not None else (name for s in sequences.subsequences for name in s.frames)


def _subsequence(value: Any, where: str) -> Subsequence:
    if not isinstance(value, dict) or not isinstance(value.get("frames"), list) or not value["frames"]:
        raise UserError(f'{where}: an object with a non-empty list "frames" is expected')
    if value.keys() - {"frames", "padded"} or not isinstance(value.get("padded", False), bool):
        raise UserError(f'{where}: only "frames" and "padded" (true or false) are expected')
    rows = value["frames"]
    for i, row in enumerate(rows, 1):
        _check_row(row, f"{where}, line {i}")
    frames = tuple(row["name"] for row in rows)
    if len(set(frames)) != len(frames):
        twice = next(name for i, name in enumerate(frames) if name in frames[:i])
        raise UserError(f"{where}: {twice!r} is listed twice")
    return Subsequence(
        frames,
        tuple(i for i, row in enumerate(rows) if row["save"]),
        value.get("padded", False),
        _steps(rows, "cost"),
        _steps(rows, "angle_deg"),
    )


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not isinstance(row.get("save"), bool):
        raise UserError(f'{where}: {{"name": "...", "save": true or false}} is expected')
    if row.keys() - _FRAME_KEYS:
        raise UserError(
            f"{where}: unknown key {min(row.keys() - _FRAME_KEYS)!r}; known: {', '.join(sorted(_FRAME_KEYS))}"
        )
    for key in ("cost", "angle_deg"):
        number = row.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            raise UserError(f"{where}: {key} = {number!r}; a number or null is expected")
        if number is not None and not -MAX_STEP < number < MAX_STEP:
            raise UserError(f"{where}: {key} is beyond {MAX_STEP}")


def _steps(rows: Sequence[dict[str, Any]], key: str) -> tuple[float | None, ...]:
    """Values of all lines but the first (which has no step); empty where the file gives none."""
    if not any(key in row for row in rows[1:]):
        return ()
    return tuple(None if row.get(key) is None else float(row[key]) for row in rows[1:])
