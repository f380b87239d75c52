"""Bytes that a method's cache holds and moves, from the method's own budget rule and storage.

Sizes are read off tensors without data (torch's meta device) that the method's code lays out, so that a method has a
cost model as soon as it is registered and no formula is written twice.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.config.typed import whole
from kvbench.cost.shapes import ModelShape
from kvbench.methods import Budget, Eviction, Format, LayerRule, Method, Resolved, Shape, build
from kvbench.methods.per_query_head import SLOT
from kvbench.methods.storage import Rolling

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Work:
    """Bytes and floating-point operations (a multiply-add counts as two)."""

    read: float = 0.0
    written: float = 0.0
    flops: float = 0.0

    @property
    def bytes(self) -> float:
        """Read and written together."""
        return self.read + self.written

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.written + other.written, self.flops + other.flops)

    def times(self, count: float) -> Work:
        """This work, `count` times."""
        return Work(self.read * count, self.written * count, self.flops * count)


@dataclass(frozen=True)
class Account:
    """The modelled cost of one sequence under one method, without weights.

    Attributes:
        shape: the model.
        method: its label.
        resolved: the method with its budget.
        prompt: compressed tokens, L.
        new: appended tokens at most, M.
        element: bytes per number in the model's dtype.
    """

    shape: ModelShape
    method: str
    resolved: Resolved
    prompt: int
    new: int
    element: int

    @property
    def kept(self) -> float:
        """Prompt tokens stored, mean over layers and KV heads."""
        if self.resolved.retains:
            return self.prompt
        return math.fsum(count * layer.kept for layer, count in self._layers) / self.shape.layers

    @property
    def resident(self) -> float:
        """Bytes right after compression; `bytes_resident` in a run."""
        return sum(count * layer.resident(0) for layer, count in self._layers)

    @property
    def resident_end(self) -> float:
        """Bytes after `new` appended tokens."""
        return sum(count * layer.resident(self.new) for layer, count in self._layers)

    @property
    def working_end(self) -> float:
        """Bytes after `new` appended tokens without the whole prompt that a method may retain for later turns."""
        return self.resident_end - sum(count * layer.retained for layer, count in self._layers)

    @property
    def step(self) -> Work:
        """The last decode step, which moves the most."""
        return self.at(self.new)

    def at(self, token: int) -> Work:
        """The decode step of the given new token, counted from 1: keys, values and auxiliary data.

        Bytes read are those of `bytes_read_per_step` in a run plus those that updates of auxiliary data read.
        """
        if not 1 <= token <= self.new:
            raise UserError(f"token: {token} is not in [1, new={self.new}]")
        return _sum(layer.step(token).times(count) for layer, count in self._layers)

    def mean_step(self) -> Work:
        """Mean over all decode steps."""
        return self._mean_step

    @functools.cached_property
    def _mean_step(self) -> Work:
        return _sum(self.at(token) for token in range(1, self.new + 1)).times(1 / self.new)

    @property
    def compress(self) -> Work:
        """Choosing and gathering after prefill, with kernels that store no score matrix."""
        return _sum(layer.compress().times(count) for layer, count in self._layers)

    def prefill(self, cached: int = 0) -> Work:
        """Dense prefill of the prompt: products with the weights, causal attention, and writing keys and values.

        Reads of the weights, and of keys and values for each tile of queries, are not counted: at any length worth
        compressing the products take longer.

        Args:
            cached: tokens at the start of the prompt whose keys and values exist already.
        """
        if not 0 <= cached <= self.prompt:
            raise UserError(f"cached: {cached} is not in [0, prompt={self.prompt}]")
        shape, fresh = self.shape, self.prompt - cached
        pairs = fresh * cached + fresh * (fresh + 1) / 2
        flops = 2 * shape.layer_params * fresh + 2 * shape.embedding_params
        flops += 4 * shape.layers * shape.heads * shape.head_dim * pairs
        return Work(shape.kv_bytes(cached, self.element), shape.kv_bytes(fresh, self.element), flops)

    @property
    def exact(self) -> bool:
        """Whether bytes follow from sizes alone; otherwise data decides, and they are upper bounds up to rounding."""
        return not any(layer.bound_reasons for layer, _ in self._layers)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the reader of the figures."""
        reasons = dict.fromkeys(reason for layer, _ in self._layers for reason in layer.bound_reasons)
        return (*self.resolved.notes, *(f"upper bound: {reason}" for reason in reasons))

    @functools.cached_property
    def _layers(self) -> list[tuple[_Layer, int]]:
        """The distinct layers, with their counts."""
        common = (self.shape, self.resolved, self.prompt, self.new, self.element)
        reuse = getattr(self.resolved.eviction, "n_reuse", 1)
        kinds = Counter(
            (rule, number % reuse == 0, self.resolved.format_of(number))
            for number, rule in enumerate(self.resolved.rules)
        )
        return [(_Layer(*common, *kind), count) for kind, count in kinds.items()]


