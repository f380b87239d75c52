"""Cost of the Agentic-RAG workload on Claude under every layout and placement of cache_control."""

from kvbench.config.compose import Composed
from kvbench.config.typed import as_yaml
from kvbench.experiments.claude_rag_cost.run import RagConfig, run, write
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run the workload, write tables and figures; returns the table and where the rest is."""
    cfg = configuration(composed, RagConfig)
    path = write(cfg, run(cfg))
    path.with_name("config.yaml").write_text(as_yaml(cfg), encoding="utf-8")
    return result(path)
