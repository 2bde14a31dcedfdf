"""Results of a study's finished runs, from manifests or from a committed JSON file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.protocols import Protocol, from_json, require_equal
from evaluation.study.plan import Plan, Run
from evaluation.study.state import only_looked, read_manifest, task_states
from utils.atomic import read_json
from utils.errors import UserError, one_line

SCHEMA = 2
COUNTED = ("order", "upsample", "lr_model", "geometry", "train", "render", "command")  # in a variant's time
OF_VARIANT = ("antialiasing", "dilation", "rasterizer")  # shown where variants differ in them
SHARED = ("frames", "protocols", "code", "made_with")  # alike in many runs, so a file has each once
FIT = {"fit_PSNR": "frames", "fit_LR_PSNR": "lr"}  # columns, and the groups of training views that they show
Views = Mapping[str, Mapping[str, float]]  # {view: {metric: value}}


@dataclass(frozen=True)
class Result:
    """One finished run.

    Parameters
    ----------
    views, frames : {background: {view: {metric: value}}} of the test views' renders and of the training frames.
    frame_facts : {background: {"jump_PSNR", "mean_step_deg", "worst_step_deg", "step_px", "flow_px",
        "disagreement", "confidence_pixel", "confidence_block"}}, as far as known.
    protocols : by background. splats : of the model.
    fit : PSNR [dB] of the model's renders of the training views against "frames", those that it was trained on, and
        against "lr", reduced; as far as measured.
    seconds, cpu_seconds : of all that leads to the renders, shared tasks counted in full; None = not recorded.
    peak_MB : of the largest process.
    interrupted : whether some time is missing, because a task was cut short and went on later.
    code : {step: hashes of all the code that it ran with}.
    states : {task: why the tree that read it would make it otherwise, "" = it would not} of all that leads to the run.
    made_with : {"device", "precision" of networks, or a package: all that its tasks had}, as far as recorded.
    """

    scene: str
    variant: str
    seed: int
    views: Mapping[str, Views] = field(default_factory=dict)
    frames: Mapping[str, Views] = field(default_factory=dict)
    frame_facts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_MB: float = 0.0
    splats: int | None = None
    fit: Mapping[str, float] = field(default_factory=dict)
    interrupted: bool = False
    tasks: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, Sequence[str]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    made_with: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether all that leads to it is known to be up to date."""
        return bool(self.states) and not any(self.states.values())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; numbers rounded to what they mean."""
        protocols = {background: protocol.to_json() for background, protocol in self.protocols.items()}
        values = {name: getattr(self, name) for name in ("scene", "variant", "seed", "splats", "interrupted")}
        values |= {name: round(getattr(self, name), 1) for name in ("seconds", "cpu_seconds", "peak_MB")}
        values |= {"tasks": dict(self.tasks), "states": dict(self.states), "protocols": protocols}
        values |= {"code": {step: list(hashes) for step, hashes in self.code.items()}}
        values |= {"made_with": {name: list(found) for name, found in self.made_with.items()}}
        return values | {
            "views": _rounded(self.views),
            "frames": _rounded(self.frames),
            "frame_facts": _rounded({"all": self.frame_facts})["all"],
            "fit": {name: round(value, 4) for name, value in self.fit.items()},
        }


def _rounded(tables: Mapping[str, Views]) -> dict[str, Any]:
    return {
        background: {view: {k: round(v, 4) for k, v in row.items()} for view, row in table.items()}
        for background, table in tables.items()
    }


def finished(plan: Plan) -> Iterator[Result]:
    """Results of the runs whose tasks are all finished, in the plan's order."""
    states = task_states(plan, plan.tasks)
    for run in plan.runs:
        manifests = {task.id: read_manifest(plan.folder(task.id)) for task in plan.closure(run.tasks)}
        if all(manifests.values()):
            there = {name: made for name, made in manifests.items() if made}
            yield _result(run, there, {name: states[name] for name in there})


def remark(states: Mapping[str, str]) -> str:
    """What a table's caption says of its tasks (`Result.states` of all its runs), "" where all is up to date."""
    other = sum(map(bool, states.values()))
    return (
        f"{other} of {len(states)} tasks were made by other code or from other results; status says which."
        if other
        else ""
    )


def states_of(results: Sequence[Result]) -> dict[str, str]:
    """States of all tasks that lead to results."""
    return {name: why for r in results for name, why in r.states.items()}


