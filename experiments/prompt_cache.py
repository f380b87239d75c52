"""Cost of Claude prompt caching: the Agentic-RAG workload, or the replay of a trace."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from kvbench.compose import Composed, own
from kvbench.promptcache import ragcost, replay
from kvbench.promptcache.replay import ReplayConfig
from kvbench.typed import build


def main(composed: Composed, progress: Any) -> str:
    """Run what was composed, write table and figures, and say where they are."""
    workload = composed.data.get("workload")
    cls = ragcost.RagConfig if workload == "rag" else ReplayConfig
    cfg = build(cls, own(composed, cls))
    if isinstance(cfg, ReplayConfig):
        path = replay.write(cfg, replay.replay(cfg))
    else:
        path = ragcost.write(cfg, ragcost.run(cfg))
    text = yaml.safe_dump({"workload": workload, **_plain(dataclasses.asdict(cfg))}, sort_keys=False)
    path.with_name("config.yaml").write_text(text, encoding="utf-8")
    return f"{path.read_text(encoding='utf-8')}\nwritten to {path.parent}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
