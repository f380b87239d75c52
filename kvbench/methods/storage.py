"""Token-by-token storage of keys and values: the part shared by native, 16-bit and fp8 formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels.sparse_decode import FP8


@dataclass(frozen=True)
class Codec:
    """Writes and reads the tokens of one tensor; the base class stores them unchanged.

    Attributes:
        fixed: whether the bytes do not depend on the model's dtype.
        scale_bytes: bytes of scales per row.
    """

    fixed: bool = False
    scale_bytes: int = 0

    @property
    def fp8(self) -> tuple[str, Tensor] | None:
        """Name of the code and scale if fp8 codes are stored, which attention can read directly; else None."""
        return None

    def encode(self, x: Tensor) -> Tensor:
        """`[..., D]` as stored."""
        return x

    def decode(self, stored: Tensor) -> Tensor:
        """`[..., D]` in the model's dtype."""
        return stored


class Split:
    """A prefix that rows may share, and a tail with room for each row's appended tokens.

    Args:
        codecs: for keys and for values.
        k_BHKD: keys of the prefix, B = 1 when the rows share them.
        v_BHKD: values of the prefix.
        rows: rows R.
        room: maximum number of appended tokens, M.
    """

    static = True

    def __init__(
        self, codecs: tuple[Codec, Codec], k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int
    ) -> None:
        self.codecs = codecs
        self.prefix = [codec.encode(x) for codec, x in zip(codecs, (k_BHKD, v_BHKD), strict=True)]
        self.tail = [x.new_zeros(rows, x.shape[1], room, x.shape[3]) for x in self.prefix]
        self.count = k_BHKD.shape[2]
        self.appended = torch.zeros(1, dtype=torch.long, device=k_BHKD.device)

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> tuple[Tensor, Tensor]:
        slots = self.appended + torch.arange(k_RHND.shape[2], device=k_RHND.device)
        stored = [codec.encode(x) for codec, x in zip(self.codecs, (k_RHND, v_RHND), strict=True)]
        for tail, x in zip(self.tail, stored, strict=True):
            tail.index_copy_(2, slots, x)
        self.appended += k_RHND.shape[2]
        self.count += k_RHND.shape[2]
        k, v = (codec.decode(x) for codec, x in zip(self.codecs, stored, strict=True))
        return k, v

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        k, v, k_tail, v_tail = (
            codec.decode(x)
            for part in (self.prefix, self.tail)
            for codec, x in zip(self.codecs, part, strict=True)
        )
        return k, v, k_tail, v_tail, self.appended[0]

    def codes(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], FP8] | None:
        keys, values = (codec.fp8 for codec in self.codecs)
        if keys is None or values is None:
            return None
        (k, v), (k_tail, v_tail) = self.prefix, self.tail
        return (k, v, k_tail, v_tail, self.appended[0]), FP8(keys[0], keys[1], values[1])

    def bytes(self) -> tuple[int, int]:
        return _bytes(self.codecs, self.prefix, self.count)


class Rolling:
    """Each row's tokens in order of position, with room for some more than `hold`.

    Args:
        codecs: for keys and for values.
        k_BHKD: keys of the prompt, B = 1 when the rows share them.
        v_BHKD: their values.
        rows: rows R; each has its own tokens.
        hold: tokens left by most drops.
        slack: tokens appended from one drop to the next; room for them is there from the start.
        carried: by name, numbers per token `[H, K]` that move with it, 0 for appended tokens.
    """

    def __init__(
        self, codecs: tuple[Codec, Codec], k_BHKD: Tensor, v_BHKD: Tensor, rows: int, hold: int, slack: int,
        carried: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.codecs, self.hold, self.slack, self.count = codecs, hold, slack, k_BHKD.shape[2]
        self.names = list(carried)
        stored = [codec.encode(x) for codec, x in zip(codecs, (k_BHKD, v_BHKD), strict=True)]
        stored += [x_HK[None, :, :, None] for x_HK in carried.values()]
        self.slots = [self._with_room(x.expand(rows, -1, -1, -1)) for x in stored]

    @property
    def static(self) -> bool:
        return self.count == self.hold and self.slack == 1

    @property
    def carried(self) -> dict[str, Tensor]:
        """The carried numbers by name `[R, H, C]`, to be updated in place."""
        return {name: x[:, :, : self.count, 0] for name, x in zip(self.names, self.slots[2:], strict=True)}

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> tuple[Tensor, Tensor]:
        new = [codec.encode(x) for codec, x in zip(self.codecs, (k_RHND, v_RHND), strict=True)]
        k, v = (codec.decode(x) for codec, x in zip(self.codecs, new, strict=True))
        new += [x.new_zeros(*k_RHND.shape[:3], 1) for x in self.slots[2:]]
        end = self.count + k_RHND.shape[2]
        for n, x in enumerate(new):
            if (
                end > self.slots[n].shape[2]
            ):  # a whole question, or a limit that rises; grows until the next drop
                self.slots[n] = torch.cat([self.slots[n][:, :, : self.count], x], dim=2)
            else:
                self.slots[n][:, :, self.count : end] = x
        self.count = end
        return k, v

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        k, v = (
            codec.decode(x[:, :, : self.count]) for codec, x in zip(self.codecs, self.slots[:2], strict=True)
        )
        no_tail = k.new_zeros(*k.shape[:2], 1, k.shape[3])
        return k, v, no_tail, no_tail, torch.zeros((), dtype=torch.long, device=k.device)

    def codes(self) -> None:
        """None: evictions while decoding need decoded keys."""

    def drop(self, gone_RHE: Tensor) -> None:
        """Drops slots `[R, H, E]`, E of every row and KV head."""
        rows, heads, dropped = gone_RHE.shape
        gone = torch.zeros(rows, heads, self.count, dtype=torch.bool, device=gone_RHE.device)
        gone.scatter_(2, gone_RHE, True)
        self.count -= dropped
        stay_RHC = gone.int().sort(dim=-1, stable=True).indices[..., : self.count]
        for n, x in enumerate(self.slots):
            moved = x.gather(2, stay_RHC[..., None].expand(-1, -1, -1, x.shape[3]))
            if x.shape[2] > self.hold + self.slack:
                self.slots[n] = self._with_room(moved)
            else:
                x[:, :, : self.count] = moved

    def bytes(self) -> tuple[int, int]:
        total, fixed = _bytes(self.codecs, self.slots[:2], self.count)
        carried = sum(x.element_size() * x.shape[1] * self.count for x in self.slots[2:])
        return total + carried, fixed + carried

    def _with_room(self, x: Tensor) -> Tensor:
        room = max(self.hold, self.count) + self.slack - x.shape[2]
        return torch.nn.functional.pad(x, (0, 0, 0, room)).contiguous()


def _bytes(codecs: tuple[Codec, Codec], stored: list[Tensor], count: int) -> tuple[int, int]:
    total = fixed = 0
    for codec, x in zip(codecs, stored, strict=True):
        size = x.shape[1] * count * x.shape[3] * x.element_size() + codec.scale_bytes
        total += size
        fixed += size if codec.fixed else 0
    return total, fixed
