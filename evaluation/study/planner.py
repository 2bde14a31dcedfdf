"""From a study to its runs and to the tasks that they share, each named by a hash of what makes it.

The hash holds the settings that differ from their defaults, the scene as the study file describes it, the seed where a
step depends on it, and the names of the tasks that are needed. It does not hold the code: manifests do.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from arguments.flags import as_flags, make
from arguments.pipeline import needs_geometry, needs_lr_model
from arguments.steps import OWN_CODE, STEPS
from arguments.training import OptimizationParams
from arguments.upsampling import PRIORS
from evaluation.study.plan import MEASURE_FRAMES, OWN_COMMAND, Command, Plan, Run, Task, digest
from evaluation.study.spec import BACKGROUNDS, SceneSpec, Study, Variant
from scene.trained_model import ply_path
from utils.errors import UserError

# Settings that cannot change a result, or say where things lie on this machine.
PLACES = {"data_device", "raster_memory", "download", "tensorboard", "log_interval", "quiet"}
LOADING = ("images", "eval", "resolution", "allow_missing", "hr_root")  # what frames' truth depends on
WORD = re.compile(r"\{([A-Za-z_][\w-]*)(\.frames|\.ply)?\}")


def make_plan(study: Study, out: str = "", source: str = "", hr: str = "") -> Plan:
    """Expand a study.

    Parameters
    ----------
    out : folder of all tasks instead of the study's. source, hr : one LR scene, and its HR scene, instead of
        the study's.

    Raises
    ------
    UserError : no scene, a word in braces that means nothing, or variants that need each other in a circle.
    """
    scenes = tuple(scene for scene in study.scenes if scene.wanted)
    if source:
        source, hr = os.path.abspath(source), os.path.abspath(hr) if hr else ""  # the same scene from any folder
        scenes = (SceneSpec(Path(source).resolve().name, source, hr),)
    if not scenes:
        raise UserError(f"study {study.name}: no [scenes.NAME], and no --source; which scene is meant?")
    planner = _Planner(study, Plan(Path(os.path.abspath(out or expanded(study.out, study.name)))))
    for scene in scenes:
        for variant in study.variants:
            there = not variant.scenes or (variant.named if source else scene.name in variant.scenes)
            if variant.wanted and there and (scene.hr or variant.source == "lr"):
                for seed in variant.seeds or study.seeds:
                    planner.plan.runs.append(planner.run(scene, variant, seed))
    wanted = [task for run in planner.plan.runs for task in run.tasks]
    planner.plan.tasks = {task.id: task for task in planner.plan.closure(wanted)}
    return planner.plan


def expanded(text: str, where: str) -> str:
    """Put environment variables into a path.

    Raises
    ------
    UserError : a variable that is not set.
    """
    path = os.path.expanduser(os.path.expandvars(text))
    missing = re.search(r"\$\{?(\w+)", path)
    if missing:
        raise UserError(f"{where}: {text}: the environment variable {missing[1]} is not set")
    return path


def uses_seed(step: str, values: Mapping[str, Any]) -> bool:
    """Whether a step's result depends on the seed; own code (MODULE:NAME) may."""
    if step == "order":
        return str(values.get("ordering", "")) == "random" or _own_code(values)
    if step == "upsample":
        return bool(values.get("random_weights")) or values.get("upsampler") in PRIORS or _own_code(values)
    return step in ("train", "lr_model")


def _own_code(values: Mapping[str, Any]) -> bool:
    return any(":" in str(values.get(name, "")) for name in OWN_CODE)


