"""Peak memory of a prompt and its cells; every figure is `modelled`.

Counted are tensors that are alive at the same time, without the allocator's rounding and fragments, the kernels'
scratch and what the driver takes; `roofline.USABLE` leaves room for those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.cost.accounting import Account
from kvbench.cost.shapes import ModelShape

FP32 = 4
#: rows of a pass of known tokens, see engine/forced.py
PASS_ROWS = 128
#: least bytes of the caches of cells that are decoded together, see engine/blocks.py
BLOCK_BYTES = 768 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes of a prompt, by what holds them.

    Attributes:
        weights: the model.
        snapshot: keys and values of the whole prompt, and what methods need of its queries.
        activations: of one chunk of the prefill.
        dense: keys and values of dense's answer.
        cells: what each other cell keeps besides the snapshot at the end of its answer.
        block: bytes of cells that are decoded at a time, unless one alone is larger.
        step: activations and logits of a pass of decoding.
    """

    weights: float
    snapshot: float
    activations: float
    dense: float
    cells: tuple[float, ...]
    block: float
    step: float

    @property
    def prefill(self) -> float:
        """The most at a time before compression."""
        return self.weights + self.snapshot + self.activations

    @property
    def decode(self) -> float:
        """The most at a time afterwards."""
        return self._fixed + min(math.fsum(self.cells), max(self.block, *self.cells, 0.0))

    @property
    def peak(self) -> float:
        """The larger of the two."""
        return max(self.prefill, self.decode)

    @property
    def _fixed(self) -> float:
        return self.weights + self.snapshot + self.dense + self.step

    def blocks(self, room: float) -> int | None:
        """In how many blocks of cells decoding stays within `room` bytes; None if in none.

        Args:
            room: bytes for everything.
        """
        left = room - self._fixed
        if left < max(self.cells, default=0):
            return None
        found, held = 1, 0.0
        for size in self.cells:
            if held + size > left:
                found, held = found + 1, 0.0
            held += size
        return found


def memory(
    accounts: Sequence[Account], chunk: int, window: int = 1, sums: bool = False, batch: int | None = None
) -> Memory:
    """The memory of one prompt.

    Args:
        accounts: one per cell, dense first.
        chunk: prompt tokens per forward pass of the prefill.
        window: last queries that the snapshot keeps.
        sums: whether it keeps the attention that every token got.
        batch: in an efficiency run, the rows that are decoded at once, each with a copy of what it keeps; None for
            cells that share the snapshot and are decoded in blocks.
    """
    dense, others = accounts[0], accounts[1:]
    shape, element = dense.shape, dense.element
    whole = shape.kv_bytes(dense.prompt, element)
    queries = shape.layers * shape.heads * shape.head_dim * min(window, dense.prompt) * element
    attention = shape.layers * shape.heads * dense.prompt * FP32 if sums else 0
    # cells that evict nothing share the snapshot's keys and values
    kept = (
        cell.resident_end - (whole if batch is None and cell.kept == cell.prompt else 0) for cell in others
    )
    rows = PASS_ROWS if batch is None else batch
    return Memory(
        weights=shape.weight_bytes(element),
        snapshot=whole + queries + attention,
        activations=activations(shape, min(chunk, dense.prompt), element) + shape.vocab * (element + FP32),
        dense=dense.resident_end - whole if batch is None else 0,
        cells=tuple(max(0.0, size) for size in kept),
        block=max(BLOCK_BYTES, whole) if batch is None else math.inf,
        step=activations(shape, rows, element) + rows * shape.vocab * (element + FP32),
    )


def activations(shape: ModelShape, tokens: int, element: int) -> float:
    """Bytes of one layer's activations: the residual stream and its norm beside those of attention or of the MLP.

    Attention holds queries, keys and values, and three times the queries while they are turned by their positions; the
    MLP its gate, the other factor and their product. No scores: flash attention never stores them.

    Args:
        shape: the model.
        tokens: in the forward pass.
        element: bytes per number.
    """
    projected = (4 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return tokens * element * (2 * shape.hidden + max(projected, 3 * shape.intermediate))


def largest_chunk(found: Memory, shape: ModelShape, element: int, room: float, below: int) -> int | None:
    """The largest power of two of prompt tokens per forward pass whose prefill stays within `room` bytes.

    Args:
        found: the memory with another chunk.
        shape: the model.
        element: bytes per number.
        room: bytes for everything.
        below: the chunk that is too large.
    """
    left = room - found.weights - found.snapshot - shape.vocab * (element + FP32)
    fitting = (2**n for n in range(20, 3, -1) if 2**n < below and activations(shape, 2**n, element) <= left)
    return next(fitting, None)
