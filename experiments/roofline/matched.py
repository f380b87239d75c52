"""Budgets at matched accuracy: for each method the smallest one that a run found good enough."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvbench import report
from kvbench.config.errors import UserError
from kvbench.experiments.roofline.config import RooflineConfig
from kvbench.report.summary import DENSE


def matched_budgets(cfg: RooflineConfig) -> dict[str, list[dict[str, Any]]]:
    """The budgets to model by label, as keywords of `accounting.account`; a method that takes none has `{}`.

    A method of the run is the same if eviction, selection, format and all parameters are; dense always is.

    Args:
        cfg: with `matched`.

    Raises:
        UserError: no such run, none of the methods is within the margin, or the run has several settings or lengths.
    """
    from kvbench.methods import build

    run = report.load(str(cfg.matched))
    best = run.best(within=cfg.within)
    good = best.smallest_within()
    cells = run.prepared.drop_duplicates("label")
    names = {_identity(row): row["label"] for row in cells.to_dict("records")}
    found: dict[str, list[dict[str, Any]]] = {}
    for label, entry in cfg.method.items():
        method = build(entry, f"method.{label}")
        description = method.describe()
        name = names.get(
            _identity(description | {"params": json.dumps(description["params"], sort_keys=True)})
        )
        dense = [description["eviction"], description["selection"], description["format"]] == DENSE
        if dense or name in good:
            found[label] = [_budget("" if dense else good[str(name)])]
    if all(budgets == [{}] for budgets in found.values()):
        raise UserError(
            f"matched: no method here has a budget within {cfg.within:g} of dense in {cfg.matched}; see kvbench best "
            f"{cfg.matched} --within {cfg.within:g}"
        )
    return found


def _identity(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("eviction", "selection", "format", "params"))


def _budget(requested: str) -> dict[str, Any]:
    """A requested budget, `256` or `0.1x`, as keywords."""
    if not requested:
        return {}
    return {"ratio": float(requested[:-1])} if requested.endswith("x") else {"tokens": int(requested)}
