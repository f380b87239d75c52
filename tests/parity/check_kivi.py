"""What KIVI's groups of integers are read as: github.com/jy-yuan/KIVI, quant/new_pack.py.

    python tests/parity/check_kivi.py PATH_OF_CLONE

The official functions compute in the dtype of the data, here fp32, and scale and minimum are rounded to fp16 when
stored. A number differs only if it is off by more than that rounding explains.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from common import load, main
from torch import Tensor

from kvbench.kernels.quantise_kv import pack, unpack


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "quant/new_pack.py")
    bits, group, dim = pick.choice([2, 4, 8]), pick.choice([32, 64]), pick.choice([64, 128])
    x = torch.randn(1, 2, group * pick.randrange(1, 5), dim) * pick.choice([0.1, 1.0, 20.0])
    for axis, name in ((2, "k"), (3, "v")):
        stored = getattr(official, f"quant_and_pack_{name}cache")(x, group, bits)
        theirs = getattr(official, f"unpack_and_dequant_{name}cache")(*stored, group, bits).float()
        ours = unpack(*pack(x, bits, group, axis), bits, group, axis, torch.float32)
        yield _off(theirs, ours, x, bits, group, axis, name)


def _off(theirs: Tensor, ours: Tensor, x: Tensor, bits: int, group: int, axis: int, name: str) -> str | None:
    groups = x.unflatten(axis, (-1, group))
    width = groups.amax(axis + 1, keepdim=True) - groups.amin(axis + 1, keepdim=True)
    largest = groups.abs().amax(axis + 1, keepdim=True)
    step = (width / (2**bits - 1)).expand_as(groups).flatten(axis, axis + 1)
    rounding = (2**-10 * (width + largest)).expand_as(groups).flatten(axis, axis + 1)
    # at a tie between two codes the rounding decides: one step
    far = (theirs - ours).abs() > rounding
    tie = ((theirs - x).abs() - (ours - x).abs()).abs() <= rounding
    wrong = far & ~(tie & ((theirs - ours).abs() <= step + rounding))
    return (
        f"{name}, {bits} bits: {int(wrong.sum())} of {wrong.numel()} numbers differ"
        if bool(wrong.any())
        else None
    )


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
