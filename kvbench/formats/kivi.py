"""Integers of few bits as in KIVI: keys quantised per channel, values per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.quantise_kv import pack, unpack
from kvbench.methods.base import Format
from kvbench.methods.registry import register

#: larger numbers saturate, so that zero point, scale and what is read fit in fp16
LARGEST = 65408.0


@dataclass
class Quantised:
    """Codes packed into bytes along the channels, with a scale and zero point per group.

    A number is `code * scale + zero`. A group is a run of tokens of one channel (keys) or a run of channels of one
    token (values).

    Attributes:
        codes: uint8 `[B, H, T, D * bits / 8]`, the first number of a byte in its low bits.
        scale: fp16 `[B, H, T / g, D]` for keys, `[B, H, T, D / g]` for values.
        zero: fp16, shaped as scale.
        bits: 2, 4 or 8.
        group: numbers per group, g.
        axis: 2 for groups of tokens, 3 for groups of channels.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group: int
    axis: int

    @classmethod
    def of(cls, x_BHTD: Tensor, bits: int, group: int, axis: int) -> Quantised:
        """Quantises `[B, H, T, D]` in groups along an axis whose size is a multiple of the group.

        Finite numbers beyond `LARGEST` saturate; a group with an infinity or NaN is read as NaN.
        """
        codes, scale, zero = pack(x_BHTD.float().clamp(-LARGEST, LARGEST), bits, group, axis)
        # 0, or NaN where a number is not finite
        poison = (x_BHTD - x_BHTD).unflatten(axis, (x_BHTD.shape[axis] // group, group)).sum(axis + 1)
        return cls(codes, scale + poison.to(scale.dtype), zero, bits, group, axis)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """The numbers `[B, H, T, D]`."""
        return unpack(*self._tensors(), self.bits, self.group, self.axis, dtype)

    def then(self, later: Quantised) -> Quantised:
        """These tokens followed by later ones."""
        codes, scale, zero = (
            torch.cat(pair, dim=2) for pair in zip(self._tensors(), later._tensors(), strict=True)
        )
        return Quantised(codes, scale, zero, self.bits, self.group, self.axis)

    def row_bytes(self) -> int:
        return sum(x[0].numel() * x.element_size() for x in self._tensors())

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.scale, self.zero


class KiviStore:
    """Old tokens quantised, recent ones in the model's dtype.

    Keys are quantised in runs of `residual` tokens as soon as a run is full, values one by one when they are `residual`
    tokens old. Rows share the full runs whose keys and values are both quantised after prefill; each row has its own
    copy of the rest.
    """

    static = False

    def __init__(
        self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, bits: int, group: int, residual: int
    ) -> None:
        self.bits, self.group, self.residual, self.dtype = bits, group, residual, k_BHKD.dtype
        self.count = k_BHKD.shape[2]
        self.shared = max(0, self.count - residual) // residual * residual
        self.prefix = (self._keys(k_BHKD[:, :, : self.shared]), self._values(v_BHKD[:, :, : self.shared]))
        # copied, because views would keep the whole prompt in memory
        k, v = (x[:, :, self.shared :].expand(rows, -1, -1, -1).clone() for x in (k_BHKD, v_BHKD))
        self.k_recent, self.v_recent = k, v
        self.k_old, self.v_old = self._keys(k[:, :, :0]), self._values(v[:, :, :0])
        self._settle()

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> tuple[Tensor, Tensor]:
        # as in the official code, the step that fills a run still reads it in full precision
        self._settle()
        self.k_recent = torch.cat([self.k_recent, k_RHND], dim=2)
        self.v_recent = torch.cat([self.v_recent, v_RHND], dim=2)
        self.count += k_RHND.shape[2]
        return k_RHND, v_RHND

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        k, v = (x.numbers(self.dtype) for x in self.prefix)
        k_tail = torch.cat([self.k_old.numbers(self.dtype), self.k_recent], dim=2)
        v_tail = torch.cat([self.v_old.numbers(self.dtype), self.v_recent], dim=2)
        return k, v, k_tail, v_tail, torch.full((), self.count - self.shared, device=k.device)

    def codes(self) -> None:
        """None: no form of attention reads packed groups."""

    def bytes(self) -> tuple[int, int]:
        fixed = sum(x.row_bytes() for x in (*self.prefix, self.k_old, self.v_old))
        recent = sum(x[0].numel() * x.element_size() for x in (self.k_recent, self.v_recent))
        return fixed + recent, fixed

    def _settle(self) -> None:
        """Quantises full runs of keys, and values older than `residual` tokens."""
        full = self.k_recent.shape[2] // self.residual * self.residual
        if full:
            self.k_old = self.k_old.then(self._keys(self.k_recent[:, :, :full]))
            self.k_recent = self.k_recent[:, :, full:].clone()
        old = self.v_recent.shape[2] - self.residual
        if old > 0:
            self.v_old = self.v_old.then(self._values(self.v_recent[:, :, :old]))
            self.v_recent = self.v_recent[:, :, old:].clone()

    def _keys(self, x_BHTD: Tensor) -> Quantised:
        return Quantised.of(x_BHTD, self.bits, self.group, axis=2)

    def _values(self, x_BHTD: Tensor) -> Quantised:
        return Quantised.of(x_BHTD, self.bits, min(self.group, x_BHTD.shape[3]), axis=3)


@dataclass(frozen=True, kw_only=True)
class _Kivi(Format):
    bits: ClassVar[int]
    rolls = False
    source = (
        "KIVI, Liu et al. 2024, arXiv 2402.02750, section 3; official group 32, residual 128, fp16 scales"
    )

    group: int = 32
    residual: int = 128

    def __post_init__(self) -> None:
        if self.group < 1 or self.residual < 1 or self.residual % self.group:
            raise UserError(f"residual: {self.residual} is not a multiple of group ({self.group})")

    def store(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> KiviStore:
        dim = v_BHKD.shape[3]
        if dim % min(self.group, dim) or dim * self.bits % 8:
            raise UserError(f"format.group: {self.group} does not divide the head dimension {dim}")
        return KiviStore(k_BHKD, v_BHKD, rows, self.bits, self.group, self.residual)


@register("int8")
@dataclass(frozen=True, kw_only=True)
class Int8(_Kivi):
    """Stores K and V as 8-bit integers in KIVI's groups; see int4."""

    bits = 8
    bytes_formula = "(1 + 4 / group) bytes per old element; the model's element per recent one"


@register("int4")
@dataclass(frozen=True, kw_only=True)
class Int4(_Kivi):
    """Stores K and V as 4-bit integers: keys in groups of tokens per channel, values in groups of channels per token.

    The last `residual` values and the keys of the last, incomplete run of `residual` tokens stay in the model's dtype.
    Appended tokens join them and are quantised when a run is full (keys) or when they are old enough (values). Scale
    and zero point of a group are fp16, so that numbers beyond 65408 saturate. All tokens are read in the model's dtype.
    """

    bits = 4
    bytes_formula = "(1 / 2 + 4 / group) bytes per old element; the model's element per recent one"


@register("int2")
@dataclass(frozen=True, kw_only=True)
class Int2(_Kivi):
    """Stores K and V as 2-bit integers in KIVI's groups; see int4."""

    bits = 2
    bytes_formula = "(1 / 4 + 4 / group) bytes per old element; the model's element per recent one"
