"""What a method is: an eviction, a selection and a format under one budget rule.

Shape letters: R rows of a batch, T tokens, H KV heads, G query heads per KV head, Q = H * G, D head dimension,
W window, K kept tokens, M room for appended tokens, P pages, N slots read at a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.errors import UserError
from kvbench.kernels import window_scores as kernels


@dataclass(frozen=True)
class Budget:
    """How much a method may keep or read, per KV head and layer.

    Exactly one of `tokens` and `ratio` is set. A ratio is the fraction retained of the compressed tokens, floored in
    decimal arithmetic (0.1 of 1000 is 100), at least 1. `keep` and `read` override the two sides of a composition.
    """

    tokens: int | None = None
    ratio: str | None = None
    keep: int | None = None
    read: int | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.ratio is None):
            raise UserError("budget: give exactly one of tokens and ratio")
        for name in ("tokens", "keep", "read"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(f"budget.{name}: {value!r} is not a whole number above 0")
        if self.ratio is not None and not 0 < Decimal(str(self.ratio)) <= 1:
            raise UserError(f"budget.ratio: {self.ratio} is not in (0, 1]")

    def of(self, compressed: int) -> int:
        """The budget in tokens for a prompt of `compressed` tokens."""
        if self.tokens is not None:
            return self.tokens
        exact = Decimal(str(self.ratio)) * compressed
        return max(1, int(exact.to_integral_value(ROUND_FLOOR)))

    def label(self) -> str:
        """Short form for tables: `256`, `0.1x`, with `keep=`/`read=` where given."""
        text = str(self.tokens) if self.tokens is not None else f"{self.ratio}x"
        for name in ("keep", "read"):
            if getattr(self, name) is not None:
                text += f",{name}={getattr(self, name)}"
        return text


@dataclass(frozen=True)
class Shape:
    """What a budget rule may depend on."""

    compressed: int
    max_new_tokens: int
    num_layers: int
    head_dim: int


@dataclass(frozen=True)
class LayerRule:
    """Tokens per KV head of one layer: `keep` of the prompt (None: all), `read` at a decode step (None: all kept)."""

    keep: int | None = None
    read: int | None = None


@dataclass
class LayerSnapshot:
    """What the dense prefill of one prompt leaves of one layer.

    Attributes:
        k_HTD: post-RoPE keys `[H, T, D]`, heads not expanded.
        v_HTD: values `[H, T, D]`.
        q_QWD: post-RoPE queries of the last W positions `[Q, W, D]`, W at least every method's window (or T).
        layer: index of the layer.
        num_layers: layers of the model.
        scaling: factor on the attention logits.
    """

    k_HTD: Tensor
    v_HTD: Tensor
    q_QWD: Tensor
    layer: int = 0
    num_layers: int = 1
    scaling: float = 1.0
    _windows: dict[int, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.k_HTD.shape[1]

    @property
    def heads(self) -> int:
        return self.k_HTD.shape[0]

    @property
    def group(self) -> int:
        return self.q_QWD.shape[0] // self.k_HTD.shape[0]

    def window_scores(self, window: int) -> Tensor:
        """Attention of the last `window` queries (T, if fewer) to every key, summed over them: `[Q, T]` fp32.

        Kept for the life of the snapshot, so that every method and budget shares one computation.
        """
        window = min(window, self.length)
        if window not in self._windows:
            assert window <= self.q_QWD.shape[1], "the snapshot holds fewer queries than the window"
            queries = self.q_QWD[:, self.q_QWD.shape[1] - window :]
            self._windows[window] = kernels.window_scores(queries, self.k_HTD, self.scaling)
        return self._windows[window]

    def forget(self) -> None:
        """Drop what was kept for sharing, once every method has chosen."""
        self._windows.clear()


@dataclass
class Kept:
    """The tokens that an eviction keeps in one layer.

    Attributes:
        positions: per KV head the kept positions, ascending, int64 `[K_h]`.
        members: per KV head which query head reads which of them, bool `[G, K_h]`; None when all do.
    """

    positions: list[Tensor]
    members: list[Tensor] | None = None

    @classmethod
    def uniform(cls, positions_HK: Tensor) -> Kept:
        """The same number of tokens for every KV head."""
        return cls(list(positions_HK.unbind(0)))


class Component:
    """What every role shares: a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    budget_meaning: ClassVar[str] = ""
    bytes_formula: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


