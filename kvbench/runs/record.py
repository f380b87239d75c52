"""Fields that accuracy and efficiency rows share, also those of failed attempts at them."""

from __future__ import annotations

import datetime
from dataclasses import asdict

from kvbench.engine.prefill import Snapshot
from kvbench.kernels.operations import forms_for, label
from kvbench.methods import Resolved
from kvbench.models.load import LoadedModel
from kvbench.runs import provenance
from kvbench.runs.context import PromptContext
from kvbench.runs.plan import Cell
from kvbench.runs.probe import heads_of
from kvbench.runs.store import Record


def kernel_form(loaded: LoadedModel) -> str:
    """Forms of the operations: `compiled`, `triton` or `portable`, and the operations that differ from it."""
    heads = heads_of(loaded)
    return label(forms_for(loaded.device, loaded.dtype, heads.group, heads.dim))


def group_fields(at: PromptContext, snapshot: Snapshot) -> Record:
    """Model, prompt, prefill time and provenance of a group's rows."""
    return {**prompt_fields(at), "prefill_s": snapshot.seconds}


def prompt_fields(at: PromptContext) -> Record:
    """Model, prompt and provenance."""
    loaded, group = at.run.loaded, at.group
    return {
        "model": loaded.name,
        "model_fingerprint": loaded.fingerprint,
        "task": group.task.label,
        "task_family": group.task.family,
        "task_version": group.task.version,
        "wording": group.task.wording,
        "length": group.length,
        "sample": group.index,
        "sample_hash": at.prompt.hash,
        "prompt_tokens": len(at.prompt.ids),
        "protocol": group.protocol,
        "max_new_tokens": at.sample.max_new_tokens,
        "seed": group.seed,
        "metric": group.task.metric,
        **({"aggregate": aggregate} if (aggregate := dict(group.task.config.aggregate)) else {}),
        **({"sampling": asdict(at.sample.sampling)} if at.sample.sampling else {}),
        **({"data": source} if (source := group.task.config.data_source) is not None else {}),
        "device": provenance.device_name(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "attention": at.run.cfg.model.attention,
        "kernels": kernel_form(loaded),
        "eos_ids": sorted(loaded.eos_ids),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def method_fields(cell: Cell, resolved: Resolved) -> Record:
    """Parts and parameters of a cell's method, its budget and its operations."""
    return {
        **cell_fields(cell),
        "budget_covers_prompt": resolved.covers_prompt and cell.budget is not None,
        "notes": list(resolved.notes),
    }


def cell_fields(cell: Cell) -> Record:
    """What is known of a cell's method before its budget is resolved."""
    return {
        **cell.method.describe(),
        "budget_requested": cell.budget.label() if cell.budget is not None else "",
        "operations": {name: list(what) for name, what in cell.operations.items()},
    }
