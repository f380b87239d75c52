"""Claims and the papers' tables from `conf/claims/`."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from typing import Any

from kvbench.claims.claim import Source
from kvbench.config.errors import UserError
from kvbench.config.reading import yaml_file
from kvbench.config.typed import build


def sources() -> list[Source]:
    """Every file of `conf/claims/`, by their `order`.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type, a duplicate id.
    """
    files = [file for file in _folder().iterdir() if file.name.endswith(".yaml")]
    found = sorted(
        (build(Source, _yaml(file), f"claims/{file.name}") for file in files), key=lambda source: source.order
    )
    seen: set[str] = set()
    for claim in (claim for source in found for claim in source.claims):
        if claim.id in seen:
            raise UserError(f"claims: {claim.id} is given twice")
        seen.add(claim.id)
    return found


def paper_table(name: str) -> Any:
    """The rows of a printed table, `conf/claims/tables/NAME.yaml`."""
    return _yaml(_folder().joinpath("tables", f"{name}.yaml"))


def _folder() -> Traversable:
    return importlib.resources.files("kvbench.conf").joinpath("claims")


def _yaml(file: Traversable) -> Any:
    return yaml_file(file, f"claims/{file.name}")