class Eviction(Component):
    """Permanent removal after prefill."""

    family = "eviction"
    bytes_formula = "2 * keep * D * element"
    #: queries of the observation window that the snapshot must hold
    window: int = 0
    #: KV heads of a layer may keep different numbers of tokens, the budget holding for their mean
    ragged: ClassVar[bool] = False

    def scores(self, snapshot: LayerSnapshot) -> Any:
        """What the choice needs and no budget changes; computed once per prompt, layer and setting."""
        return None

    def keep(
        self, snapshot: LayerSnapshot, scores: Any, tokens: int, earlier: Sequence[Kept], ratio: str | None = None
    ) -> Kept:
        """The tokens to keep.

        Args:
            snapshot: the layer.
            scores: what `scores` returned for it.
            tokens: how many per KV head, below the length of the snapshot.
            earlier: what this method kept in the layers before, for index reuse.
            ratio: the budget as the user's fraction retained, if he gave one (kvpress rounds from it).
        """
        raise NotImplementedError

    def layer_tokens(self, tokens: int, shape: Shape) -> list[int]:
        """The budget of each layer, `tokens` for all unless the method says otherwise."""
        return [tokens] * shape.num_layers


@dataclass(frozen=True, kw_only=True)
class KeepAll(Eviction):
    """No eviction."""

    name = "none"


class Selection(Component):
    """The tokens read at one decode step.

    A slot is a place in the compact cache: the kept prompt tokens first, in order of position, then every appended
    token. State lives on the device and is updated in place, so that a CUDA graph can hold a step.
    """

    family = "selection"

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        """Final parameters, and the tokens to read per layer (None: all) for a budget of `read`."""
        total = shape.compressed + shape.max_new_tokens
        return self, [read if read < total else None] * shape.num_layers

    def prepare(self, k_BHKD: Tensor, rows: int, room: int) -> Any:
        """Auxiliary data of one layer.

        Args:
            k_BHKD: kept keys `[B, H, K, D]`, B = 1 when the rows share them.
            rows: rows R.
            room: slots that will be appended at most.
        """
        return None

    def append(self, state: Any, k_RHD: Tensor, slot: Tensor) -> None:
        """Takes note of a key `[R, H, D]` appended at `slot`, a 1-element integer tensor."""

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        """Slots to read, int32 `[R, H, N]` or, per query head, `[R, H, G, N]`; negative entries read nothing.

        Args:
            q_RHGD: post-RoPE queries.
            k_BHKD: kept keys.
            k_tail_RHMD: keys appended since.
            length: filled slots, a 0-dim integer tensor (the newest token included).
            state: what `prepare` returned.
            tokens: tokens to read.
            scaling: factor on the attention logits.
        """
        raise NotImplementedError

    def resident_bytes(self, state: Any) -> int:
        """Bytes of the auxiliary data for one row."""
        return 0

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        """Bytes that scoring reads at one step for one row, all KV heads of the layer together."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ReadAll(Selection):
    """No selection: every kept token is read."""

    name = "all"


class Format(Component):
    """How keys and values are stored."""

    family = "format"


@dataclass(frozen=True, kw_only=True)
class Native(Format):
    """The model's own dtype."""

    name = "native"
    source = "-"
    bytes_formula = "element bytes of the model's dtype"


