"""Failed cells: their records, and how they are told."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence, Set

from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.engine.failures import Failure
from kvbench.runs.context import PromptContext
from kvbench.runs.fields import checked
from kvbench.runs.plan import Cell
from kvbench.runs.record import cell_fields, prompt_fields
from kvbench.runs.rerun import Rerun
from kvbench.runs.store import Record, Store
from kvbench.runs.told import told


def failure_record(
    at: PromptContext, cell: Cell, failure: Failure, timing: str, cell_id: str, batch: int | None = None,
    rerun: Rerun | None = None,
) -> Record:  # fmt: skip
    """The record of a failed attempt at a cell.

    Args:
        at: its prompt.
        cell: the cell.
        failure: what happened.
        timing: `amortised` or `isolated`, as the row would have had.
        cell_id: id of the row.
        batch: sequences decoded together, in efficiency runs.
        rerun: makes the command that runs a cell again.
    """
    record = {
        "row": "failure",
        "cell": cell_id,
        "failure": failure.kind,
        "stage": failure.stage,
        "reason": failure.reason,
        "error": failure.error,
        "traceback": failure.traceback,
        **prompt_fields(at),
        "method": cell.label,
        **cell_fields(cell),
        "timing": timing,
        "batch": batch,
        # to the microsecond, because the last attempt counts
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    return checked(record if rerun is None else {**record, "command": rerun.command(record)})


def because_of_dense(failure: Failure) -> Failure:
    """The failure of a cell whose dense cell failed."""
    reason = f"dense failed: {failure.reason}"
    return Failure("dense", failure.stage, reason, failure.error, failure.traceback)


def first_prompt(at: PromptContext, failure: Failure) -> UserError:
    """The one line with which a run stops when dense fails on its first prompt: what to change."""
    model, name = at.run.loaded, at.group.name
    dtype = str(model.dtype).removeprefix("torch.")
    if failure.kind == "not_finite":
        others = " or ".join(f"model.dtype={other}" for other in ("bfloat16", "float32") if other != dtype)
        return UserError(
            f"model.dtype: dense {model.name} in {dtype} fails on the first prompt ({name}): {failure.reason}; "
            f"give {others}, or check the weights"
        )
    if failure.kind == "out_of_memory":
        return UserError(
            f"model.prefill_chunk: {name} does not fit in memory with {at.run.cfg.model.prefill_chunk}; give less, "
            "or shorter prompts"
        )
    return UserError(
        f"model: dense {model.name} in {dtype} fails on the first prompt ({name}): {failure.reason}; its traceback "
        f"is in failures-*.jsonl of {at.run.cfg.run_dir}"
    )


def to_skip(failed: set[str], retry: bool) -> set[str]:
    """Of the planned cells that failed before, those that are left out now; warns that they are.

    Args:
        failed: the planned cells that failed before.
        retry: whether they run again.
    """
    if retry or not failed:
        return set()
    count = counted(len(failed), "cell")
    warnings.warn(f"{count} failed before and left out; retry_failed=true runs them again", stacklevel=3)
    return failed


def warn(records: Sequence[Record]) -> None:
    """Warn of failures at once, as a run may go on for days; of a group that dense takes with it, in one line."""
    for record in records:
        if record["failure"] != "dense":
            warnings.warn(f"failed: {told(record)}", stacklevel=3)


def recorded(store: Store, planned: Set[str]) -> list[Record]:
    """The failures of planned cells that are not finished, of this and earlier commands."""
    return [record for record in store.failures()[0] if record["cell"] in planned]
