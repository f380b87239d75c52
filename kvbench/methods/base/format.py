"""Formats: how keys and values are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from kvbench.kernels.sparse_decode import FP8
from kvbench.methods.base.component import Component
from kvbench.methods.storage import Codec, Rolling, Split


class Stored(Protocol):
    """Keys and values of one layer in a format, for rows that may share the prompt's part."""

    @property
    def count(self) -> int:
        """Tokens held, equal for all rows and KV heads."""
        ...

    @property
    def static(self) -> bool:
        """Whether every further step does the same operations on the same memory."""
        ...

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of N new tokens; returns them as `read` will return them."""
        ...

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Everything in the model's dtype, regenerated at each call; the caller may overwrite it.

        Returns:
            Keys and values of a prefix `[B, H, P, D]`, those of a tail with room for M tokens `[R, H, M, D]`, and the
            number of tokens in the tail, a 0-dim integer tensor.
        """
        ...

    def codes(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], FP8] | None:
        """The same as fp8 codes, and how to decode them; None for other formats."""
        ...

    def bytes(self) -> tuple[int, int]:
        """Bytes of one row, and the part of them that does not depend on the model's dtype."""
        ...


class Format(Component):
    """How keys and values are stored.

    The engine reads them through a copy in the model's dtype, made at every step and then discarded. A format that
    treats tokens one by one provides a `codec`, or `codecs` where keys and values differ; any other provides `store`,
    and cannot `roll`.
    """

    family = "format"
    #: whether single tokens can be dropped, as eviction while decoding does
    rolls: ClassVar[bool] = True

    def codec(self, x_BHKD: Tensor) -> Codec:
        """Codec for keys or for values; x are the kept ones, from which scales may be computed."""
        return Codec()

    def codecs(self, k_BHKD: Tensor, v_BHKD: Tensor) -> tuple[Codec, Codec]:
        """Codecs for keys and for values."""
        return self.codec(k_BHKD), self.codec(v_BHKD)

    def in_layer(self, layer: int, num_layers: int) -> Format:
        """The format of one layer, counted from 0: by default the same in all."""
        return self

    def store(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> Stored:
        """Stores the kept keys and values, with room for appended tokens.

        Args:
            k_BHKD: keys, B = 1 when the rows share them.
            v_BHKD: values.
            rows: rows R.
            room: maximum number of tokens appended to each row.
        """
        return Split(self.codecs(k_BHKD, v_BHKD), k_BHKD, v_BHKD, rows, room)

    def roll(
        self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, hold: int, slack: int = 1,
        carried: Mapping[str, Tensor] | None = None,
    ) -> Rolling:  # fmt: skip
        """Stores them for rows that drop single tokens; see `Rolling`."""
        assert self.rolls
        return Rolling(self.codecs(k_BHKD, v_BHKD), k_BHKD, v_BHKD, rows, hold, slack, carried or {})


@dataclass(frozen=True, kw_only=True)
class Native(Format):
    """Stores keys and values in the model's own dtype."""

    name = "native"
    source = "-"
    bytes_formula = "element bytes of the model's dtype"