def account(
    method: str | Mapping[str, Any] | Method, shape: ModelShape, *, prompt: int, new: int = 128,
    tokens: int | None = None, ratio: float | str | None = None, element: int = 2,
) -> Account:  # fmt: skip
    """The cost of one sequence.

    Args:
        method: its name, a configuration entry, or a method.
        shape: the model.
        prompt: compressed tokens. A run with `first_token=compressed` compresses all but the last prompt token.
        new: tokens generated at most.
        tokens: the budget; or
        ratio: the fraction retained.
        element: bytes per number in the model's dtype, 2 or 4.

    Raises:
        UserError: an unknown name, or a parameter or budget that is not allowed.
    """
    prompt, new = whole("prompt", prompt, 1), whole("new", new, 1)
    if element not in _DTYPES:
        raise UserError(f"element: {element} is not one of {', '.join(map(str, _DTYPES))}")
    label = method if isinstance(method, str) else ""
    if not isinstance(method, Method):
        entry = {"method": method} if isinstance(method, str) else method
        label, method = str(entry.get("method", label)), build(entry)
    budget = None
    if tokens is not None or ratio is not None:
        budget = Budget(tokens, None if ratio is None else str(ratio))
    resolved = method.resolve(Shape(prompt, new, shape.layers, shape.head_dim), budget)
    return Account(shape, label or method.describe()["eviction"], resolved, prompt, new, element)


@dataclass
class _Layer:
    """One layer of one sequence.

    Attributes:
        rule: its budget.
        scores_tokens: False if the layer reuses the tokens of an earlier one.
        format: how it stores keys and values.
        bound_reasons: why sizes depend on the data, so that they are upper bounds; empty if they are exact.
        kept: prompt tokens per KV head, or their upper bound.
    """

    shape: ModelShape
    cell: Resolved
    prompt: int
    new: int
    element: int
    rule: LayerRule
    scores_tokens: bool
    format: Format

    def __post_init__(self) -> None:
        selection, eviction, keep = self.cell.selection, self.cell.eviction, self.rule.keep
        self.bound_reasons: list[str] = []
        self.kept, self.members = self.prompt if keep is None else keep, 0
        # the selection holds data for KV heads, or for query heads, about the tokens that each of them keeps
        self.select_heads, self.select_tokens = self.shape.kv_heads, self.kept
        own = 0 if keep is None else eviction.own_tokens(keep, self.shape.group)
        self.per_query_head = own > eviction.window and _per_query_head(eviction)
        if keep is not None and not eviction.meets_budget:
            self.bound_reasons.append(f"{eviction.name} may keep fewer tokens than its budget")
        if self.per_query_head:
            self.bound_reasons.append("each query head keeps its own tokens, and their union is stored")
            self.select_tokens = own
            self.kept = min(self.prompt, own + (self.shape.group - 1) * (own - eviction.window))
            self.members, self.select_heads = self.shape.heads * self.kept, self.shape.heads
        elif keep is not None and _per_query_head(eviction):
            # within the window all query heads keep the same tokens
            self.kept = self.select_tokens = own
        if self.rule.read is not None and _per_query_head(selection):
            self.bound_reasons.append("each query head reads its own tokens")
        kv = _empty(self.shape.kv_heads, self.kept, self.shape, self.element)
        self.storage = _Storage(self.cell, self.rule, kv, self.prompt, self.new, self.format)
        self.retained = 0
        if self.cell.retains and keep is not None:
            whole = _empty(self.shape.kv_heads, self.prompt, self.shape, self.element)
            self.retained = self.format.store(whole, whole, 1, 0).bytes()[0]
        self.state = None
        if self.rule.read is not None:
            keys = _empty(self.select_heads, self.select_tokens, self.shape, self.element)
            self.state = selection.prepare(keys, keys, 1, self.new)

    @property
    def numbers(self) -> int:
        """Numbers in one token's keys and values."""
        return 2 * self.shape.kv_heads * self.shape.head_dim

    @property
    def auxiliary(self) -> int:
        """Bytes of the selection's data and of the query heads' lists of slots."""
        if self.rule.read is None:
            return 0
        lists = SLOT.itemsize * self.select_heads * self.select_tokens if self.per_query_head else 0
        return self.cell.selection.resident_bytes(self.state) + lists

    def resident(self, appended: int) -> float:
        stored = self.storage.bytes(appended, dropped=True)
        return stored + self.members + self.retained + self.auxiliary + self._queries(appended)

    def _queries(self, appended: int) -> int:
        """Bytes of the last queries, which an eviction may hold while decoding."""
        observed = 0 if self.rule.hold is None else self.cell.eviction.observes
        return min(observed, self.prompt + appended) * self.shape.heads * self.shape.head_dim * self.element

    def step(self, token: int) -> Work:
        count, stored = self.storage.count(token), self.storage.bytes(token)
        added = Work(written=self.storage.token_bytes)
        if self.rule.read is None:
            return added + Work(read=stored, flops=self._flops(count * self.numbers))
        selection = self.cell.selection
        candidates = count - self.kept + self.select_tokens
        each = slots = selection.slots(self.rule.read, candidates)
        if self.per_query_head or _per_query_head(selection):
            slots = min(count, self.shape.group * each)
        scored = selection.score_bytes(self.state, candidates, self.element)
        updates = selection.append_bytes(self.shape.head_dim, self.element)
        added += Work(*(self.select_heads * size for size in updates))
        read = stored * slots / count + scored
        # data of a KV head serves all query heads of its group, data of a query head only that one
        numbers = scored / self.element * self.shape.kv_heads / self.select_heads
        return added + Work(read=read, flops=self._flops(each * self.numbers + numbers))

    def compress(self) -> Work:
        kept = self.kept * self.numbers * self.element
        work = Work()
        if self.rule.keep is not None:
            work += Work(kept, self.storage.bytes(0))
            if self.scores_tokens:
                work += _choosing(self.cell.eviction, self.shape, self.prompt, self.element)
        if self.state is not None:
            work += Work(kept / 2, self.auxiliary)
        return work

    def _flops(self, numbers: float) -> float:
        # each number read enters one multiply-add per query head of its group
        return 2 * self.shape.group * numbers


