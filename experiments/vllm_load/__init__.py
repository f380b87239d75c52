"""Latency and goodput of vLLM servers against the rate at which sessions arrive."""

from pathlib import Path

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.traces.open import open_trace
from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_load import run as loadrun
from kvbench.experiments.vllm_load.run import LoadRunConfig
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.progress import ProgressFactory
from kvbench.tasks import Renderer
from kvbench.vllm import prompts
from kvbench.vllm.arrivals import Session, of_trace
from kvbench.vllm.campaign import Campaign
from kvbench.vllm.servers import setups, with_model


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run what is not yet in the run's folder, and write table and figure."""
    cfg = configuration(composed, LoadRunConfig)
    folder, run_dir = locate(cfg.model), Path(cfg.run_dir)
    servers = [with_model(setup, folder) for setup in setups(cfg.serving, cfg.setups)]
    positions = min(server.serving.max_model_len for server in servers)
    make = prompts.renderer(cfg.model, positions)
    questions = list(prompts.ask(cfg.task, cfg.seeds, cfg.limit, make))
    if cfg.trace.path:
        sessions, source = _recorded(cfg, cfg.trace.path, make, positions)
    else:
        sessions, source = prompts.sessions(questions, cfg.load.gap), ", ".join(cfg.task)
    campaign = Campaign(run_dir, loadrun.VERSION, cfg.model.name, folder, fingerprint(folder), progress)
    rows = loadrun.run(cfg, servers, sessions, source, questions[0] if questions else None, campaign)
    path = loadrun.write(run_dir, rows, [server.label for server in servers])
    return result(path)


def _recorded(cfg: LoadRunConfig, path: str, make: Renderer, positions: int) -> tuple[list[Session], str]:
    """The sessions of a trace, and what captions say of them."""
    special = set(make.tokenizer.added_tokens_decoder)
    words = [token for token in range(len(make.tokenizer)) if token not in special]
    requests = list(open_trace(path, PriceBook.load()).requests(Assumptions()))
    trace = cfg.trace
    sessions = of_trace(
        requests,
        words,
        shrink=trace.shrink,
        speed=trace.speed,
        most_tokens=positions,
        most_output=trace.max_output,
    )
    left = len(requests) - sum(len(session.turns) for session in sessions)
    cut = f" ({left} of its {len(requests)} requests left out: beyond the server's context)" if left else ""
    return sessions, f"the trace {Path(path).name}{cut}"
