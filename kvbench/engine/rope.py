"""Rotary frequencies: of methods that rotate keys, and of models that choose them anew in every forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.errors import UserError

#: tokens of no text
LONGEST = 2**24


@dataclass(frozen=True)
class _Rotary:
    """A rotary embedding of a model that chooses its table by the positions of a pass, for one type of layers."""

    module: Any
    layers: tuple[str, ...]
    kind: str

    def tables(self, *lengths: int) -> list[Tensor]:
        """Cosines and sines of the first positions in passes that end at these lengths, one after another."""
        device = next(self.module.buffers()).device
        template, found = torch.zeros(1, dtype=torch.float32, device=device), []
        for length in lengths:
            positions = torch.tensor([[0, 1, length - 1]], device=device)
            cos, sin = self.module(template, positions, *self.layers)
            found.append(torch.cat([cos[0, :2], sin[0, :2]]))
        return found

    def copy(self) -> _Rotary:
        return replace(self, module=copy.deepcopy(self.module))


def _rotaries(model: PreTrainedModel) -> Iterator[_Rotary]:
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        named = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer_type, kind in named.items():
            # transformers' own rule; every other type has one table
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                yield _Rotary(module, () if layer_type is None else (layer_type,), kind)


@torch.no_grad()
def turning_rope(model: PreTrainedModel, first: int, last: int) -> str | None:
    """The type of a rotary embedding that rotates equal positions differently in passes of two lengths; else None.

    Args:
        model: the model.
        first: tokens at the end of one pass.
        last: tokens at the end of a later pass.
    """
    for rotary in _rotaries(model):
        # copies: some remember the longest text so far
        before, after = rotary.copy().tables(first, last)
        _, fresh = rotary.copy().tables(2, first)
        if not (torch.equal(before, after) and torch.equal(before, fresh)):
            return rotary.kind
    return None


def rope_until(model: PreTrainedModel, length: int) -> int | None:
    """Most tokens of a text that is rotated like its first `length` tokens in one pass; None without a limit."""
    most = LONGEST
    if turning_rope(model, length, most) is None:
        return None
    least = length
    while most - least > 1:
        middle = (least + most) // 2
        if turning_rope(model, length, middle) is None:
            least = middle
        else:
            most = middle
    return least


@torch.no_grad()
def reset_rope(model: PreTrainedModel) -> None:
    """Forget what an earlier, longer text left behind."""
    for rotary in _rotaries(model):
        rotary.tables(2)


@torch.no_grad()
def settle_rope(model: PreTrainedModel, length: int) -> None:
    """Have the model rotate as after one pass over a text of `length` tokens."""
    for rotary in _rotaries(model):
        rotary.tables(2, length)


def check_rope(until: int | None, length: int, last: int) -> None:
    """Check that all tokens of a text are rotated by the same frequencies.

    Args:
        until: from `rope_until` of the prompt.
        length: tokens of the prompt when its keys are cached.
        last: tokens at the end of the last decode step.

    Raises:
        UserError: the frequencies change in between.
    """
    if until is not None and last > until:
        raise UserError(
            "model: its rotary frequencies change with the length of the text: prompt and answer must stay within"
            f" {until} tokens where the prompt has {length}, not {last}"
        )


def _parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a config, one entry per type of layers where these differ."""
    found = getattr(config, "rope_parameters", None) or {}
    return [found] if "rope_type" in found else [entry for entry in found.values() if isinstance(entry, dict)]


def position_limit(model: PreTrainedModel) -> int:
    """Most tokens of a text.

    YaRN stretches `original_max_position_embeddings` by `factor`; model cards add it to a config without raising
    `max_position_embeddings`. Elsewhere that key is the limit: other types leave open what their factor stretches.
    """
    config = model.config.get_text_config()
    limits = [
        int(entry["factor"] * entry["original_max_position_embeddings"])
        for entry in _parameters(config)
        if entry["rope_type"] == "yarn"
        and entry.get("factor")
        and entry.get("original_max_position_embeddings")
    ]
    return max(limits, default=config.max_position_embeddings)


def rope_of(model: PreTrainedModel) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Cosines and sines `[N, D]` fp32 of a rotation by N positions, without YaRN's factor.

    Raises:
        UserError: the model's frequencies change with the length of the text.
    """
    for rotary in _rotaries(model):
        raise UserError(f"model: rope_type '{rotary.kind}' has no fixed frequencies to rotate keys by")
    rotary: Any = model.base_model.rotary_emb
    template = torch.zeros(1, dtype=torch.float32, device=model.device)

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(template, positions[None])
        return cos[0] / rotary.attention_scaling, sin[0] / rotary.attention_scaling

    return rope