class _Storage:
    """Keys and values of one layer in their format, as tokens are appended."""

    def __init__(
        self, cell: Resolved, rule: LayerRule, kv: Tensor, prompt: int, new: int, form: Format
    ) -> None:
        self.kept, self.hold, self.eviction = kv.shape[2], rule.hold, cell.eviction
        # by appended tokens: slots before and after the drop that may be due then
        self.counts, self.length = [(self.kept, self.kept)], prompt
        if rule.hold is not None:
            eviction = cell.eviction
            dtypes = {**eviction.carries, **({"position": torch.int32} if eviction.locates else {})}
            carried = {name: kv[0, :, :, 0].to(dtype) for name, dtype in dtypes.items()}
            store = form.roll(kv, kv, 1, rule.hold, eviction.interval, carried)
        else:
            store = form.store(kv, kv, 1, new)
        # storage that grows by the same bytes per token is measured with one token
        self.even = isinstance(store, Rolling) or store.static
        self.store, self.token = store, kv[:, :, :1]
        self.sizes = [store.bytes()[0]]

    @property
    def token_bytes(self) -> int:
        """Bytes per appended token."""
        return self._size(1) - self._size(0)

    def count(self, appended: int, dropped: bool = False) -> int:
        """Slots per KV head, before or after the step drops those beyond its limit."""
        if self.hold is None:
            return self.kept + appended
        while len(self.counts) <= appended:
            before = self.length + len(self.counts) - 1
            count = self.counts[-1][1] + 1
            held = self.eviction.held_after(self.hold, self.length, before, before + 1)
            self.counts.append((count, count if held is None else min(count, held)))
        return self.counts[appended][dropped]

    def bytes(self, appended: int, dropped: bool = False) -> int:
        if not self.even:
            return self._size(appended)
        return self._size(0) + (self.count(appended, dropped) - self.kept) * self.token_bytes

    def _size(self, appended: int) -> int:
        while len(self.sizes) <= appended:
            self.store.append(self.token, self.token)
            self.sizes.append(self.store.bytes()[0])
        return self.sizes[appended]


def _per_query_head(part: Any) -> bool:
    """Whether query heads of a group choose separately."""
    return getattr(part, "heads", None) == "query_head"


def _empty(heads: int, tokens: int, shape: ModelShape, element: int) -> Tensor:
    """Keys or values `[1, heads, tokens, D]` without data."""
    return torch.empty(1, heads, tokens, shape.head_dim, dtype=_DTYPES[element], device="meta")


def _choosing(eviction: Eviction, shape: ModelShape, tokens: int, element: int) -> Work:
    """Scoring the tokens of one layer.

    Windows of queries, and sums over all queries, take two passes over the keys, as in `window_scores`; keys that its
    tiles of queries read again at the same time are assumed to come from a cache.
    """
    keys, values = (shape.kv_heads * shape.head_dim * tokens for _ in range(2))
    pairs = shape.heads * shape.head_dim * tokens
    if "attention_sum" in eviction.needs:
        return Work(2 * keys * element, 4 * shape.heads * tokens, 2 * pairs * tokens)
    if "queries" in eviction.needs:
        # mean and covariance of all queries, a quadratic form of every key per query head
        return Work(
            (pairs + keys + values) * element, 4 * shape.kv_heads * tokens, 4 * pairs * shape.head_dim
        )
    if eviction.window:
        return Work(2 * keys * element, 4 * shape.heads * tokens, 4 * pairs * min(eviction.window, tokens))
    if type(eviction).scores is Eviction.scores:
        return Work()
    return Work(keys * element, 4 * shape.kv_heads * tokens, 2 * keys)


def _sum(parts: Iterable[Work]) -> Work:
    return functools.reduce(Work.__add__, parts, Work())
