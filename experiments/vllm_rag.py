"""The Agentic-RAG workload on vLLM servers."""

from pathlib import Path
from typing import Any

from kvbench.compose import Composed, own
from kvbench.errors import UserError
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.serving.campaign import Campaign
from kvbench.serving.setups import setups, with_model
from kvbench.typed import build

EXTRA = "the Agentic-RAG workload needs the extra: pip install 'kvbench[serving]'"


def main(composed: Composed, progress: Any) -> str:
    """Run what is not yet in the run's folder, and write table and figure."""
    try:
        from kvbench.serving import ragrun
    except ModuleNotFoundError as error:
        raise UserError(f"{EXTRA} ({error.name} is missing)") from None
    cfg = build(ragrun.RagRunConfig, own(composed, ragrun.RagRunConfig))
    folder, run_dir = locate(cfg.model), Path(cfg.run_dir)
    servers = [with_model(setup, folder) for setup in setups(cfg.serving, cfg.setups)]
    campaign = Campaign(run_dir, ragrun.VERSION, cfg.model.name, folder, fingerprint(folder), progress)
    rows = ragrun.run(cfg, servers, campaign)
    path = ragrun.write(run_dir, rows, [server.label for server in servers])
    return f"{path.read_text(encoding='utf-8')}\nwritten to {path.parent}"
