"""Files of made-up rows in the form of published data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kvbench.config.groups import Groups
from kvbench.tasks import registry
from kvbench.tasks.dataset import DataSet


def write_rows(folder: Path, option: str, more: Sequence[str] = ()) -> None:
    """Three rows of a task, in a file with the name that it looks for in a folder."""
    entry = Groups().entry("task", option)
    config = registry()[entry["family"]](**({"name": entry["name"]} if "name" in entry else {}), data="-")
    assert isinstance(config, DataSet)
    stem = (config.data_name or option) + ("_e" if "extended=true" in more else "")
    lines = (json.dumps(row, ensure_ascii=False) for row in config.examples(3, 60))
    (folder / f"{stem}.jsonl").write_text("\n".join(lines), encoding="utf-8")
