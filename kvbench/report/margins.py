"""How much each method loses against dense, per task and over tasks, and whether that is within a margin."""

from __future__ import annotations

import pandas as pd

from kvbench.report import significance, stats
from kvbench.report.clusters import Clusters
from kvbench.report.summary import METHOD, SETTING, TASK

OVER_TASKS = "all tasks"
KL_MARGIN = 0.1  # nats

_TABLE = [*SETTING, "length"]
_KEPT = ["label", "method", "eviction", "selection", "budget_requested"]


def losses(cells: pd.DataFrame, margin: float, kl_margin: float = KL_MARGIN) -> pd.DataFrame:
    """One row per setting, length, method and budget for each task, and one over the tasks, which count alike.

    A row is `within` where the whole 95 % interval of its mean difference from dense lies above -`margin`: of methods
    that lose `margin` or more at most about one in forty passes. Whoever takes the best of several has looked at all
    of them. Tasks at the floor say nothing: they have `floor`, are never within, and are left out over tasks.

    Args:
        cells: from `summary.prepare`.
        margin: allowed loss of score, above 0.
        kl_margin: allowed KL in nats.

    Returns:
        Columns of setting and length; `label`, `method`, `eviction`, `selection`, `budget_requested`, `task_label`
        (`OVER_TASKS` over them), `tasks` (their number), `n`, `delta`, `ci_low`, `ci_high`, `p_value` (of no
        difference), `within`, `n_needed` (samples that would be enough if differences stay as they are; NaN where no
        number is), `kl`, `kl_ci_low`, `kl_ci_high`, `kl_p_value` (of a mean KL of `kl_margin` or more),
        `bytes_resident`, `bytes_read_per_step` (means), `floor`.

    Raises:
        ValueError: a margin that is not above 0.
    """
    paired = cells[cells["difference"].notna()]
    dense = paired[paired["is_dense"]].groupby([*SETTING, *TASK], dropna=False)["score"].mean()
    at_floor = (dense < stats.FLOOR).rename("floor").reset_index()
    methods = paired[~paired["is_dense"]].merge(at_floor, on=[*SETTING, *TASK], how="left")
    rows = []
    for key, group in methods.groupby([*_TABLE, *METHOD], dropna=False, sort=False):
        names = dict(zip([*_TABLE, *METHOD], key, strict=True))
        first = {name: names.get(name, group[name].iloc[0]) for name in (*_TABLE, *_KEPT)}
        parts = [(str(task), part) for task, part in group.groupby("task_label")]
        for task, part in [*parts, (OVER_TASKS, group[~group["floor"]])]:
            rows.append(first | {"task_label": task} | _row(part, margin, kl_margin))
    return pd.DataFrame(rows)


def _row(cells: pd.DataFrame, margin: float, kl_margin: float) -> dict[str, object]:
    tasks = cells["task_label"]
    # two wordings of a task may have conversations of one number
    names = list(zip(tasks, cells["cluster"], strict=True))
    differences, kl = (
        Clusters(cells[column], names, strata=tasks) for column in ("difference", "kl_to_dense")
    )
    low, high = stats.difference_interval(differences)
    kl_low, kl_high = stats.kl_interval(kl)
    floor = bool(cells["floor"].any()) or not len(differences)
    changed = float((differences.values**2).mean()) if len(differences) else 0.0
    delta = differences.mean if len(differences) else 0.0
    needed = None if floor else stats.samples_needed(margin, changed=changed, delta=delta)
    return {
        "tasks": tasks.nunique(),
        "n": len(differences),
        "delta": differences.mean,
        "ci_low": low,
        "ci_high": high,
        "p_value": significance.difference_p_value(differences),
        "within": not floor and low > -margin,
        "n_needed": float("nan") if needed is None else needed,
        "kl": kl.mean,
        "kl_ci_low": kl_low,
        "kl_ci_high": kl_high,
        "kl_p_value": stats.kl_p_value(kl, kl_margin),
        "bytes_resident": cells["bytes_resident"].mean(),
        "bytes_read_per_step": cells["bytes_read_per_step"].mean(),
        "floor": floor,
    }
