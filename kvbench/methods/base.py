"""What a method is: an eviction, a selection and a format under one budget rule.

Shape letters: R rows of a batch, T tokens, H KV heads, G query heads per KV head, Q = H * G, D head
dimension, W window, K kept tokens, M room for appended tokens, P pages, N slots read at a step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.formats.tokenwise import Codec, Rolling, Split
from kvbench.kernels.sparse_decode import FP8
from kvbench.kernels.top_k import top_k
from kvbench.methods.budget import Budget, LayerRule, Quota, Shape
from kvbench.methods.snapshot import Kept, LayerSnapshot


class Component:
    """What every role shares: a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    #: where paper, official code and this one differ, as far as the description does not say
    differs: ClassVar[str] = ""
    budget_meaning: ClassVar[str] = ""
    #: bytes per layer and KV head after compression: an expression, and perhaps a remark behind a semicolon
    bytes_formula: ClassVar[str] = ""
    version: ClassVar[int] = 1
    #: whole-number parameters that are above 0; the others are 0 or more
    positive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value in self.params().items():
            least = int(name in self.positive)
            if type(value) is int and value < least:
                raise UserError(f"{name}: {value} is not allowed, give {least} or more")
            # pooling with an even one has no middle
            if name == "kernel" and value % 2 == 0:
                raise UserError(f"{name}: {value} is not allowed, give an odd number")

    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


class Eviction(Component):
    """Permanent removal after prefill and, where `steps` is true, after each decode step too."""

    family = "eviction"
    bytes_formula = "2 * keep * D * element"
    #: queries of the observation window that the snapshot must hold
    window: int = 0
    #: KV heads of a layer may keep different numbers of tokens, the budget holding for their mean
    ragged: ClassVar[bool] = False

    def scores(self, snapshot: LayerSnapshot) -> Any:
        """What the choice needs and no budget changes; computed once per prompt, layer and setting."""
        return None

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        """The tokens to keep: by default those of highest score, ties going to the earlier token.

        Args:
            snapshot: the layer.
            scores: what `scores` returned for it, here `[H, T]`, or `[1, T]` for one choice per layer.
            quota: how many tokens to keep in this layer, fewer than the snapshot holds.
        """
        return Kept.uniform(top_k(scores, quota.tokens).expand(snapshot.heads, -1))

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        """Tokens to keep per KV head, by layer: by default `quota.tokens` in each."""
        return [quota.tokens] * shape.num_layers

    def notes(self, quota: Quota, shape: Shape) -> tuple[str, ...]:
        """Remarks on the budget for the reader of a result, e.g. that a fallback was taken."""
        return ()

    @property
    def needs(self) -> frozenset[str]:
        """What else the snapshot must hold: "attention_sum", "queries", "rope", "boundaries", "answer"."""
        return frozenset()

    @property
    def steps(self) -> bool:
        """Whether `step` holds the cache at its budget while decoding; a method may switch it off."""
        return type(self).step is not Eviction.step

    @property
    def meets_budget(self) -> bool:
        """Whether exactly the budget is kept, however the scores fall; otherwise it is the most."""
        return not self.ragged

    @property
    def excess(self) -> int:
        """Tokens that a rounding rule may keep beyond the budget."""
        return 0

    @property
    def reindexes(self) -> bool:
        """Whether kept keys are rotated to consecutive positions that end with the prompt.

        Needs "rope". Distances to the query are then those inside the cache, as in StreamingLLM's paper. After
        `step` the first `leading` keys are rotated further, by all that was dropped: it drops right behind them.
        """
        return False

    @property
    def leading(self) -> int:
        """Slots in front of what `step` drops, where keys are rotated to consecutive positions."""
        return 0

    def carry(self, snapshot: LayerSnapshot, scores: Any, kept: Kept) -> list[Tensor] | None:
        """A number per kept token that `step` shall find again (H2O's sums), per KV head fp32 `[K_h]`."""
        return None

    def step(self, probs_RHGNC: Tensor, carried_RHC: Tensor | None, drop: int) -> Tensor | None:
        """Takes note of a decode step of the rows in a layer, and chooses what to drop after it.

        Slots stand in order of position: the newest token is the last one. Rows, and KV heads, choose for
        themselves; KV heads come one at a time (H = 1) where the eviction kept different numbers for them.

        Args:
            probs_RHGNC: attention of the N tokens that were appended since the last call (one, but for the
                question of a query-agnostic prompt) to all C slots held, fp32; where a selection read fewer,
                the others have 0.
            carried_RHC: what `carry` began with, 0 for appended tokens; to be updated in place. None if it
                gave None.
            drop: how many slots to drop, E; 0 while the cache is below its budget. C - E stay.

        Returns:
            The slots, int64 `[R, H, E]`, distinct; not read when E is 0.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class KeepAll(Eviction):
    """No eviction."""

    name = "none"


class Selection(Component):
    """The tokens read at one decode step.

    A slot is a place in the compact cache: the kept prompt tokens first, in order of position, then every
    appended token. State lives on the device and is updated in place, so that a CUDA graph can hold a step.
    """

    family = "selection"
    #: whether `select` looks at the keys that it is given, and not at its own data only
    reads_keys: bool = True

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        """Final parameters, and the tokens to read per layer (None: all) for a budget of `read`.

        Args:
            read: the budget.
            shape: of what an eviction leaves to select from, in the layer where that is most.
        """
        total = shape.compressed + shape.max_new_tokens
        return self, [read if read < total else None] * shape.num_layers

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> Any:
        """Auxiliary data of one layer.

        Args:
            k_BHKD: kept keys `[B, H, K, D]`, B = 1 when the rows share them.
            v_BHKD: kept values.
            rows: rows R.
            room: slots that will be appended at most.
        """
        return None

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        """Takes note of a key and a value `[R, H, D]` appended at `slot`, a 1-element integer tensor."""

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

    def combine(self, out_RHGD: Tensor, lse_RHG: Tensor, state: Any) -> Tensor:
        """Corrects the output of the attention over the selected slots, where `combines` is true.

        Args:
            out_RHGD: the output.
            lse_RHG: natural-log sum of exponentials of the selected logits, fp32.
            state: what `prepare` returned and `select` has just seen.
        """
        return out_RHGD

    @property
    def combines(self) -> bool:
        """Whether `combine` changes anything."""
        return type(self).combine is not Selection.combine

    def resident_bytes(self, state: Any) -> int:
        """Bytes of the auxiliary data for one row."""
        return 0

    def fixed_bytes(self, state: Any) -> int:
        """Those of `resident_bytes` that are as many in any dtype of the model."""
        return 0

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        """Bytes that scoring reads at one step for one row, all KV heads of the layer together."""
        return 0

    def slots(self, tokens: int, length: int) -> int:
        """Slots that `select` gives for one list, of `length` filled ones."""
        return min(tokens, length)

    def append_bytes(self, head_dim: int, element: int) -> tuple[int, int]:
        """Bytes that `append` reads and writes per KV head."""
        return 0, 0


@dataclass(frozen=True, kw_only=True)
class ReadAll(Selection):
    """No selection: every kept token is read."""

    name = "all"
    reads_keys = False


class Stored(Protocol):
    """Keys and values of one layer in a format, for rows that may share the prompt's part of them."""

    @property
    def count(self) -> int:
        """Tokens held, the same number in every row and KV head."""
        ...

    @property
    def static(self) -> bool:
        """Whether each step does the same operations on the same memory from now on."""
        ...

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of N new tokens; returns them as `read` will give them."""
        ...

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Everything in the model's dtype, made anew at each call: scratch of the caller.

        Returns:
            Keys and values of a prefix `[B, H, P, D]`, those of a tail with room for M tokens `[R, H, M, D]`,
            and how many tokens are in the tail, a 0-dim integer tensor.
        """
        ...

    def codes(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], FP8] | None:
        """The same as fp8 codes, and what they stand for; None where something else is stored."""
        ...

    def bytes(self) -> tuple[int, int]:
        """Bytes of one row, and those of them that would be as many in another dtype of the model."""
        ...