def _result(run: Run, manifests: Mapping[str, Mapping[str, Any]], states: Mapping[str, str]) -> Result:
    model = manifests[run.views]["results"] if run.views else {}
    frames = manifests[run.frames]["results"] if run.frames else {}
    trained = manifests[run.model]["results"].get("measured", {}) if run.model else {}
    commands = [c for made in manifests.values() if made["kind"] != "scene" for c in made["commands"]]
    counted = [c for c in commands if c["name"] in COUNTED]
    made = [m for m in manifests.values() if m["kind"] != "scene"]
    return Result(
        run.scene,
        run.variant,
        run.seed,
        {b: {v["name"]: _numbers(v) for v in measured["views"].values()} for b, measured in model.items()},
        {
            b: {n: _numbers(v) for n, v in found["per_view"].items()}
            for b, found in frames.items()
            if found and b in run.backgrounds
        },
        {b: _frame_facts(found) for b, found in frames.items() if found and b in run.backgrounds},
        {b: from_json(measured["protocol"], f"{run.views}/study.json") for b, measured in model.items()},
        sum(c["seconds"] for c in counted),
        sum(c["cpu_seconds"] for c in counted),
        max((c["peak_bytes"] or 0 for c in counted), default=0) / 1e6,
        next((measured["splats"] for measured in model.values()), None),
        {name: trained[name] for name in FIT.values() if name in trained},
        any(m["attempts"] > 1 for m in made) or any(map(only_looked, counted)),
        {kind: getattr(run, kind) for kind in ("frames", "model", "views")},
        _gathered([m["code"] for m in made]),
        states,
        _gathered([m.get("machine", {}) for m in made] + [m.get("versions", {}) for m in made]),
    )


def _gathered(tables: Sequence[Mapping[str, str | Sequence[str]]]) -> dict[str, list[str]]:
    """All values of each key; a text counts as one value."""
    found: dict[str, set[str]] = {}
    for table in tables:
        for key, values in table.items():
            found.setdefault(key, set()).update([values] if isinstance(values, str) else values)
    return {key: sorted(values) for key, values in sorted(found.items()) if values}


def mixtures(tables: Sequence[Mapping[str, str | Sequence[str]]]) -> dict[str, list[str]]:
    """The keys that have more than one value among tables, with all their values."""
    return {key: values for key, values in _gathered(tables).items() if len(values) > 1}


def _frame_facts(found: Mapping[str, Any]) -> dict[str, float]:
    order = found.get("order") or {}
    facts = {key: order[key] for key in ("mean_step_deg", "worst_step_deg", "step_px") if order.get(key) is not None}
    jumps = order.get("jumps", {})
    ranks = found.get("confidence") or {}
    facts |= {f"confidence_{k}": ranks[k] for k in ("pixel", "block") if ranks.get(k) is not None}
    return facts | ({"jump_PSNR": jumps["PSNR"]} if "PSNR" in jumps else {}) | found.get("alignment", {})


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if isinstance(v, int | float)}


def to_content(results: Sequence[Result]) -> dict[str, Any]:
    """JSON values of results: `runs`, which name by its place in `shared` what several of them may have alike."""
    shared: dict[str, list[Any]] = {name: [] for name in SHARED}
    runs = [r.to_json() for r in results]
    for run in runs:
        for name, values in shared.items():
            if run[name] not in values:
                values.append(run[name])
            run[name] = values.index(run[name])
    return {"shared": shared, "runs": runs}


def read_results(path: Path) -> list[Result]:
    """Results that `table --json` wrote.

    Raises
    ------
    UserError : missing, malformed, or of another schema.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("runs"), list):
        raise UserError(f"{path}: not a study's results of schema {SCHEMA}; write them with table --json")
    found = []
    for run in content["runs"]:
        try:
            run |= {name: content["shared"][name][run[name]] for name in SHARED}
            protocols = {b: from_json(p, str(path)) for b, p in run.pop("protocols").items()}
            found.append(Result(**run, protocols=protocols))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise UserError(f"{path}: run {len(found)} is not one of a study ({one_line(error)})") from error
    return found


def check_protocols(results: Sequence[Result]) -> list[str]:
    """Refuse to compare what was not measured alike.

    Returns
    -------
    The protocol fields that differ between variants and are therefore shown as columns.

    Raises
    ------
    UserError : names the field, both values and both runs.
    """
    places: dict[tuple[str, str], list[tuple[str, Protocol]]] = {}
    for r in results:
        for background, protocol in r.protocols.items():
            named = (f"{r.scene}, {r.variant}, seed {r.seed}, {background}", protocol)
            places.setdefault((r.scene, background), []).append(named)
    for group in places.values():
        require_equal(group, OF_VARIANT)
    groups = list(places.values())
    return [f for f in OF_VARIANT if any(len({getattr(p, f) for _, p in group}) > 1 for group in groups)]
