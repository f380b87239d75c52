"""The Agentic-RAG workload on vLLM servers."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.config.errors import UserError
from kvbench.experiments.common import configuration, result
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.progress import ProgressFactory
from kvbench.vllm.campaign import Campaign
from kvbench.vllm.servers import setups, with_model

EXTRA = "the Agentic-RAG workload needs the extra: pip install 'kvbench[serving]'"


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run what is not yet in the run's folder, and write table and figure."""
    try:
        from kvbench.experiments.vllm_rag import run as ragrun
    except ModuleNotFoundError as error:
        raise UserError(f"{EXTRA} ({error.name} is missing)") from None
    cfg = configuration(composed, ragrun.RagRunConfig)
    folder, run_dir = locate(cfg.model), Path(cfg.run_dir)
    servers = [with_model(setup, folder) for setup in setups(cfg.serving, cfg.setups)]
    campaign = Campaign(run_dir, ragrun.VERSION, cfg.model.name, folder, fingerprint(folder), progress)
    rows = ragrun.run(cfg, servers, campaign)
    path = ragrun.write(run_dir, rows, [server.label for server in servers])
    return result(path)
