"""Converts plain data (YAML, overrides) to frozen dataclasses; errors are one line that names the key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from kvbench.config.errors import UserError
from kvbench.config.secrets import masked_data

T = TypeVar("T")

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def unknown(key: str, word: object, known: Iterable[str], what: str) -> UserError:
    """The error for an unknown name, with the closest known name and all known names.

    Args:
        key: the user's key, as `method.rocketkv.wndow`.
        word: the unknown part of the key, or the unknown value.
        known: all names that exist there.
        what: what the name stands for, as `key` or `method`.
    """
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return UserError(f"{key}: there is no {what} {word!r}{hint}; known: {', '.join(names) or 'none'}")


def build(cls: type[T], data: object, key: str = "", other_keys: Iterable[str] = ()) -> T:
    """Make the dataclass `cls` from a mapping; names and types of fields are checked recursively.

    Lists become tuples; a single value where a list is expected becomes a list of one.

    Args:
        cls: a dataclass; fields may be bool, int, float, str, Literal, `X | None`, `tuple[X, ...]`,
            `dict[str, Any]`, or a dataclass.
        data: the user's input.
        key: the dotted name of `data` in the configuration, for messages.
        other_keys: keys that are allowed at the same place but read elsewhere, for messages.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type, or not one of the choices.
    """
    prefix = f"{key}." if key else ""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    if not isinstance(data, Mapping):
        raise UserError(f"{key or 'config'}: {data!r} is not a set of keys ({', '.join(fields)})")
    for name in data:
        if name not in fields:
            raise unknown(f"{prefix}{name}", name, [*fields, *other_keys], "key")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UserError(f"{prefix}{name}: missing")
    hints = get_type_hints(cls)
    values = {
        # null is a default that the class works out, whatever its type
        name: None
        if value is None and fields[name].default is None
        else convert(hints[name], value, f"{prefix}{name}")
        for name, value in data.items()
    }
    try:
        return cls(**values)
    except UserError as error:
        # a class checks its values without knowing its key
        raise UserError(str(error) if str(error).startswith(prefix) else f"{prefix}{error}") from None


def convert(hint: Any, value: Any, key: str) -> Any:
    """Convert one value to the type `hint`; see `build`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in args:
            raise unknown(key, value, args, "choice")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in args else _first(args, value, key)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(args[0], item, key) for item in items)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}: {value!r} is not a set of keys")
        return {str(name): convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key)  # type: ignore[arg-type]
    return _plain(hint, value, key)


def as_yaml(cfg: object, **more: object) -> str:
    """A configuration as YAML that `build` reads back; passwords and keys are masked.

    Args:
        cfg: a dataclass.
        more: keys to add or replace.
    """
    data = dataclasses.asdict(cfg) | more  # type: ignore[call-overload]
    return yaml.safe_dump(_lists(masked_data(data)), sort_keys=False, allow_unicode=True, width=110)


def _lists(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _first(args: tuple[Any, ...], value: Any, key: str) -> Any:
    """Convert to the first of several types that accepts the value."""
    kinds = [arg for arg in args if arg is not type(None)]
    for kind in kinds[:-1]:
        try:
            return convert(kind, value, key)
        except UserError:
            continue
    try:
        return convert(kinds[-1], value, key)
    except UserError as error:
        choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        raise UserError(f"{error}, and not {' or '.join(choices)}" if choices else str(error)) from None


def python_number(value: Any) -> Any:
    """The Python number of a scalar of numpy or torch; anything else as it is."""
    scalar = getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None))
    return value.item() if scalar else value


def whole(key: str, value: Any, least: int) -> int:
    """A whole number as Python's, of numpy or torch too.

    Args:
        key: its name, for the message.
        value: the user's input.
        least: the smallest number allowed.

    Raises:
        UserError: it is something else (truth values and 2.0 too), or too small.
    """
    number = python_number(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        given = " ".join(repr(value).split())[:60]
        raise UserError(
            f"{key}: {given} is not a whole number {f'above {least - 1}' if least else '(0 or more)'}"
        )
    return int(number)


def _plain(hint: type, value: Any, key: str) -> Any:
    value = python_number(value)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise UserError(f"{key}: {value} is not a finite number")
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{key}: {value!r} is not {_PLAIN[hint]}")
    return value
