"""Methods by name, and from configuration entries."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, TypeVar

from kvbench.config.errors import UserError
from kvbench.config.typed import build as build_dataclass
from kvbench.config.typed import unknown
from kvbench.methods.base import Component, Eviction, Format, Method, Selection
from kvbench.methods.composite import Composite

C = TypeVar("C", bound=type[Component])

_ROLES: dict[str, type[Component]] = {
    "eviction": Eviction,
    "selection": Selection,
    "format": Format,
    "method": Method,
}
_COMPOSED = ("eviction", "selection", "format")
_CLASSES: dict[str, type[Component]] = {}


def register(name: str):
    """Class decorator: registers a frozen dataclass under `name`; its base class determines its role.

    A class replaces an earlier one of the same name, so that a notebook cell can be run again.
    """

    def add(cls: C) -> C:
        if not (dataclasses.is_dataclass(cls) and issubclass(cls, tuple(_ROLES.values()))):
            raise TypeError(
                f"{cls.__name__} must be a dataclass and an Eviction, Selection, Format or Method"
            )
        if issubclass(cls, Eviction) and "tokens" in inspect.signature(cls.keep).parameters:
            raise TypeError(
                f"{cls.__name__}.keep takes (self, snapshot, scores, quota): see kvbench.methods.Quota"
            )
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return add


def registry() -> dict[str, type[Component]]:
    """All registered classes by name, after importing every module of methods and formats."""
    _import_shipped()
    return dict(_CLASSES)


@functools.cache
def _import_shipped() -> None:
    for package in ("kvbench.methods", "kvbench.formats"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


def build(entry: Mapping[str, Any], key: str = "method") -> Method:
    """A method from a configuration entry.

    Args:
        entry: `method: NAME` with its parameters, and any of `eviction`, `selection` and `format`, each
            `{name: NAME, **parameters}`, to compose freely.
        key: the dotted name of the entry, for error messages.

    Raises:
        UserError: an unknown name, parameter or value.
    """
    known = registry()
    entry = dict(entry)
    roles = {role: entry.pop(role) for role in _COMPOSED if entry.get(role) is not None}
    name = entry.pop("method", None)
    cls = known.get(name) if isinstance(name, str) else None
    # `keep` belongs to the composition, not to a method that brings its own roles
    composed = cls is None or not issubclass(cls, Method)
    keep = {"keep": entry.pop("keep")} if composed and "keep" in entry else {}
    base: Component = Composite()
    if name is not None:
        if cls is None:
            raise unknown(f"{key}.method", name, sorted(known), "method")
        other_keys = [word for word in (*_COMPOSED, "keep") if composed and word != cls.family]
        base = build_dataclass(cls, entry, key, other_keys)
    elif entry or not roles:
        raise UserError(f"{key}: give method: NAME, or at least one of eviction, selection, format")
    parts = {role: _part(role, value, f"{key}.{role}", known) for role, value in roles.items()}
    fixed = (
        ("eviction", "selection")
        if isinstance(base, Method) and not isinstance(base, Composite)
        else (base.family,)
    )
    for role in fixed:
        if role in parts:
            raise UserError(f"{key}.{role}: {name} brings its own {role}; leave {role} out")
    whole = base if isinstance(base, Method) else Composite()
    base_role = {} if whole is base else {base.family: base}
    try:
        return dataclasses.replace(whole, **base_role, **parts, **keep)
    except UserError as error:
        raise UserError(f"{key}.{error}") from None


def filled(entry: Mapping[str, Any], key: str = "method") -> dict[str, Any]:
    """A configuration entry in which the value that a parameter takes stands in place of null.

    A saved entry so says what was used, whatever the defaults of later versions are.

    Args:
        entry: as for `build`.
        key: the dotted name of the entry, for error messages.

    Raises:
        UserError: an unknown name, parameter or value.
    """
    method = build(entry, key)
    parts = {part.name: part.params() for part in (method, *method.parts(), method.format)}

    def fill(part: Any, name: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {
            word: parts.get(name, {}).get(word) if value is None and word not in _COMPOSED else value
            for word, value in part.items()
        }

    roles = {role: fill(entry[role], _name(entry[role])) for role in _COMPOSED if role in entry}
    return fill(entry, entry.get("method")) | roles


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else part


def _part(role: str, value: object, key: str, known: Mapping[str, type[Component]]) -> Component:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise UserError(f"{key}: give a name, or name: NAME with parameters")
    value = dict(value)
    name = value.pop("name")
    candidates = {n: cls for n, cls in known.items() if cls.family == role}
    if not isinstance(name, str) or name not in candidates:
        raise unknown(f"{key}.name", name, sorted(candidates), role)
    return build_dataclass(candidates[name], value, key)
