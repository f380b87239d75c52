"""One small function per kind of claim: takes arguments from the claim's YAML and returns a Finding.

Every public function of the modules below is a check, registered under its name. Checks with a parameter `runs` get
the stored runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kvbench.claims.checks import (
    article,
    claude,
    limits,
    memory,
    methods,
    paper_tables,
    printed,
    runs,
    vllm,
)
from kvbench.claims.claim import Claim, Finding, arguments
from kvbench.claims.evidence import Runs
from kvbench.config.errors import UserError
from kvbench.config.typed import unknown

Check = Callable[..., Finding]


def registry() -> dict[str, Check]:
    """All checks by name."""
    modules = (article, claude, limits, memory, methods, paper_tables, printed, runs, vllm)
    return {
        name: member
        for module in modules
        for name, member in inspect.getmembers(module, inspect.isfunction)
        if member.__module__ == module.__name__ and not name.startswith("_")
    }


def find(claim: Claim, stored: Runs) -> Finding:
    """Runs the check of a claim, and reads the run of its command if there is one: a measurement comes first.

    Args:
        claim: the claim.
        stored: results of runs.

    Raises:
        UserError: unknown check, unknown or missing arguments, a command whose run no check reads.
    """
    if claim.command and not any(reads_runs(check) for check in (claim.check, claim.measure) if check):
        raise UserError(f"{claim.id}: measure: missing, no check reads the run of the command")
    found = _run(claim.id, "check", claim.check, stored)
    if claim.measure is None:
        return found
    measured = _run(claim.id, "measure", claim.measure, stored)
    notes = [note for note in (measured.note, found.note) if note]
    return Finding(measured.readings + found.readings, "; ".join(notes))


def reads_runs(check: Mapping[str, Any]) -> bool:
    """Whether a check, as in YAML, takes stored runs."""
    known = registry()
    return check["name"] in known and "runs" in inspect.signature(known[check["name"]]).parameters


def _run(claim: str, key: str, check: Mapping[str, Any], stored: Runs) -> Finding:
    checks, name, values = registry(), check["name"], arguments(check)
    if name not in checks:
        raise unknown(f"{claim}: {key}.name", name, checks, "check")
    parameters = inspect.signature(checks[name]).parameters
    if wrong := [key for key in values if key not in parameters or key == "runs"]:
        known = [key for key in parameters if key != "runs"]
        raise unknown(f"{claim}: {key}.{wrong[0]}", wrong[0], known, "argument")
    required = [key for key, p in parameters.items() if p.default is p.empty and key != "runs"]
    if missing := [key for key in required if key not in values]:
        raise UserError(f"{claim}: {key}.{missing[0]}: missing")
    if "runs" in parameters:
        values["runs"] = stored
    return checks[name](**values)
