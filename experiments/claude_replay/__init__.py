"""Cost of a trace under every placement of cache_control."""

from typing import Any

from kvbench.config.compose import Composed, own
from kvbench.config.typed import as_yaml, build
from kvbench.experiments.claude_replay.run import ReplayConfig, replay, write


def main(composed: Composed, progress: Any) -> str:
    """Replay the trace, write tables and figures; returns the table and where the rest is."""
    cfg = build(ReplayConfig, own(composed, ReplayConfig))
    path = write(cfg, replay(cfg))
    path.with_name("config.yaml").write_text(as_yaml(cfg), encoding="utf-8")
    return f"{path.read_text(encoding='utf-8')}\nwritten to {path.parent}"
