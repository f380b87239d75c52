"""Cost of Claude prompt caching: the Agentic-RAG workload, or the replay of a trace."""

from typing import Any

from kvbench.compose import Composed, own
from kvbench.promptcache import ragcost, replay
from kvbench.promptcache.replay import ReplayConfig
from kvbench.typed import as_yaml, build, unknown


def main(composed: Composed, progress: Any) -> str:
    """Run what was composed, write table and figures, and say where they are."""
    workload = composed.data.get("workload")
    kinds = {"rag": ragcost.RagConfig, "replay": ReplayConfig}
    if workload not in kinds:
        raise unknown("workload", workload, kinds, "workload")
    cfg = build(kinds[workload], own(composed, kinds[workload], "workload"))
    if isinstance(cfg, ReplayConfig):
        path = replay.write(cfg, replay.replay(cfg))
    else:
        path = ragcost.write(cfg, ragcost.run(cfg))
    path.with_name("config.yaml").write_text(as_yaml(cfg, workload=workload), encoding="utf-8")
    return f"{path.read_text(encoding='utf-8')}\nwritten to {path.parent}"
