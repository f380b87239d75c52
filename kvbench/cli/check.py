"""`kvbench check`: a method of the user's against the contract that the tests hold every shipped method to."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kvbench.config import source
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.config.typed import unknown


def check(what: str, words: Sequence[str] = ()) -> tuple[str, bool]:
    """Check one method, or all methods of a file or module.

    Args:
        what: the name of a registered method or format, of a module, or a Python file.
        words: parameters, `KEY=VALUE`.

    Returns:
        What was found, and whether every rule is met.

    Raises:
        UserError: an unknown name or parameter, no such file, or a file that cannot be imported.
    """
    from kvbench.engine import contract

    names, params = _names(what), _params(words)
    parts, good = [], True
    for name in names:
        try:
            findings = contract.check(name, params)
        except UserError as error:
            raise UserError(f"{name}: {str(error).removeprefix('method.')}") from None
        parts.append(_text(name, params, findings))
        good &= not any(finding.broken for finding in findings)
    return "\n\n".join(parts), good


def _text(name: str, params: Mapping[str, Any], findings: Sequence[Any]) -> str:
    given = "".join(f" {key}={value}" for key, value in params.items())
    met = sum(not finding.broken for finding in findings)
    lines = [f"{name}{given}"]
    for finding in findings:
        lines.append(f"  {'BROKEN' if finding.broken else 'ok':8}{finding.rule}")
        lines += [f"{'':10}{finding.broken}"] if finding.broken else []
    return "\n".join([*lines, f"{name} meets {met} of {len(findings)} rules"])


def _params(words: Sequence[str]) -> dict[str, Any]:
    params = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"check: {word!r} is not KEY=VALUE, as window=16")
        try:
            params[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"check: {key}: cannot read {value!r}") from None
    return params


def _names(what: str) -> list[str]:
    """The methods that a word stands for."""
    from kvbench.methods import registry

    if what.endswith(".py") or "/" in what:
        return _of_file(Path(what))
    if what in registry():
        return [what]
    if what in Groups().options("task"):
        raise UserError(f"check: {what} is a task; only methods and formats are checked")
    is_name = all(part.isidentifier() for part in what.split("."))
    if is_name and (spec := source.find(what)) and spec.origin:
        return _of_file(Path(spec.origin), what)
    error = unknown("check", what, sorted(registry()), "method")
    raise UserError(f"{error}; and there is no file {what}.py here")


def _of_file(file: Path, name: str = "") -> list[str]:
    """The methods that a file registers when it is imported; `name` is that of its module."""
    from kvbench.methods import registry
    from kvbench.runs.config import import_module

    if not file.is_file():
        raise UserError(f"check: there is no file {file}")
    if not name:
        name = file.stem
        if not name.isidentifier():
            raise UserError(f"check: {file.name} is not the name of a Python module")
        sys.path.insert(0, str(file.resolve().parent))
        if name in sys.modules or source.find(name) is None or _origin(name) != file.resolve():
            raise UserError(
                f"check: {file}: there is another Python module {name}; give the file another name"
            )
    before = registry()
    import_module(name, "check")
    found = [one for one, cls in registry().items() if cls is not before.get(one) or cls.__module__ == name]
    if not found:
        raise UserError(f"check: {file} registers no method; see kvbench new method NAME")
    return sorted(found)


def _origin(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve() if spec and spec.origin else None