class Format(Component):
    """How keys and values are stored.

    The engine reads what is stored through a copy in the model's dtype, made at every step and thrown away
    after it. A format that treats every token by itself gives a `codec`; another one its own `store`, and
    cannot `roll`.
    """

    family = "format"
    #: whether single tokens can be dropped, as decode-time eviction does
    rolls: ClassVar[bool] = True

    def codec(self, x_BHKD: Tensor) -> Codec:
        """For keys or for values; x are the kept ones, which scales may be taken from."""
        return Codec()

    def store(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> Stored:
        """Stores the kept keys and values, with room for appended tokens.

        Args:
            k_BHKD: keys, B = 1 when the rows share them.
            v_BHKD: values.
            rows: rows R.
            room: tokens that may be appended to each.
        """
        return Split((self.codec(k_BHKD), self.codec(v_BHKD)), k_BHKD, v_BHKD, rows, room)

    def roll(
        self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, hold: int, carried_HK: Tensor | None = None
    ) -> Rolling:
        """Stores them for rows that drop what is beyond `hold` tokens after every step; see `Rolling`."""
        assert self.rolls
        return Rolling((self.codec(k_BHKD), self.codec(v_BHKD)), k_BHKD, v_BHKD, rows, hold, carried_HK)


@dataclass(frozen=True, kw_only=True)
class Native(Format):
    """The model's own dtype."""

    name = "native"
    source = "-"
    bytes_formula = "element bytes of the model's dtype"


@dataclass(frozen=True, kw_only=True)
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
        retains: the whole prompt stays stored behind what is kept for reading (for later turns).
    """

    eviction: Eviction
    selection: Selection
    format: Format
    rules: tuple[LayerRule, ...]
    ratio: str | None = None
    covers_prompt: bool = False
    dense: bool = False
    notes: tuple[str, ...] = ()
    retains: bool = False


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
    def needs(self) -> frozenset[str]:
        """What else the snapshot must hold, see `Eviction.needs`."""
        return self.parts()[0].needs

    @property
    def on_turn(self) -> Literal["keep", "filter"]:
        """What a later turn of a conversation finds: what the first one kept, or all tokens, filtered anew."""
        return "keep"

    def own_params(self) -> dict[str, Any]:
        """The parameters without those of the format."""
        return {name: value for name, value in self.params().items() if name != "format"}

    def describe(self) -> dict[str, Any]:
        """Names of the three roles and all parameters, for records and cell ids."""
        eviction, selection = self.parts()
        params = self.own_params()
        if self.format.params():
            params["format"] = self.format.params()
        return {
            "eviction": eviction.name,
            "selection": selection.name,
            "format": self.format.name,
            "params": params,
        }

    def versions(self) -> list[list[Any]]:
        """Names and versions of everything whose change must invalidate stored cells."""
        return [[type(part).__qualname__, part.version] for part in (self, *self.parts(), self.format)]

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        """Apply the budget rule to one prompt length."""
        raise NotImplementedError
