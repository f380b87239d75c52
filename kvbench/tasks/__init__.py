"""Tasks: long prompts with questions, and the scores of answers. One file per family."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from kvbench.config import typed
from kvbench.tasks.base import Family, Task, register, registered
from kvbench.tasks.prompt import Prompt, Renderer, Sample, Sampling, Turn
from kvbench.tasks.stop import Stop

__all__ = [
    "Family",
    "Prompt",
    "Renderer",
    "Sample",
    "Sampling",
    "Stop",
    "Task",
    "Turn",
    "build",
    "register",
    "registry",
]


def registry() -> dict[str, type[Family]]:
    """All task families by name; their dataclass fields are the configuration keys."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return dict(registered())


def build(label: str, mapping: Mapping[str, Any]) -> Task:
    """Make a task from its configuration.

    Args:
        label: name of the task in the experiment.
        mapping: `family` and the family's parameters.

    Raises:
        UserError: an unknown family or key, or a value that is not allowed.
    """
    families = registry()
    values = dict(mapping)
    name = values.pop("family", None)
    if name not in families:
        raise typed.unknown(f"task.{label}.family", name, families, "task family")
    return Task(label, typed.build(families[name], values, f"task.{label}"))
