"""A study file (TOML): scenes, variants, seeds and settings, all checked before anything runs."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from arguments.flags import checked, make, parse_given, read_toml
from arguments.pipeline import reached
from arguments.steps import DEPTH_STEPS, METHODS, STEPS, RunParams, file_settings, own_settings, read_config
from utils.errors import UserError

BACKGROUNDS = ("white", "black")
ALL = "all"  # stands in tables for the mean over scenes
RESERVED = {
    "task",
    "source",
    "hr",
    "prepared",
    "geometry",
    "lr_model",
    "frames",
    "model",
    "device",
    "threads",
}  # in braces
PROTOCOL_STEPS = ("render", "metrics")  # how a result is measured: never --compat, so that all results compare
# The study itself says these.
DECIDED = {
    *("source_path", "model_path", "output_path", "model_paths", "background", "seed", "device", "threads", "quiet"),
    *("skip_done", "overwrite", "dry_run", "steps", "method", "iteration", "skip_train", "skip_test"),
    *("no_frames", "no_report", "link", "tsv", "train"),
}
Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class SceneSpec:
    """A scene of the study, its texts as they stand in the file.

    Parameters
    ----------
    source, hr : folders of the LR scene and of the HR scene; without the latter, variants with source = "hr" are left
        out. `{prepared}` is the folder that the `prepare` commands write to, environment variables are expanded.
    backgrounds : what is rendered on; () = the study's. wanted : whether it is part of the study's runs.
    settings : {"flags", "hr_flags" (for source = "hr" only) or a step's name: {setting: value}}.
    """

    name: str
    source: str
    hr: str = ""
    prepare: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    settings: Sections = field(default_factory=dict)
    wanted: bool = True

    def __post_init__(self) -> None:
        if self.name == ALL:
            raise UserError(f"{self.source}: a scene {ALL!r}: tables call the mean over scenes so; choose another name")


@dataclass(frozen=True)
class Variant:
    """A way to get from LR views to a 3D model.

    Parameters
    ----------
    source : "lr", or "hr" for the bound that is trained on the truth.
    steps : of order, upsample, train; rendering and measuring follow a training by themselves.
    needs : {word: variant}: `{word}` in settings and commands stands for that variant's model folder, `{word.frames}`
        for its frames' folder, `{word.ply}` for the last PLY of its model.
    before : {step: commands that run before it}.
    seeds, scenes : its own; () = the study's.
    wanted : False where it is there only for others that need it. named : by the command line.
    """

    name: str
    source: str = "lr"
    method: str = "seqsplat"
    steps: tuple[str, ...] = ("order", "upsample", "train")
    needs: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    scenes: tuple[str, ...] = ()
    settings: Sections = field(default_factory=dict)
    wanted: bool = True
    named: bool = False


@dataclass(frozen=True)
class Study:
    """Everything that a study file says.

    Parameters
    ----------
    lr_model_seed : of the models of the LR views, in all runs; None = each run's own.
    common : settings of all its scenes and variants, as in a scene.
    overrides : flags of the command line, which win over the file's.
    """

    name: str
    out: str
    scenes: tuple[SceneSpec, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""
    backgrounds: tuple[str, ...] = BACKGROUNDS
    config: tuple[Mapping[str, Any], Sections] = field(default_factory=lambda: ({}, {}))
    common: Sections = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    lr_model_seed: int | None = None

    def variant(self, name: str) -> Variant:
        """Return the variant of a name that was checked."""
        return next(v for v in self.variants if v.name == name)

    def settings(self, scene: SceneSpec, variant: Variant, step: str) -> dict[str, Any]:
        """What the study says for a step: method < configuration < study < scene < variant < command line."""
        values = file_settings(step, variant.method, {k: dict(v) for k, v in self.config[1].items()})
        bound = {"flags": scene.settings.get("hr_flags", {}) if variant.source == "hr" else {}}
        for layer in (self.common, scene.settings, bound, variant.settings, {"flags": self.overrides}):
            shared = {key: value for key, value in layer.get("flags", {}).items() if key in reached(step)}
            values |= shared | dict(layer.get(step, {}))
        known = own_settings(step) - ({"compat"} if step in PROTOCOL_STEPS else set())
        return {key: value for key, value in values.items() if key in known}


def read_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises
    ------
    UserError : missing or malformed file, unknown key, wrong value, a name that is not there; one line.
    """
    path = Path(path)
    content = _included(path, ())
    known = {"out", "config", "seeds", "lr_model_seed", "baseline", "backgrounds", "use", "scenes", "variants"}
    _known_keys(content, {*known, "flags", *STEPS}, str(path))
    scenes = tuple(_scene(name, table, path) for name, table in _tables(content, "scenes", path).items())
    config = read_config(content["config"]) if content.get("config") else ({}, {})
    method = str(config[0].get("method", Variant.method))
    tables = _tables(content, "variants", path)
    variants = tuple(_variant(name, {"method": method} | table, path) for name, table in tables.items())
    study = Study(
        path.stem,
        _text(content.get("out", "output/study"), f"{path}: out"),
        scenes,
        variants,
        _numbers(content.get("seeds", [0]), f"{path}: seeds"),
        _text(content.get("baseline", ""), f"{path}: baseline"),
        _backgrounds(content.get("backgrounds", list(BACKGROUNDS)), f"{path}: backgrounds"),
        config,
        _sections(content, str(path)),
        lr_model_seed=_number(content.get("lr_model_seed"), f"{path}: lr_model_seed"),
    )
    if not study.variants or not study.seeds:
        raise UserError(f"{path}: no {'seeds' if study.variants else '[variants.NAME]'}; there is nothing to run")
    for variant in variants:
        for name in variant.scenes:
            _one_of(name, [s.name for s in scenes], f"{path}: variant {variant.name}: scenes")
        if variant.source == "hr" and scenes and not any(scene.hr for scene in scenes):
            raise UserError(f"{path}: variant {variant.name}: source = 'hr', but no scene says hr = FOLDER")
    use = _table(content, "use", str(path))
    _known_keys(use, {"scenes", "variants"}, f"{path}: use")
    named = [_texts(use.get(key, []), f"{path}: use.{key}") for key in ("scenes", "variants")]
    study = _wanted(study, named[0], named[1], f"{path}: use")
    check(study, str(path))
    return study


def _included(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    """Content of a file over that of the files that it includes; `config` becomes a path from here."""
    if path.resolve() in parents:
        raise UserError(f"{path}: includes itself")
    content = read_toml(path)
    if "config" in content:
        content["config"] = str(path.parent / _text(content["config"], f"{path}: config"))
    merged: dict[str, Any] = {"scenes": {}, "variants": {}}
    includes = content.pop("include", [])
    below = [_included(path.parent / name, (*parents, path.resolve())) for name in _texts(includes, f"{path}: include")]
    for part in (*below, content):
        named = {key: merged[key] | _tables(part, key, path) for key in ("scenes", "variants")}
        sections = {key: merged.get(key, {}) | _table(part, key, str(path)) for key in ("flags", *STEPS) if key in part}
        merged |= part | named | sections
    return merged


def restrict(study: Study, scenes: Sequence[str], variants: Sequence[str], seeds: Sequence[int], where: str) -> Study:
    """Mark the scenes and variants that the command line wants, with these seeds; () = what the file wants.

    Raises
    ------
    UserError : a name that is not in the study.
    """
    study = _wanted(study, scenes, variants, where)
    chosen = tuple(replace(v, seeds=tuple(seeds) or v.seeds, named=v.name in variants) for v in study.variants)
    return replace(study, variants=chosen, seeds=tuple(seeds) or study.seeds)


def _wanted(study: Study, scenes: Sequence[str], variants: Sequence[str], where: str) -> Study:
    """Mark what is named, () = all that was wanted; what is not stays for those that need it, and to be named later."""
    for given, there, what in ((scenes, study.scenes, "scene"), (variants, study.variants, "variant")):
        for name in given:
            _one_of(name, [x.name for x in there], f"{where}: {what}")
    kept = tuple(replace(s, wanted=s.name in scenes if scenes else s.wanted) for s in study.scenes)
    chosen = tuple(replace(v, wanted=v.name in variants if variants else v.wanted) for v in study.variants)
    return replace(study, scenes=kept, variants=chosen)


def with_overrides(study: Study, words: Sequence[str], where: str) -> Study:
    """Put flags of run.py over everything that the study says.

    Raises
    ------
    UserError : an unknown flag, or one that the study itself decides.
    """
    groups = list(dict.fromkeys(g for step in STEPS.values() for g in step.groups))
    given = parse_given(where, "", groups, list(words))
    config = given.pop("config", "")
    given = _not_decided(given, f"{where}: after --")
    study = replace(study, overrides=given, config=read_config(config) if config else study.config)
    check(study, where)
    return study


def check(study: Study, where: str) -> None:
    """Check what only the whole study shows: names that refer to one another, and every step's settings together.

    Raises
    ------
    UserError : names scene, variant and step.
    """
    names = [v.name for v in study.variants]
    settings = [(v.settings, v.before) for v in study.variants]
    for scene in study.scenes:
        if scene.prepare and "{prepared}" not in repr((scene.source, scene.hr, scene.settings, settings)):
            raise UserError(
                f"{where}: scene {scene.name}: prepare would not run, since nothing names {{prepared}}, the "
                "folder that it fills; say source = '{prepared}/...', or leave prepare out"
            )
    if study.baseline:
        _one_of(study.baseline, names, f"{where}: baseline")
    for variant in study.variants:
        here = f"{where}: variant {variant.name}"
        for name in variant.needs.values():
            _one_of(name, names, f"{here}: needs")
        for scene in study.scenes:
            for step in (*variant.steps, *DEPTH_STEPS, *PROTOCOL_STEPS):
                values = study.settings(scene, variant, step)
                try:
                    for group in STEPS[step].groups:
                        make(group, values)
                except UserError as error:
                    raise UserError(f"{here}, scene {scene.name}, step {step}: {error}") from error


def _scene(name: str, table: Mapping[str, Any], path: Path) -> SceneSpec:
    where = f"{path}: scene {name}"
    _plain_name(name, where)
    _known_keys(table, {"source", "hr", "prepare", "backgrounds", "flags", "hr_flags", *STEPS}, where)
    if not table.get("source"):
        raise UserError(f"{where}: source = FOLDER (the LR views) is needed")
    backgrounds = _backgrounds(table["backgrounds"], f"{where}: backgrounds") if "backgrounds" in table else ()
    prepare = table.get("prepare", [])
    prepare = _commands([prepare] if isinstance(prepare, str) else prepare, f"{where}: prepare")
    source, hr = (_text(table.get(key, ""), f"{where}: {key}") for key in ("source", "hr"))
    return SceneSpec(name, source, hr, prepare, backgrounds, _sections(table, where))


def _variant(name: str, table: Mapping[str, Any], path: Path) -> Variant:
    where = f"{path}: variant {name}"
    _plain_name(name, where)
    own = {f.name for f in fields(Variant)} - {"name", "settings", "wanted", "named"}
    _known_keys(table, {*own, "flags", *STEPS}, where)
    given: dict[str, Any] = {}
    for key, choices in (("source", ("lr", "hr")), ("method", tuple(METHODS))):
        if key in table:
            given[key] = _one_of(_text(table[key], f"{where}: {key}"), choices, f"{where}: {key}")
    if given.get("source") == "hr":
        given["steps"] = ("train",)
    if "steps" in table:
        steps = _texts(table["steps"], f"{where}: steps")
        allowed = ("order", "upsample", "train")
        given["steps"] = tuple(_one_of(step, allowed, f"{where}: steps") for step in steps)
        if given["steps"] not in (allowed, allowed[:2], allowed[2:]):
            raise UserError(f"{where}: steps = {list(steps)}; order and upsample go together, before train")
    needs = {key: _text(value, f"{where}: needs") for key, value in _table(table, "needs", where).items()}
    if RESERVED & needs.keys():
        raise UserError(
            f"{where}: needs: {{{min(RESERVED & needs.keys())}}} has a meaning already; choose another word"
        )
    before = {}
    for step, commands in _table(table, "before", where).items():
        _one_of(step, (*STEPS,), f"{where}: before")
        before[step] = _commands([commands] if isinstance(commands, str) else commands, f"{where}: before.{step}")
    if "seeds" in table:
        given["seeds"] = _numbers(table["seeds"], f"{where}: seeds")
    if "scenes" in table:
        given["scenes"] = _texts(table["scenes"], f"{where}: scenes")
    return Variant(name, needs=needs, before=before, settings=_sections(table, where), **given)


def _sections(table: Mapping[str, Any], where: str) -> Sections:
    """The settings of a scene or variant, each key and type checked."""
    sections = {key: _table(table, key, where) for key in ("flags", "hr_flags", *STEPS) if key in table}
    for name, values in sections.items():
        steps = [STEPS[name]] if name in STEPS else list(STEPS.values())
        groups = list(dict.fromkeys(g for step in steps for g in step.groups))
        here = f"{where} [{name}]"
        checked(_not_decided(values, here), groups, here)
    return sections


def _not_decided(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in values:
        if name in DECIDED and name not in {f.name for f in fields(RunParams)} - DECIDED:
            raise UserError(f"{where}: {name} is decided by the study itself; leave it out")
    return dict(values)


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        _one_of(key, sorted(known), f"{where}: key")


def _one_of(name: str, there: Sequence[str], where: str) -> str:
    if name not in there:
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there) or 'none'}"
        raise UserError(f"{where} {name!r} is not known; {hint}")
    return name


def _plain_name(name: str, where: str) -> None:
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name[0] in ".-":
        raise UserError(f"{where}: letters, digits, '-', '_' and '.' make a name")


def _table(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} = {value!r}; a table is expected")
    return value


def _tables(content: Mapping[str, Any], key: str, path: Path) -> dict[str, dict[str, Any]]:
    tables = _table(content, key, str(path))
    return {name: _table(tables, name, f"{path}: {key}") for name in tables}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} = {value!r}; a text is expected")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where} = {value!r}; a list of texts is expected")
    return tuple(_text(item, where) for item in value)


def _commands(value: Any, where: str) -> tuple[str, ...]:
    commands = _texts(value, where)
    for command in commands:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"{where}: {command!r}: {error}") from error
        if not words:
            raise UserError(f"{where}: an empty command")
    return commands


def _numbers(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(x) is int and x >= 0 for x in value):
        raise UserError(f"{where} = {value!r}; a list of numbers from 0 is expected")
    return tuple(dict.fromkeys(value))


def _number(value: Any, where: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise UserError(f"{where} = {value!r}; a number from 0 is expected")
    return value


def _backgrounds(value: Any, where: str) -> tuple[str, ...]:
    backgrounds = _texts(value, where)
    for name in backgrounds:
        _one_of(name, BACKGROUNDS, where)
    if not backgrounds:
        raise UserError(f"{where}: at least one of {', '.join(BACKGROUNDS)} is expected")
    return backgrounds
