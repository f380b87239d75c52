"""vLLM's FP8 KV cache beside its unquantised one."""

import dataclasses
from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_fp8 import report as fp8_report
from kvbench.experiments.vllm_fp8 import run as fp8
from kvbench.experiments.vllm_fp8.run import Fp8Config
from kvbench.kernels.build import cache_dir
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import digest
from kvbench.tasks import Renderer
from kvbench.vllm import prompts
from kvbench.vllm.campaign import Campaign
from kvbench.vllm.prompts import Asked
from kvbench.vllm.servers import Setup, setups, with_model


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run what is not yet in the run's folder, and write table and figure."""
    cfg = configuration(composed, Fp8Config)
    servers = setups(cfg.serving, cfg.setups)
    make = prompts.renderer(cfg.model, min(server.serving.max_model_len for server in servers))
    questions = list(prompts.ask(cfg.task, cfg.seeds, cfg.limit, make))
    folder = locate(cfg.model)
    servers = [_on_model(server, cfg, folder, make) for server in servers]
    run_dir = Path(cfg.run_dir)
    campaign = Campaign(run_dir, fp8.VERSION, cfg.model.name, folder, fingerprint(folder), progress)
    rows = fp8.run(cfg, servers, questions, campaign)
    path = fp8_report.write(run_dir, rows, [server.label for server in servers])
    return result(path)


def _on_model(setup: Setup, cfg: Fp8Config, folder: Path, make: Renderer) -> Setup:
    """A started server serves the experiment's model, with scales where it asks for them."""
    if not setup.scales or setup.serving.base_url or setup.serving.model:
        return with_model(setup, folder)
    key = {"model": fingerprint(folder), "task": cfg.task, **dataclasses.asdict(cfg.calibration)}
    target = cache_dir() / "models" / f"{cfg.model.name}-kv-scales-{digest(key)}"
    if not target.is_dir():
        from kvbench.models import kv_scales
        from kvbench.models.load import load_model

        calibration: list[Asked] = list(
            prompts.ask(cfg.task, [cfg.calibration.seed], cfg.calibration.samples, make)
        )
        scales = kv_scales.calibrate(load_model(cfg.model).model, (item.prompt.ids for item in calibration))
        kv_scales.write(folder, target, scales)
    return with_model(setup, target)
