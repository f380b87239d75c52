"""What evictions, selections, formats and methods have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.config.typed import unknown

#: default of a parameter that its source sets: `__post_init__` replaces it by the value in `source_defaults`
BY_MODE: Any = None


class Component:
    """A frozen dataclass whose fields are its parameters."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    #: differences between paper, official code and this implementation that the docstring does not mention
    differs: ClassVar[str] = ""
    budget_meaning: ClassVar[str] = ""
    #: bytes per layer and KV head after compression: an expression, optionally followed by a semicolon and a remark
    bytes_formula: ClassVar[str] = ""
    version: ClassVar[int] = 1
    #: integer parameters that must be above 0; the others may be 0
    positive: ClassVar[tuple[str, ...]] = ()
    #: by `mode`, what its source sets where the user gives nothing: the parameters with the default `BY_MODE`
    source_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for name, value in self.defaults_of_source().items():
            if getattr(self, name) is BY_MODE:
                object.__setattr__(self, name, value)
        for name, value in self.params().items():
            minimum = int(name in self.positive)
            if type(value) is int and value < minimum:
                raise UserError(f"{name}: {value} is not allowed, give {minimum} or more")
            # an even pooling kernel has no middle
            if name == "kernel" and value % 2 == 0:
                raise UserError(f"{name}: {value} is not allowed, give an odd number")

    def defaults_of_source(self) -> Mapping[str, Any]:
        """The values of the parameters with the default `BY_MODE`."""
        if not self.source_defaults:
            return {}
        mode = self.params()["mode"]
        if mode not in self.source_defaults:
            raise unknown("mode", mode, self.source_defaults, "choice")
        return self.source_defaults[mode]

    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
