"""Cost of a trace under every placement of cache_control."""

from kvbench.config.compose import Composed
from kvbench.config.typed import as_yaml
from kvbench.experiments.claude_replay.run import ReplayConfig, replay, write
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Replay the trace, write tables and figures; returns the table and where the rest is."""
    cfg = configuration(composed, ReplayConfig)
    path = write(cfg, replay(cfg))
    path.with_name("config.yaml").write_text(as_yaml(cfg), encoding="utf-8")
    return result(path)
