"""Typed access to the fields of a JSON object, with messages that name the file and the field."""

from math import isfinite
from typing import Any

from utils.errors import UserError


def as_object(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object {{...}} is expected, found {type(value).__name__}")
    return value


def list_field(owner: dict[str, Any], key: str, where: str) -> list[Any]:
    """The list `owner[key]`, which must be there."""
    value = owner.get(key)
    if not isinstance(value, list):
        raise UserError(f"{where}: `{key}` must be a list, found {type(value).__name__}")
    return value


def text_field(owner: dict[str, Any], key: str, where: str) -> str:
    """The text `owner[key]`, which must be there."""
    value = owner.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: `{key}` must be a text, found {type(value).__name__}")
    return value


def number_field(owner: dict[str, Any], key: str, where: str, default: float | int | None = None) -> float:
    """The finite number `owner[key]`, or `default` where the key is absent (None: it must be there)."""
    value = owner.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: `{key}` must be a number, found {type(value).__name__}")
    if abs(value) > 1e30 or not isfinite(value):
        raise UserError(f"{where}: `{key}` is {value!r:.40}, not a finite number")
    return float(value)
