"""8-bit floating-point formats with a scale."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.kernels.quantise_kv import FP8, from_fp8, to_fp8
from kvbench.methods.base import Format
from kvbench.methods.registry import register
from kvbench.methods.storage import Codec


@dataclass(frozen=True, kw_only=True)
class Scaled(Codec):
    """fp8 codes, stored as bytes, times a fp32 scale `[1, H, 1, 1]` or a single one."""

    scale: Tensor
    code: str
    model: torch.dtype
    fixed: bool = True

    @property
    def fp8(self) -> tuple[str, Tensor]:
        return self.code, self.scale

    def encode(self, x: Tensor) -> Tensor:
        # codes have no infinity or NaN: a scale of NaN lets none pass unseen, without a wait for the device
        self.scale.add_((x - x).sum(dtype=torch.float32))
        return to_fp8(x, self.scale, self.code)

    def decode(self, stored: Tensor) -> Tensor:
        return from_fp8(stored, self.scale, self.code, self.model)


@dataclass(frozen=True, kw_only=True)
class _FP8(Format):
    code: ClassVar[str]
    bytes_formula = "1 byte per element, 4 per scale (K and V each have one per layer, or one per KV head)"

    scales: Literal["tensor", "head"] = "tensor"

    def codec(self, x_BHKD: Tensor) -> Scaled:
        # rows with a prefix each hold copies of the same one
        highest = x_BHKD[:1].abs().float()
        highest = highest.amax() if self.scales == "tensor" else highest.amax((0, 2, 3), keepdim=True)
        scale = (highest / torch.finfo(FP8[self.code]).max).clamp(min=torch.finfo(torch.float32).tiny)
        return Scaled(scale=scale, scale_bytes=4 * scale.numel(), code=self.code, model=x_BHKD.dtype)


@register("fp8_e4m3")
@dataclass(frozen=True, kw_only=True)
class FP8E4M3(_FP8):
    """Stores K and V as fp8 with 3 mantissa bits, with scales fixed at prefill so that the largest kept number just
    fits.

    `scales=tensor`: one scale for the keys of a layer and one for its values (where KV heads keep different numbers of
    tokens, each is a tensor of its own); `scales=head`: one per KV head. Appended tokens use the same scales and
    saturate. All tokens are read in the model's dtype, as NaN after a number that was not finite.
    """

    source = "OCP 8-bit floating point specification 1.0; torch.float8_e4m3fn, largest number 448"
    code = "e4m3"


@register("fp8_e5m2")
@dataclass(frozen=True, kw_only=True)
class FP8E5M2(_FP8):
    """Stores K and V as fp8 with 2 mantissa bits; scales, appended tokens and reading as in fp8_e4m3."""

    source = "OCP 8-bit floating point specification 1.0; torch.float8_e5m2, largest number 57344"
    code = "e5m2"
