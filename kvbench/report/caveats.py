"""Caveats of a run's numbers, what is missing or mixed, and the facts of where its cells were measured."""

from collections.abc import Iterator, Sequence

import pandas as pd

from kvbench.config.text import counted
from kvbench.report import failures
from kvbench.report.summary import METHOD, SAMPLE, SETTING, TASK, TIMING, joined
from kvbench.runs.plans import Planned
from kvbench.runs.store import Record

# columns that should have a single value
_UNIFORM = {
    "device": "devices",
    "dtype": "dtypes",
    "attention": "attention backends",
    "kernels": "forms of the kernels",
    "commit": "versions of the code",
    "model_fingerprint": "model weights",
}


def find(cells: pd.DataFrame, plan: Planned, problems: list[str], failed: Sequence[Record] = ()) -> list[str]:
    """Everything in a run that weakens its numbers, a sentence each; empty for a clean run.

    Args:
        cells: the run's cells after `summary.prepare`.
        plan: all that was asked of its folder.
        problems: unreadable lines, from the store.
        failed: records of failed cells.
    """
    said = failures.sentence(failed)
    notes = [*([said] if said else []), *_incomplete(cells, plan, failed)]
    return [*notes, *_mixed(cells), *_pairing(cells), *_cut(cells), *problems]


def facts(cells: pd.DataFrame) -> dict[str, str]:
    """Device, versions and the like, as text for a provenance table."""
    versions = _versions(cells)
    return {
        "model": joined(cells["model"]),
        "model fingerprint": joined(cells["model_fingerprint"]),
        "device": joined(cells["device"]),
        "dtype": joined(cells["dtype"]),
        "attention": joined(cells["attention"]),
        "kernels": joined(cells["kernels"]),
        "versions": ", ".join(f"{name} {' | '.join(sorted(seen))}" for name, seen in versions.items()),
        "commit": joined(cells["commit"]),
        "measured": " to ".join(sorted(cells["time"].dropna())[:: max(1, len(cells) - 1)]),
        "cells": f"{len(cells):,}",
    }


def _incomplete(cells: pd.DataFrame, plan: Planned, failed: Sequence[Record]) -> Iterator[str]:
    missing = len(plan.cells.keys() - set(cells["cell"]) - {record["cell"] for record in failed})
    if missing:
        yield f"incomplete run: {missing:,} of {counted(len(plan.cells), 'planned cell')} missing"


def _mixed(cells: pd.DataFrame) -> Iterator[str]:
    for column, plural in _UNIFORM.items():
        if cells[column].nunique() > 1:
            yield f"mixed {plural}: {joined(cells[column])}"
    for name, seen in _versions(cells).items():
        if len(seen) > 1:
            yield f"mixed versions of {name}: {', '.join(sorted(seen))}"


def _pairing(cells: pd.DataFrame) -> Iterator[str]:
    scored = cells[cells["score"].notna()]
    alone = scored["dense_score"].isna().sum()
    if alone:
        yield f"{counted(alone, 'scored cell')} without a dense cell on the same sample, in no comparison"
    paired = scored["dense_score"].notna()
    for _, row in scored.assign(paired=paired).groupby([*SETTING, *TASK, *METHOD, *TIMING], dropna=False):
        if row["paired"].any() and not row["paired"].all():
            yield (
                "some rows score more samples than they compare with dense: there dense_score + delta_vs_dense is the "
                "score of the compared ones, not `score`"
            )
            break
    twice = scored.duplicated([*SETTING, *TASK, *METHOD, *TIMING, *SAMPLE]).sum()
    if twice:
        yield (
            f"{counted(twice, 'repeated cell')}, of a row and sample that has one already: settings that no column "
            "shows (chat template, first token, kernels) changed between the commands that filled this folder"
        )


def _cut(cells: pd.DataFrame) -> Iterator[str]:
    prompts = cells.drop_duplicates([*TASK, *SAMPLE, "protocol"])["meta"]
    cut = [meta for meta in prompts if "cut_tokens" in meta]
    if cut:
        without = sum(bool(meta.get("answer_cut")) for meta in cut)
        yield (
            f"{len(cut):,} of {counted(len(prompts), 'prompt')} cut in the middle, as task and model demand; the "
            f"answer is known to be cut out of {without:,}"
        )


def _versions(cells: pd.DataFrame) -> dict[str, set[str]]:
    seen: dict[str, set[str]] = {}
    for versions in cells["versions"].dropna():
        for name, version in versions.items():
            seen.setdefault(name, set()).add(str(version))
    return seen
