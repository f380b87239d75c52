"""Checkpoints with calibrated scales of the KV cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from kvbench.config.text import file_name
from kvbench.experiments.vllm_common import ServerRun
from kvbench.experiments.vllm_fp8.config import Fp8Config
from kvbench.kernels.build import cache_dir
from kvbench.models.fingerprint import fingerprint
from kvbench.runs.store import digest
from kvbench.vllm.prompts import make_prompts
from kvbench.vllm.servers import ServerSpec, with_model


def with_checkpoints(cfg: Fp8Config, server_run: ServerRun) -> list[ServerSpec]:
    """The servers with the checkpoints that they serve.

    A started server serves the experiment's model, with calibrated scales if its setup has `scales`.
    """
    return [with_model(spec, _checkpoint(spec, cfg, server_run)) for spec in server_run.specs]


def _checkpoint(spec: ServerSpec, cfg: Fp8Config, server_run: ServerRun) -> Path:
    """Folder of the checkpoint, written first if it needs scales and does not exist yet."""
    folder = server_run.folder
    if not spec.scales or spec.config.base_url or spec.config.model:
        return folder
    key = {"model": fingerprint(folder), "task": cfg.task, **asdict(cfg.calibration)}
    target = cache_dir() / "models" / f"{file_name(cfg.model.name)}-kv-scales-{digest(key)}"
    if not target.is_dir():
        # they import torch
        from kvbench.models import kv_scales
        from kvbench.models.load import load_model

        samples = cfg.calibration.samples
        prompts = list(make_prompts(cfg.task, [cfg.calibration.seed], samples, server_run.renderer))
        scales = kv_scales.calibrate(load_model(cfg.model).model, (item.prompt.ids for item in prompts))
        kv_scales.write_scales(folder, target, scales)
    return target
