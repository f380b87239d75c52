"""Cost of the Agentic-RAG workload on Claude under every layout and placement of cache_control."""

from kvbench.config.compose import Composed
from kvbench.experiments.claude_rag_cost.config import RagCostConfig
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run the workload; write tables and figures.

    Returns:
        The table and the folder of the other files.
    """
    cfg = configuration(composed, RagCostConfig)
    # pandas and matplotlib load only once the configuration is valid
    from kvbench.experiments.claude_rag_cost.report import write_report
    from kvbench.experiments.claude_rag_cost.run import run

    return result(write_report(cfg, run(cfg, progress)))
