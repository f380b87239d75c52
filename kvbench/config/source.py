"""Registered classes, read from source: their names, parameters and defaults, without importing them.

Methods and tasks import torch and transformers; listing them and composing `method=[NAME]` need neither.
"""

from __future__ import annotations

import ast
import functools
import os
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import kvbench
from kvbench.config.errors import UserError

_CLASS_VAR = ("ClassVar", "typing.ClassVar")


@dataclass(frozen=True)
class Declared:
    """A class under `@register(NAME)`.

    Attributes:
        name: the registered name.
        doc: the docstring.
        parameters: dataclass fields with their defaults, base classes first.
        unread: fields whose default is neither a literal nor a constant; "" for those of a base class whose source
            cannot be found.
        constants: class attributes that are literals, inherited ones included.
    """

    name: str
    doc: str
    parameters: dict[str, Any]
    unread: frozenset[str]
    constants: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        sentence = " ".join(self.doc.partition("\n\n")[0].split()).partition(". ")[0]
        return sentence if sentence.endswith(".") else f"{sentence}."


def of_package(package: str, registrar: str) -> dict[str, Declared]:
    """The registered classes of all modules of a package of kvbench, by name.

    Args:
        package: dotted name, as `kvbench.formats`.
        registrar: the package whose `register` counts, as `kvbench.methods`.
    """
    spec = find(package)
    assert spec is not None
    found: dict[str, Declared] = {}
    for module in pkgutil.iter_modules(spec.submodule_search_locations):
        found |= of_module(f"{package}.{module.name}", registrar)
    return found


def of_plugin(name: str, registrar: str) -> dict[str, Declared]:
    """The registered classes of a user's module; none where it has no Python source.

    Raises:
        UserError: there is no such module, or its source has a syntax error.
    """
    if find(name) is None:
        raise UserError(f"plugins: cannot import {name!r}: there is no such module")
    try:
        return of_module(name, registrar)
    except SyntaxError as error:
        raise UserError(f"plugins: cannot import {name!r}: SyntaxError: {error}") from None


def of_module(name: str, registrar: str) -> dict[str, Declared]:
    """The registered classes of a module, by name; see `of_package`."""
    module = _module(name)
    if module is None:
        return {}
    found = {}
    for node in module.classes.values():
        for decorator in node.decorator_list:
            label = _label(decorator, registrar, module)
            if label is not None:
                found[label] = _declared(label, node, module)
    return found


def _label(decorator: ast.expr, registrar: str, module: _Module) -> str | None:
    """The name that a decorator registers; None for other decorators and names that only running the code tells."""
    if not isinstance(decorator, ast.Call) or not decorator.args:
        return None
    origin = module.origin(decorator.func)
    if not (origin.startswith(f"{registrar}.") and origin.endswith(".register")):
        return None
    try:
        return _value(decorator.args[0], module)
    except _Unreadable:
        return None


@dataclass(frozen=True)
class _Module:
    """The top level of a module's source.

    Attributes:
        name: dotted name.
        classes: class definitions by name.
        values: right-hand sides of assignments by name.
        imports: dotted names of what is imported, by local name.
    """

    name: str
    classes: dict[str, ast.ClassDef]
    values: dict[str, ast.expr]
    imports: dict[str, str]

    def origin(self, node: ast.expr) -> str:
        """The dotted name that an expression `a` or `a.b` stands for; "" for any other."""
        if isinstance(node, ast.Attribute):
            head = self.origin(node.value)
            return f"{head}.{node.attr}" if head else ""
        if not isinstance(node, ast.Name):
            return ""
        return self.imports.get(node.id, f"{self.name}.{node.id}")


