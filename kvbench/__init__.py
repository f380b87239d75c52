"""kvbench: how small can the KV cache of a model be, and what does it cost."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.api import load, run
    from kvbench.engine.dropin import cache
    from kvbench.engine.raw import keep, select

__version__ = "0.1.0"
__all__ = ["cache", "keep", "load", "run", "select"]

_MODULES = {
    "cache": "engine.dropin",
    "load": "api",
    "run": "api",
    "keep": "engine.raw",
    "select": "engine.raw",
}


def __getattr__(name: str) -> Any:
    # lazy, so that `kvbench --help` and `import kvbench` stay instant
    if name in _MODULES:
        return getattr(importlib.import_module(f"kvbench.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'kvbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