def essential(step: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are worth a hash: those that differ from their defaults and can change a result."""
    defaults = {f.name: f.default for group in STEPS[step].groups for f in fields(group)}
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k not in PLACES}
    return {k: kept[k] for k in sorted(kept) if kept[k] != defaults[k]}


class _Planner:
    def __init__(self, study: Study, plan: Plan) -> None:
        self.study, self.plan = study, plan
        self.open: list[tuple[str, str, int]] = []  # runs that are being planned, for circles
        self.runs: dict[tuple[str, str, int], Run] = {}

    def run(self, scene: SceneSpec, variant: Variant, seed: int) -> Run:
        key = (scene.name, variant.name, seed)
        if key in self.open:
            circle = " -> ".join(name for _, name, _ in [*self.open, key])
            raise UserError(f"study {self.study.name}: variants need each other in a circle: {circle}")
        if key not in self.runs:
            self.open.append(key)
            frames = self._frames(scene, variant, seed) if "upsample" in variant.steps else ""
            model = self._model(scene, variant, seed, frames) if "train" in variant.steps else ""
            views = self._views(scene, variant, seed, model) if model else ""
            self.runs[key] = Run(*key, frames, model, views, scene.backgrounds or self.study.backgrounds)
            self.open.pop()
        return self.runs[key]

    def prepared(self, scene: SceneSpec) -> str:
        """Task that makes a scene, "" where it is there."""
        if not scene.prepare:
            return ""
        builder = _Builder(self, scene, None, None, "scene")
        for text in scene.prepare:
            builder.command(text)
        return builder.done({"prepare": list(scene.prepare)})

    def depths(self, scene: SceneSpec, variant: Variant, seed: int) -> str:
        """A model of the LR views and its depths."""
        builder = _Builder(self, scene, variant, seed, "lr")
        model = f"{builder.folder}/lr_model"
        builder.step("lr_model", {"model_path": model}, "lr_model")
        builder.step("geometry", {"model_path": model, "output_path": builder.folder, "geometry": True})
        return builder.done({})

    def _frames(self, scene: SceneSpec, variant: Variant, seed: int) -> str:
        builder = _Builder(self, scene, variant, seed, "frames")
        builder.step("order", {})
        flow = needs_geometry(builder.values("upsample"))
        depths = {"geometry": f"{builder.text('{geometry}')}/geometry"} if flow else {}
        builder.step("upsample", depths)
        loading = {k: builder.filled(v) for k, v in builder.values("order").items() if k in LOADING}
        words = ("-m", "evaluation.frame_quality", "-s", builder.source, "-m", builder.folder)
        builder.commands.append(
            Command(MEASURE_FRAMES, (*words, "--backgrounds", *BACKGROUNDS, *as_flags(loading | depths)))
        )
        return builder.done({})

    def _model(self, scene: SceneSpec, variant: Variant, seed: int, frames: str) -> str:
        builder = _Builder(self, scene, variant, seed, "model")
        own: dict[str, Any] = {"frames": "none"} if variant.source == "hr" else {}
        if frames:
            own["frames"] = str(self.plan.folder(frames) / "hr")
            builder.need(frames, "frames")
        values = builder.values("train")
        if needs_lr_model(values) and variant.source == "hr":
            own["init_points"] = "scene"  # a model of its own views would be no start but a training
        elif needs_lr_model(values):
            own["init_ply"] = builder.text("{lr_model.ply}")
        if not frames and "frames" not in values and not values.get("scale"):
            own["frames"] = "none"  # trained on the scene's own views
        builder.step("train", own)
        return builder.done({"source": variant.source})

    def _views(self, scene: SceneSpec, variant: Variant, seed: int, model: str) -> str:
        """Renders of the test views and their metrics: a task of its own, so that measuring more costs no training."""
        builder = _Builder(self, scene, variant, seed, "views")
        builder.need(model, "model")
        builder.measured = scene.backgrounds or self.study.backgrounds
        trained = str(self.plan.folder(model))
        for background in builder.measured:
            folder = f"{builder.folder}/{background}"
            more = {"model_path": trained, "output_path": folder, "background": background, "skip_train": True}
            builder.step("render", more, background)
        folders = [f"{builder.folder}/{background}" for background in builder.measured]
        more = {"model_paths": folders, "no_frames": True, "no_report": True}
        builder.step("metrics", more, builder.measured[0])
        return builder.done({"backgrounds": list(builder.measured)})


class _Builder:
    """Collects what makes one task; its folder's name is known only at the end, until then it is {task}."""

    def __init__(
        self, planner: _Planner, scene: SceneSpec, variant: Variant | None, seed: int | None, kind: str
    ) -> None:
        self.planner, self.scene, self.variant, self.seed, self.kind = planner, scene, variant, seed, kind
        self.commands: list[Command] = []
        self.steps: dict[str, Any] = {}
        self.before: dict[str, Any] = {}
        self.needs: dict[str, str] = {}
        self.measured: tuple[str, ...] = ()
        self.seeded = False
        self.folder = "{task}"
        self.scene_text = scene.hr if variant and variant.source == "hr" else scene.source
        self.source = "" if kind in ("scene", "views") else os.path.abspath(self.text(self.scene_text))
        if self.source and "prepared" not in self.needs:
            planner.plan.sources.add(self.source)

    def need(self, task: str, word: str) -> None:
        self.needs[word] = task

    def values(self, step: str) -> dict[str, Any]:
        assert self.variant is not None
        return self.planner.study.settings(self.scene, self.variant, step)

    def step(self, name: str, more: Mapping[str, Any], record: str = ".") -> None:
        """Add a step of the pipeline; `more`: what the study decides, with this machine's paths in it."""
        assert self.variant is not None
        values = self.values(name)
        for text in self.variant.before.get(name, ()):
            self.before.setdefault(name, []).append(text)
            self.command(text)
        self.steps[name] = essential(name, values)
        filled = {key: self.filled(value) for key, value in values.items()}
        if name in ("order", "lr_model", "upsample", "train"):
            filled |= {"source_path": self.source, "model_path": self.folder}
        filled |= more
        seeded = uses_seed(name, values)
        self.seeded |= seeded
        filled |= {"seed": self.seed if seeded else 0, "skip_done": True, "overwrite": True}
        words = [STEPS[name].script, *as_flags(filled), "--device={device}", "--threads={threads}"]
        if name in ("render", "geometry"):
            words.append("--compat=")  # a model remembers its own; all results have one protocol
        self.commands.append(Command(name, tuple(words), (record, "train" if name == "lr_model" else name)))

    def command(self, text: str) -> None:
        """Add a command of the study file."""
        words = tuple(self.text(word) for word in shlex.split(text))
        self.commands.append(Command(OWN_COMMAND, words))

    def filled(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.filled(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Put folders in place of the words in braces, and note which tasks they name."""
        where = f"study {self.planner.study.name}: {text!r}"
        filled = WORD.sub(lambda match: self._word(match, where), text)
        return expanded(filled, where)

    def _word(self, match: re.Match[str], where: str) -> str:
        word, part = match[1], match[2] or ""
        fixed: dict[str, Callable[[], str]] = {
            "task": lambda: "{task}",
            "device": lambda: "{device}",
            "threads": lambda: "{threads}",
        }
        if self.variant:  # not in commands that prepare the scene itself
            fixed |= {
                "source": lambda: self.source or os.path.abspath(self.text(self.scene_text)),
                "hr": lambda: os.path.abspath(self.text(self.scene.hr)),
                "prepared": lambda: self._folder("prepared", self.planner.prepared(self.scene)),
                "geometry": self._depths,
                "frames": self._frames,
                "seed": self._seed,
            }
        needs = self.variant.needs if self.variant else {}
        if word in needs and self.seed is not None:
            return self._needed(word, self.planner.study.variant(needs[word]), part)
        if word == "lr_model" and self.variant and part != ".frames":
            return self._ply(f"{self._depths()}/lr_model", self.variant, "lr_model", part)
        if word not in fixed or part:
            known = ", ".join(sorted({*fixed, *needs, *(("lr_model",) if self.variant else ())}))
            raise UserError(f"{where}: {match[0]} means nothing here; there are {known}")
        return fixed[word]()

    def _needed(self, word: str, variant: Variant, part: str) -> str:
        """Folder of another variant's model, of its frames, or its model's file."""
        assert self.seed is not None
        run = self.planner.run(self.scene, variant, self.seed)
        if part == ".frames":
            return self._folder(word + part, run.frames)
        return self._ply(self._folder(word, run.model), variant, "train", part)

    def _ply(self, folder: str, variant: Variant, step: str, part: str) -> str:
        """A model's folder, or (".ply") the file that step `step` ends with."""
        last = make(OptimizationParams, self.planner.study.settings(self.scene, variant, step)).iterations
        return str(ply_path(Path(folder), last)) if part else folder

    def _depths(self) -> str:
        assert self.variant is not None
        assert self.seed is not None
        fixed = self.planner.study.lr_model_seed
        seed = self.seed if fixed is None else fixed
        return self._folder("geometry", self.planner.depths(self.scene, self.variant, seed))

    def _seed(self) -> str:
        self.seeded = True
        return str(self.seed)

    def _frames(self) -> str:
        return self._folder("frames", self.needs.get("frames", ""))

    def _folder(self, word: str, task: str) -> str:
        if not task:
            raise UserError(
                f"study {self.planner.study.name}: {{{word}}}: there is no such task in scene {self.scene.name}"
            )
        self.need(task, word)
        return str(self.planner.plan.folder(task))

    def done(self, facts: Mapping[str, Any]) -> str:
        """Name the task, put its folder into its commands, and add it to the plan."""
        seed = self.seed if self.seeded else None
        scene = {"name": self.scene.name, "source": self.scene_text}
        recipe: dict[str, Any] = {"kind": self.kind, **facts, "needs": dict(sorted(self.needs.items()))}
        recipe |= {"scene": scene, "steps": self.steps, "before": self.before, "seed": seed}
        recipe = json.loads(json.dumps(recipe))
        name = f"{self.kind}-{digest(recipe)}"
        folder = str(self.planner.plan.folder(name))
        commands = tuple(
            Command(c.name, tuple(w.replace("{task}", folder) for w in c.words), c.record) for c in self.commands
        )
        needs = tuple(dict.fromkeys(self.needs.values()))
        task = Task(name, self.kind, self.scene.name, seed, recipe, needs, commands, self.measured)
        self.planner.plan.tasks[name] = task
        return name
