"""Cost of a trace under every placement of cache_control."""

from kvbench.config.compose import Composed
from kvbench.experiments.claude_replay.config import ReplayConfig
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Replay the trace; write tables and figures.

    Returns:
        The table and the folder of the other files.
    """
    cfg = configuration(composed, ReplayConfig)
    # pandas and matplotlib load only once the configuration is valid
    from kvbench.experiments.claude_replay.report import write_report
    from kvbench.experiments.claude_replay.run import replay

    return result(write_report(cfg, replay(cfg, progress)))