def find(name: str) -> ModuleSpec | None:
    """The spec of a module, found without importing the packages that hold it."""
    spec = None
    places: list[str] | None = [os.getcwd(), *sys.path]
    parts = name.split(".")
    for number in range(len(parts)):
        full = ".".join(parts[: number + 1])
        if full == "kvbench":
            # an import hook may map the package to another place
            places = list(kvbench.__path__)
            continue
        spec = PathFinder.find_spec(full, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return spec


def _module(name: str) -> _Module | None:
    """The source of a module; None where there is none."""
    spec = find(name)
    file = Path(spec.origin) if spec and spec.origin else None
    if spec is None or file is None or file.suffix != ".py" or not file.is_file():
        return None
    return _parsed(name, spec.submodule_search_locations is not None, file, file.stat().st_mtime_ns)


@functools.cache
def _parsed(name: str, package: bool, file: Path, mtime_ns: int) -> _Module:
    """A parsed file; `mtime_ns` invalidates the cache when the file is edited."""
    module = _Module(name, {}, {}, {})
    parent = name if package else name.rpartition(".")[0]
    for node in ast.parse(file.read_bytes(), file.name).body:
        if isinstance(node, ast.ClassDef):
            module.classes[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    module.values[target.id] = node.value
        elif isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                module.imports[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom):
            above = parent.split(".")[: len(parent.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            module.imports.update(
                {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
            )
    return module


def _resolve(origin: str) -> tuple[_Module, str] | None:
    """The module that defines a dotted name, and its name there; re-exports are followed."""
    path, _, name = origin.rpartition(".")
    module = _module(path) if path else None
    if module is None or name in module.classes or name in module.values:
        return module and (module, name)
    # an import of a name from its own module would recurse
    again = module.imports.get(name)
    return _resolve(again) if again and again != origin else None


class _Unreadable(Exception):
    """A value that only running the code tells."""


def _value(node: ast.expr, module: _Module) -> Any:
    """The value of a literal, a constant, or `field(default=...)`."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        pass
    else:
        return list(value) if isinstance(value, tuple) else value
    if isinstance(node, ast.Call) and module.origin(node.func) == "dataclasses.field":
        for keyword in node.keywords:
            if keyword.arg == "default":
                return _value(keyword.value, module)
    origin = module.origin(node)
    if origin and origin != module.name and (found := _resolve(origin)):
        where, name = found
        if name in where.values and where.values[name] is not node:
            return _value(where.values[name], where)
    raise _Unreadable


def _declared(name: str, node: ast.ClassDef, module: _Module) -> Declared:
    fields: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for where, part in _bases(node, module):
        if where is None:
            fields[""] = ...
            continue
        is_dataclass = any(_is_dataclass(decorator, where) for decorator in part.decorator_list)
        for key, default, annotation in _assignments(part):
            try:
                value = ... if default is None else _value(default, where)
            except _Unreadable:
                value = ...
            if is_dataclass and annotation and not annotation.startswith(_CLASS_VAR):
                if not _hidden(default, annotation):
                    fields[key] = value
            else:
                constants[key] = value
    known, literals = (
        {key: value for key, value in found.items() if value is not ...} for found in (fields, constants)
    )
    return Declared(name, ast.get_docstring(node) or "", known, frozenset(fields) - set(known), literals)


def _bases(node: ast.ClassDef, module: _Module) -> Iterator[tuple[_Module | None, ast.ClassDef]]:
    """The bases of a class and then the class, each with its module; None for a base whose source is not found."""
    for base in reversed(node.bases):
        origin = module.origin(base.value if isinstance(base, ast.Subscript) else base)
        if origin.partition(".")[0] in sys.stdlib_module_names:
            continue
        found = _resolve(origin) if origin else None
        if found and found[1] in found[0].classes:
            yield from _bases(found[0].classes[found[1]], found[0])
        else:
            yield None, node
    yield module, node


def _is_dataclass(decorator: ast.expr, module: _Module) -> bool:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    return module.origin(call) == "dataclasses.dataclass"


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, str | None]]:
    """Name, value and annotation of what a class body assigns or declares."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id, line.value, ast.unparse(line.annotation).strip("'\"")
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            yield line.targets[0].id, line.value, None


def _hidden(default: ast.expr | None, annotation: str) -> bool:
    """Whether a field cannot be configured: `KW_ONLY`, `InitVar`, or `field(init=False)`."""
    keywords = default.keywords if isinstance(default, ast.Call) else []
    no_init = any(word.arg == "init" and ast.unparse(word.value) == "False" for word in keywords)
    return no_init or annotation.startswith(("KW_ONLY", "InitVar"))
