"""From settings dataclasses to command-line flags and configuration files, and back to values.

Order of authority: default < configuration file < command line. Flags are spelled with underscores, hyphens are
accepted; a wrong flag or key names the nearest right one.
"""

import difflib
import sys
import tomllib
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, TypeVar

from utils.command_line import Parser
from utils.errors import UserError

T = TypeVar("T")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list"}


def opt(default: Any, help: str, short: str | None = None, *, result: bool = True, **kw: Any) -> Any:
    """A dataclass field that is also a flag.

    Parameters
    ----------
    result : False for what cannot change a result (paths, verbosity): it is left out of a step's key.
    kw : goes to add_argument (choices, metavar, type of a tuple's elements...).
    """
    return field(default=default, metadata={"help": help, "short": short, "result": result, **kw})


def settings(*groups: Any) -> dict[str, Any]:
    """All values of `groups` that can change a result, by name."""
    return {f.name: getattr(g, f.name) for g in groups for f in fields(g) if f.metadata.get("result", True)}


def add_flags(parser: ArgumentParser, cls: type, taken: set[str] | None = None) -> None:
    """One flag per field of `cls` but for names in `taken`, which grows. Flags the user leaves out stay out.

    A short form belongs to the first group that has it.
    """
    taken = set() if taken is None else taken
    group = parser.add_argument_group(cls.__doc__.strip().splitlines()[0] if cls.__doc__ else cls.__name__)
    for f in fields(cls):
        if f.name in taken:
            continue
        taken.add(f.name)
        kw = {k: v for k, v in f.metadata.items() if k not in ("short", "result", "help")}
        known = {word for action in parser._actions for word in action.option_strings}
        names = [n for n in (f"--{f.name}", f.metadata["short"]) if n and n not in known]
        # %-signs are argparse's own format characters
        kw["help"] = f"{f.metadata['help']} (default: {_shown(f)})".replace("%", "%%")
        if isinstance(f.default, bool):
            kw["action"] = "store_true"
        elif isinstance(f.default, tuple):
            kw = {"type": type(f.default[0]) if f.default else str, "nargs": "+"} | kw
        else:
            kw = {"type": type(f.default)} | kw
        group.add_argument(*names, default=SUPPRESS, dest=f.name, **kw)


def _shown(f: Field) -> str:
    value = f.default
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "off" if value is False else "none" if value in ("", None) else str(value)


def make(cls: type[T], given: Mapping[str, Any]) -> T:
    """An instance of `cls`: its defaults, overridden by what `given` says.

    Raises
    ------
    UserError : a value that the dataclass's own checks refuse.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known})


def parse_given(
    prog: str, description: str, groups: Sequence[type], argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """Parse `argv` (default: sys.argv); only what the user gave is in the result, `config` among it.

    Raises
    ------
    UserError : unknown flag or wrong value.
    """
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", default=SUPPRESS, metavar="FILE", help="TOML file; the command line wins")
    taken: set[str] = set()
    for cls in groups:
        add_flags(parser, cls, taken)
    return vars(parser.parse_args(underscored(sys.argv[1:] if argv is None else argv)))


def parse_groups(
    prog: str, description: str, groups: Sequence[type], argv: Sequence[str] | None = None, section: str = ""
) -> tuple[Any, ...]:
    """Parse `argv` (default: sys.argv) into one instance of each of `groups`, in order.

    `--config FILE.toml` sets defaults from its table [section]; other tables belong to other steps.

    Raises
    ------
    UserError : unknown flag or key, value of the wrong type or range.
    """
    given = parse_given(prog, description, groups, argv)
    path = given.pop("config", "")
    if path:
        given = checked(read_toml(path).get(section, {}), groups, f"{path} [{section}]") | given
    return tuple(make(cls, given) for cls in groups)


def underscored(argv: Sequence[str]) -> list[str]:
    """`--lambda-tex=0.4` becomes `--lambda_tex=0.4`; values and negative numbers stay as they are."""
    return [
        "--" + "=".join([w[2:].split("=", 1)[0].replace("-", "_"), *w.split("=", 1)[1:]]) if w.startswith("--") else w
        for w in argv
    ]


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises UserError where it is missing or malformed."""
    try:
        return tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def checked(table: Mapping[str, Any], groups: Sequence[type], where: str) -> dict[str, Any]:
    """`table` with every key known to `groups` and every value of its default's type.

    Raises
    ------
    UserError : unknown key (naming the nearest) or wrong type.

    Notes
    -----
    A flag that may stand alone (`const` in its metadata) may be true.
    """
    known = {f.name: f for cls in groups for f in fields(cls)}
    alone = {name: f.metadata["const"] for name, f in known.items() if "const" in f.metadata}
    table = {name: alone.get(name, value) if value is True else value for name, value in table.items()}
    for name, value in table.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"{where}: unknown key {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        _check_type(known[name], value, where)
    return table


def _check_type(f: Field, value: Any, where: str) -> None:
    default = f.default
    if default is MISSING:
        return
    choices = f.metadata.get("choices")
    given = value if isinstance(value, (list, tuple)) else [value]
    if choices is not None and not set(given) <= set(choices):
        raise UserError(f"{where}: {f.name} = {value!r}; one of {', '.join(map(str, choices))} is expected")
    expected: Any = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UserError(f"{where}: {f.name} = {value!r}; {WORDS[type(default)]} is expected")
    if isinstance(default, tuple):
        _check_elements(f, value, where)


def _check_elements(f: Field, values: Sequence[Any], where: str) -> None:
    """Raise UserError unless all are of the type that the flag reads; whole numbers may stand for floats."""
    default: Any = f.default
    of = type(default[0]) if default else f.metadata.get("type", str)
    expected: Any = (int, float) if of is float else of
    if not all(isinstance(v, expected) and not isinstance(v, bool) for v in values):
        words = {int: "whole numbers", float: "numbers", str: "texts"}[of]
        raise UserError(f"{where}: {f.name} = {values!r}; a list of {words} is expected")


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Settings as command-line words, the inverse of parsing."""
    words: list[str] = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)] if value else []
        elif value is not False:
            words.append(f"--{name}={value}")
    return words
