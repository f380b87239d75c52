"""What is asked of decoding, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from kvbench.engine.draw import Draw
from kvbench.engine.failures import Failure
from kvbench.engine.held import Held


@dataclass(frozen=True)
class DecodeOptions:
    """How the cells of a prompt are decoded.

    Attributes:
        max_new_tokens: maximum number of tokens to generate, M.
        eos: ids that end an answer; empty to generate all M tokens.
        batch_rows: rows per forward pass once a cell's answer differs from dense's, where last digits depend on their
            number (`engine/sizes.py`), so that it is part of the cell's id.
        kl: measure the divergence from dense over dense's answer.
        first_token: "compressed" (the last prompt token is a decode step) or "dense" (prefill gives the first
            token).
        ends: whether an answer ends with the last of these tokens, by its text; None for end tokens only.
        draw: chooses tokens at random; None for the likeliest.
        block_bytes: cells are compressed and decoded in blocks whose caches are estimated to stay within this, or one
            by one; no number depends on it. None for as much as the prompt's own keys and values take, and at least
            `engine.blocks.BLOCK_BYTES`.
    """

    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    batch_rows: int = 32
    kl: bool = True
    first_token: str = "compressed"
    ends: Callable[[Sequence[int]], bool] | None = None
    draw: Draw | None = None
    block_bytes: int | None = None

    def choose(self, logits_RV: Tensor, steps: Sequence[int]) -> Tensor:
        """The token of each row, `[R]`; `steps` are their numbers in the answer, rows without one are padding."""
        return logits_RV.argmax(-1) if self.draw is None else self.draw(logits_RV, steps)

    def stop(self, ids: Sequence[int]) -> str | None:
        """Why an answer ends with the last of these tokens, see `Decoded.stop`; None if it goes on."""
        if ids[-1] in self.eos:
            return "eos"
        if self.ends is not None and self.ends(ids):
            return "string"
        return "length" if len(ids) >= self.max_new_tokens else None


@dataclass
class Decoded:
    """The result of one cell.

    Attributes:
        ids: generated tokens, the end token included.
        stop: "eos", "string" (the text ended it), "length" or "forced" (nothing was generated).
        kl: mean KL(dense || cell) in nats over dense's own continuation, or None.
        kl_tokens: tokens that the mean is over.
        agree: fraction of those where the cell's most likely token is dense's, or None.
        kept: kept prompt tokens, mean over layers and KV heads.
        resident: bytes after compression; `resident_bf16` with a bf16 model.
        resident_end: bytes after decoding.
        read: bytes of K, V and auxiliary data read per decode step, mean over steps; `read_bf16` likewise.
        held: over its decode steps; None without one. Of known texts, over the last one.
        log_probs: of texts that were fed, by text and token; None where an answer was generated.
    """

    ids: list[int] = field(default_factory=list)
    stop: str = "length"
    kl: float | None = None
    kl_tokens: int = 0
    agree: float | None = None
    kept: float = 0.0
    resident: int = 0
    resident_bf16: int = 0
    resident_end: int = 0
    read: float = 0.0
    read_bf16: float = 0.0
    held: Held | None = None
    log_probs: list[list[float]] | None = None


@dataclass
class Group:
    """The results of one prompt, dense and the other cells, with the times they shared.

    Attributes:
        dense: of dense.
        cells: of the others, or why they have none.
        compress_seconds: for all cells together.
        decode_seconds: likewise, dense included.
        steps: decode steps of the longest answer.
    """

    dense: Decoded
    cells: list[Decoded | Failure]
    compress_seconds: float
    decode_seconds: float
    steps: int
