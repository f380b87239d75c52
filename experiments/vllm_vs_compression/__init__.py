"""vLLM and compression methods in one table, on the same prompts."""

import dataclasses
from typing import Any

from kvbench.config.compose import Composed, run_dir
from kvbench.config.errors import UserError
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_vs_compression import report as versus_report
from kvbench.experiments.vllm_vs_compression import run as versus
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.config import RunConfig, validate
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import Store
from kvbench.vllm import prompts
from kvbench.vllm.campaign import Campaign
from kvbench.vllm.servers import ServersConfig, setups, with_model


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run what is not yet in the run's folder, and write table and figures."""
    servers = configuration(composed, ServersConfig)
    chosen = setups(servers.serving, servers.setups)
    cfg = validate(dataclasses.replace(composed, data=_accuracy(composed)))
    if cfg.protocol != ("query_aware",):
        raise UserError("protocol: vLLM is given whole prompts, allowed: [query_aware]")
    folder, target = locate(cfg.model), run_dir(composed)
    chosen = [with_model(setup, folder) for setup in chosen]
    make = prompts.renderer(cfg.model, min(server.serving.max_model_len for server in chosen))
    questions = list(prompts.ask(cfg.task, cfg.seeds, cfg.limit, make))
    for server in chosen:
        server.check()
    # after the checks: they import torch and transformers, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy
    from kvbench.experiments.efficiency.run import run_efficiency

    run_accuracy(dataclasses.replace(cfg, run_dir=str(target / "accuracy")), progress)
    run_efficiency(dataclasses.replace(cfg, run_dir=str(target / "efficiency")), progress)
    campaign = Campaign(target, versus.VERSION, cfg.model.name, folder, fingerprint(folder), progress)
    served = versus.run(chosen, questions, campaign)
    accuracy, isolated = (Store(target / name).scan()[0] for name in ("accuracy", "efficiency"))
    hashes = {item.prompt.hash for item in questions}
    path = versus_report.write(
        target,
        [row for row in accuracy if row["sample_hash"] in hashes],
        [row for row in isolated if row["sample_hash"] in hashes and row["batch"] == 1],
        served,
        [server.label for server in chosen],
        chosen[0].serving.kv_cache_mib << 20,
    )
    return result(path)


def _accuracy(composed: Composed) -> dict[str, Any]:
    """The keys of an accuracy run."""
    names = {field.name for field in dataclasses.fields(RunConfig)} | {"variants", "ablate"}
    return {key: value for key, value in composed.data.items() if key in names}
