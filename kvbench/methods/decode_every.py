"""Compression every N tokens of the answer, with any eviction that scores tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.methods.base import Eviction, KeepAll, Kept, LayerSnapshot, Quota, Shape, StepView
from kvbench.methods.registry import register, registry

#: what scorers may need of a snapshot while decoding
NEEDS = frozenset({"rope", "queries"})


@register("decode_every")
@dataclass(frozen=True, kw_only=True)
class DecodeEvery(Eviction):
    """Cuts the cache to its budget every `interval` tokens of the answer, by the choice of `scorer`.

    `scorer` is an eviction that keeps equally many tokens in every KV head (snapkv, knorm, keydiff, tova, chunkkv,
    expected_attention, streaming_llm, random, ...), with its default parameters; it sees everything held and the last
    `window` queries, each at its own position. `prefill` is the eviction after prefill, under the same budget; with
    `none` the prompt stays whole until the first `interval` tokens of the answer are there. Between two drops the cache
    grows to the budget + interval - 1. `decode_every(scorer=snapkv, interval=1)` is SnapKV while decoding.
    """

    differs = (
        "kvpress stores what it keeps in the order of the scores, so that a scorer that reads places (StreamingLLM, "
        "SnapKV's window) goes wrong from the second cut on, rotates all window queries to the newest position, and "
        "takes the length of its buffer for the present position; here slots stay in order of position, and queries at "
        "theirs. For knorm and keydiff, which read neither, both keep the same."
    )
    source = "kvpress 0.5.4, DecodingPress: interval 512; decoding SnapKV as in arXiv 2512.12008 (every step)"
    budget_meaning = "tokens held per KV head right after each drop; up to interval - 1 more before the next"
    bytes_formula = "2 * keep * D * element + min(window, T) * G * D * element; the last queries are held"

    positive = ("interval", "window")

    scorer: str = "snapkv"
    prefill: str = "none"
    interval: int = 512
    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("scorer", self.scorer)
        self._check("prefill", self.prefill)
        scorer = self._scorer
        if scorer.needs - NEEDS:
            raise UserError(
                f"scorer: {self.scorer} needs {', '.join(sorted(scorer.needs - NEEDS))} of the prompt, which a cache "
                "that is cut while decoding does not have"
            )

    def _check(self, key: str, name: str) -> None:
        allowed = {
            one: cls
            for one, cls in registry().items()
            if issubclass(cls, Eviction) and not issubclass(cls, DecodeEvery) and cls().needs_budget
        }
        if name not in allowed and not (key == "prefill" and name == KeepAll.name):
            raise UserError(f"{key}: {name} is no eviction; allowed: {', '.join(sorted(allowed))}")
        if name in allowed and self._part(name).ragged:
            raise UserError(
                f"{key}: {name} keeps different numbers of tokens per KV head, which is not supported"
            )

    def _part(self, name: str) -> Eviction:
        """An eviction with its default parameters, but this window where it has one."""
        if name == KeepAll.name:
            return KeepAll()
        cls: Any = registry()[name]
        fields = {field.name for field in dataclasses.fields(cls)}
        own = {"window": self.window} if "window" in fields else {}
        # keys that stay at their positions can be cut again
        own |= {"positions": "original"} if "positions" in fields else {}
        return cls(**own)

    @property
    def _scorer(self) -> Eviction:
        return self._part(self.scorer)

    @property
    def _prefill(self) -> Eviction:
        return self._part(self.prefill)

    @property
    def needs(self) -> frozenset[str]:
        # at decode steps "queries" are the last ones
        return self._prefill.needs | (self._scorer.needs - {"queries"})

    @property
    def at_prefill(self) -> bool:
        return self.prefill != KeepAll.name

    @property
    def observes(self) -> int:
        return self.window

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        return (self._prefill if self.at_prefill else self._scorer).layer_tokens(quota, shape)

    def scores(self, snapshot: LayerSnapshot) -> Any:
        return self._prefill.scores(snapshot)

    @property
    def pins(self) -> bool:  # type: ignore[override]
        return self._prefill.pins

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        return self._prefill.keep(snapshot, scores, quota)

    def step(self, view: StepView, drop: int) -> Tensor | None:
        if not drop:
            return None
        rows = range(len(view.k_RHCD))
        return torch.stack([self._gone(view.snapshot(row), drop) for row in rows])

    def _gone(self, held: LayerSnapshot, drop: int) -> Tensor:
        """Slots that the scorer does not keep `[H, E]`."""
        scorer = self._scorer
        kept = scorer.keep(held, scorer.scores(held), Quota(held.length - drop))
        return kept.others(held.length)
