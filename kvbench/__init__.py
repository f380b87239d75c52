"""kvbench: how small can the KV cache of a model be, and what does it cost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.api import load, run

__version__ = "0.1.0"
__all__ = ["load", "run"]


def __getattr__(name: str) -> Any:
    # imported on first use, so that `kvbench --help` and `import kvbench` stay instant
    if name in __all__:
        from kvbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'kvbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
