"""vLLM and compression methods in one table, on the same prompts."""

import dataclasses
from typing import Any

from kvbench.compose import Composed, own, run_dir
from kvbench.config import RunConfig, validate
from kvbench.errors import UserError
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.serving import asked, versus, versus_report
from kvbench.serving.campaign import Campaign
from kvbench.serving.setups import ServersConfig, setups, with_model
from kvbench.store import Store
from kvbench.typed import build


def main(composed: Composed, progress: Any) -> str:
    """Run what is not yet in the run's folder, and write table and figures."""
    servers = build(ServersConfig, own(composed, ServersConfig))
    chosen = setups(servers.serving, servers.setups)
    cfg = validate(dataclasses.replace(composed, data=_accuracy(composed)))
    if cfg.protocol != ("query_aware",):
        raise UserError("protocol: vLLM is given whole prompts, allowed: [query_aware]")
    folder, target = locate(cfg.model), run_dir(composed)
    chosen = [with_model(setup, folder) for setup in chosen]
    make = asked.renderer(cfg.model, min(server.serving.max_model_len for server in chosen))
    questions = list(asked.ask(cfg.task, cfg.seeds, cfg.limit, make))
    for server in chosen:
        server.check()
    # after the checks: they import torch and transformers, and mistakes should show at once
    from kvbench.accuracy import run_accuracy
    from kvbench.efficiency import run_efficiency

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
    return f"{path.read_text(encoding='utf-8')}\nwritten to {path.parent}"


def _accuracy(composed: Composed) -> dict[str, Any]:
    """The keys of an accuracy run."""
    names = {field.name for field in dataclasses.fields(RunConfig)} | {"variants", "ablate"}
    return {key: value for key, value in composed.data.items() if key in names}
