"""Scales of an FP8 KV cache: calibrated on text, written to a checkpoint for vLLM."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.config.errors import UserError
from kvbench.config.files import write, writing
from kvbench.config.numbers import finite
from kvbench.models.checkpoint import read_json
from kvbench.models.embedded import MANIFEST

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
FILE = "kv_scales.safetensors"
E4M3_MAX = 448.0
# the form of llm-compressor's checkpoints; only the KV cache is quantised
QUANTIZATION: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "dense",
    "quantization_status": "compressed",
    "config_groups": {},
    "ignore": ["lm_head"],
    "kv_cache_scheme": {
        "num_bits": 8,
        "type": "float",
        "strategy": "tensor",
        "symmetric": True,
        "dynamic": False,
    },
}


def calibrate(model: PreTrainedModel, prompts: Iterable[Sequence[int]]) -> dict[str, float]:
    """Scales per layer: the largest magnitude of keys (post-RoPE) and of values, divided by e4m3's largest number.

    vLLM stores value / scale, so that no value of the calibration text saturates.

    Args:
        model: a model loaded by transformers.
        prompts: token ids, [T] each.

    Returns:
        `model.layers.N.self_attn.k_scale` and `.v_scale` by name.

    Raises:
        UserError: there are no prompts.
        NotFiniteError: the model computes keys or values that are not finite.
    """
    import torch

    largest: dict[str, float] = {}
    with torch.inference_mode():
        for ids in prompts:
            # the logits are not needed; keep them small
            cache = model(torch.tensor([list(ids)], device=model.device), use_cache=True, logits_to_keep=1)
            for number, layer in enumerate(cache.past_key_values.layers):
                for name, tensor in (("k", layer.keys), ("v", layer.values)):
                    key = f"model.layers.{number}.self_attn.{name}_scale"
                    # NaN would lose against any number
                    highest = finite(float(tensor.abs().max()), key)
                    largest[key] = max(largest.get(key, 0.0), highest)
    if not largest:
        raise UserError("calibration: no prompts")
    return {key: value / E4M3_MAX for key, value in largest.items()}


def write_scales(source: Path, target: Path, scales: dict[str, float]) -> None:
    """Write the checkpoint of `source` with the scales; weights are hard links if the file system allows them.

    With such a checkpoint vLLM quantises even at `kv_cache_dtype=auto`.

    Args:
        source: Hugging Face folder.
        target: the new folder; it appears only when complete.
        scales: result of `calibrate`.

    Raises:
        UserError: the checkpoint is quantised already or damaged, or the folder cannot be written.
    """
    config = read_json(source / "config.json", f"model.path={source}")
    if "quantization_config" in config:
        raise UserError(f"model.path={source}: already quantised, scales cannot be added")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
            draft = Path(work) / "new"
            _write_checkpoint(source, config, draft, scales)
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)


def _write_checkpoint(source: Path, config: dict[str, Any], draft: Path, scales: dict[str, float]) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    draft.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name not in ("config.json", INDEX, MANIFEST):
            _link(file.resolve(), draft / file.name)
    if (source / INDEX).is_file():
        index = read_json(source / INDEX, f"model.path={source}")
    else:
        with safe_open(source / "model.safetensors", "pt") as weights:
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights.keys(), "model.safetensors")}
    index["weight_map"] |= dict.fromkeys(scales, FILE)
    save_file({key: torch.tensor(value) for key, value in scales.items()}, draft / FILE, {"format": "pt"})
    write(draft / INDEX, json.dumps(index, indent=1, allow_nan=False))
    quantised = {**config, "quantization_config": QUANTIZATION}
    write(draft / "config.json", json.dumps(quantised, indent=1, allow_nan=False))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
