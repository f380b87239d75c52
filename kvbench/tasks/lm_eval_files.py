"""Files of the installed lm-eval, read as text: its package is not imported."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from kvbench.config.errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads task files; what their tags would call is left as text."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")


def task_folder() -> Path:
    """The folder of lm-eval's tasks.

    Raises:
        UserError: lm-eval is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "wording: is read from lm-eval, which is not installed: pip install --no-deps lm-eval==0.4.13"
        )
    return Path(next(iter(spec.submodule_search_locations)), "tasks")


@cache
def task_file(path: str) -> dict[str, Any]:
    """A YAML file of lm-eval's tasks.

    Args:
        path: below the folder of tasks.

    Raises:
        UserError: there is no such file, or it is no mapping.
    """
    try:
        found = yaml.load((task_folder() / path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise changed(path)
    return found


def changed(what: str) -> UserError:
    """The error where lm-eval is not as expected."""
    return UserError(
        f"wording: the installed lm-eval ({lm_eval_version()}) has no {what} of the expected wording; "
        "pip install --no-deps lm-eval==0.4.13"
    )


def lm_eval_version() -> str:
    """Version of the installed lm-eval."""
    try:
        return version("lm-eval")
    except PackageNotFoundError:
        return "of unknown version"