@dataclass(frozen=True)
class Resolved:
    """A method with its budget made concrete for one prompt length.

    Attributes:
        eviction: what is evicted after prefill.
        selection: what is read at a decode step; its parameters are final.
        format: how K and V are stored.
        rules: one per layer.
        ratio: the budget as a fraction retained, if it was given so.
        covers_prompt: the budget keeps and reads the whole prompt.
        dense: keep and read cover prompt and new tokens: the engine takes the dense path.
        notes: what a reader of the row must know.
    """

    eviction: Eviction
    selection: Selection
    format: Format
    rules: tuple[LayerRule, ...]
    ratio: str | None = None
    covers_prompt: bool = False
    dense: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Method(Component):
    """What a cell runs: names its roles and applies a budget rule."""

    family = "method"

    format: Format = Native()

    @property
    def needs_budget(self) -> bool:
        """Whether a budget changes anything."""
        return True

    @property
    def lossless(self) -> bool:
        """Whether the format stores K and V as the model computed them."""
        return isinstance(self.format, Native)

    def parts(self) -> tuple[Eviction, Selection]:
        """The eviction and the selection, for names and window; `resolve` may refine their parameters."""
        raise NotImplementedError

    @property
    def window(self) -> int:
        """Queries of the observation window that the snapshot must hold."""
        return self.parts()[0].window

    def own_params(self) -> dict[str, Any]:
        """The parameters without those of the format."""
        return {name: value for name, value in self.params().items() if name != "format"}

    def describe(self) -> dict[str, Any]:
        """Names of the three roles and all parameters, for records and cell ids."""
        eviction, selection = self.parts()
        params = self.own_params()
        if self.format.params():
            params["format"] = self.format.params()
        return {"eviction": eviction.name, "selection": selection.name, "format": self.format.name, "params": params}

    def versions(self) -> list[list[Any]]:
        """Names and versions of everything whose change must invalidate stored cells."""
        return [[type(part).__qualname__, part.version] for part in (self, *self.parts(), self.format)]

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        """Apply the budget rule to one prompt length."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Composite(Method):
    """Any eviction with any selection.

    An eviction keeps `budget` tokens of the prompt (window and sinks included) and reads all it kept; a selection
    keeps everything and reads `budget`; a composition of both takes `budget` for each, or `budget.keep` and
    `budget.read` where given.
    """

    eviction: Eviction = KeepAll()
    selection: Selection = ReadAll()

    @property
    def evicts(self) -> bool:
        return not isinstance(self.eviction, KeepAll)

    @property
    def selects(self) -> bool:
        return not isinstance(self.selection, ReadAll)

    @property
    def needs_budget(self) -> bool:
        return self.evicts or self.selects

    def parts(self) -> tuple[Eviction, Selection]:
        return self.eviction, self.selection

    def own_params(self) -> dict[str, Any]:
        if self.evicts and self.selects:
            return {"eviction": self.eviction.params(), "selection": self.selection.params()}
        return (self.eviction if self.evicts else self.selection).params()

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        total = shape.compressed + shape.max_new_tokens
        if not self.needs_budget:
            keep = read = total
        elif budget is None:
            raise UserError(f"budget: {self.eviction.name} x {self.selection.name} needs budget.tokens or budget.ratio")
        else:
            tokens = budget.of(shape.compressed)
            keep, read = budget.keep or tokens, budget.read or tokens
        per_layer = self.eviction.layer_tokens(keep, shape) if self.evicts else [total] * shape.num_layers
        selection, per_layer_read = self.selection.resolve(read, shape) if self.selects else (self.selection, None)
        rules = tuple(
            LayerRule(
                keep=n if n < shape.compressed else None,
                read=per_layer_read[layer] if per_layer_read is not None else None,
            )
            for layer, n in enumerate(per_layer)
        )
        return Resolved(
            eviction=self.eviction,
            selection=selection,
            format=self.format,
            rules=rules,
            ratio=budget.ratio if budget is not None else None,
            covers_prompt=all(rule == LayerRule() for rule in rules),
            dense=self.lossless and min(per_layer) >= total and (not self.selects or read >= total),
        )


def stack(positions: Sequence[Tensor]) -> Tensor:
    """Positions of every KV head as one `[H, K]` tensor; they must be equally many."""
    return torch.stack(list(positions))
