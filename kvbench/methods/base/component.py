"""What evictions, selections, formats and methods have in common."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from kvbench.config.errors import UserError


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

    def __post_init__(self) -> None:
        for name, value in self.params().items():
            minimum = int(name in self.positive)
            if type(value) is int and value < minimum:
                raise UserError(f"{name}: {value} is not allowed, give {minimum} or more")
            # an even pooling kernel has no middle
            if name == "kernel" and value % 2 == 0:
                raise UserError(f"{name}: {value} is not allowed, give an odd number")

    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
