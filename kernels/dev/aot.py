"""Compiles every Triton kernel for GPUs that need not be present, and reports the resources that it takes.

    python -m kvbench.kernels.dev.aot --targets sm_80,sm_90,sm_100,gfx942 --csv FILE [--check results/kernels/aot.csv]

Tables of different Triton versions are not comparable: their assemblers differ.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import triton
from torch import Tensor

from kvbench.config.files import write
from kvbench.kernels.dev.stub import CHIPS, compiling_for, resources
from kvbench.kernels.hsa_scores import triton_form as hsa
from kvbench.kernels.page_bounds import triton_form as bounds
from kvbench.kernels.pool import triton_form as pooling
from kvbench.kernels.quantise_kv import triton_form as quantise
from kvbench.kernels.quest_scores import triton_form as quest
from kvbench.kernels.sparse_decode import FP8
from kvbench.kernels.sparse_decode import triton_form as decode
from kvbench.kernels.top_k import triton_form as selection
from kvbench.kernels.window_scores import triton_form as window

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEY = ["case", "kernel", "target", "dtype"]
#: growth of the register count that is a regression
GROWTH = 1.1

# shapes of Llama-3.1-8B: 8 KV heads, 4 query heads each, 128 channels; no kernel's code depends on lengths, but long
# rows are shared among programs
HEADS, GROUP, DIM, LENGTH, LONG, ROOM = 8, 4, 128, 4096, 262144, 64


def cases() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(name, dtype, call) of every kernel to compile."""
    count = torch.tensor([3])
    for name, dtype in DTYPES.items():
        q = torch.empty(1, HEADS, GROUP, DIM, dtype=dtype)
        k = torch.empty(1, HEADS, LENGTH, DIM, dtype=dtype)
        tail = torch.empty(1, HEADS, ROOM, DIM, dtype=dtype)
        yield "dense", name, lambda q=q, k=k, tail=tail: _decode(q, k, tail)
        yield "indexed", name, lambda q=q, k=k, tail=tail: _decode(q, k, tail, _slots())
        if dtype != torch.float32:
            k8, tail8 = k.to(torch.uint8), tail.to(torch.uint8)
            for code in ("e4m3", "e5m2"):
                yield code, name, lambda q=q, k=k8, tail=tail8, code=code: _decode(q, k, tail, _slots(), code)
        yield (
            "window 32",
            name,
            lambda q=q, k=k: window.window_scores(
                q[0].flatten(0, 1)[:, None].expand(-1, 32, -1).contiguous(), k[0], 0.1
            ),
        )
        pages = LENGTH // 16
        edges = torch.empty(1, HEADS, 2 * DIM, pages, dtype=dtype)
        low, high = edges.transpose(-1, -2).split(DIM, -1)
        yield "pages of 16", name, lambda k=k, pages=pages: bounds.page_bounds(k, 16, pages)
        yield (
            "channel-major",
            name,
            lambda low=low, high=high, k=k: bounds.update_page_bounds(low, high, k[:, :, 0], count),
        )
        yield "channel-major", name, lambda q=q, edges=edges: hsa.hsa_scores(q, edges, 64, 16, count)
        yield "channel-major", name, lambda q=q, edges=edges: hsa.hsa_select(q, edges, 64, 16, count, 512)
        long = torch.empty(1, HEADS, 2 * DIM, LONG // 16, dtype=dtype)
        yield "channel-major, long", name, lambda q=q, long=long: hsa.hsa_select(q, long, 64, 16, count, 512)
        yield "channel-major", name, lambda q=q, low=low, high=high: quest.quest_scores(q, low, high)
        yield from _formats(name, k)
    scores = torch.empty(HEADS, LENGTH)
    yield "pages of 3", "fp32", lambda: selection.select_tokens(scores, 512, 3, count)
    yield "slots", "fp32", lambda: selection.top_k(scores, 512)
    yield "slots of a long row", "fp32", lambda: selection.top_k(torch.empty(HEADS, LONG), 512)
    for kind in ("max", "avg"):
        yield f"{kind} of 63", "fp32", lambda kind=kind: pooling.pool(scores, 63, kind, GROUP)
    yield "chunks of 10", "fp32", lambda: pooling.chunk_sums(scores, 10, 0)


def _formats(name: str, k: Tensor) -> Iterator[tuple[str, str, Callable[[], object]]]:
    codes, one = k.to(torch.uint8), torch.ones(HEADS)
    for code in quantise.LAYOUT:
        yield code, name, lambda code=code: quantise.to_fp8(k, one, code)
        yield code, name, lambda code=code: quantise.from_fp8(codes, one, code, k.dtype)
    for bits in (2, 4, 8):
        for axis, groups in ((2, "tokens"), (3, "channels")):
            case = f"int{bits}, groups of {groups}"
            packed = torch.empty(1, HEADS, LENGTH, DIM * bits // 8, dtype=torch.uint8)
            scale = torch.empty(1, HEADS, LENGTH * DIM // 32, 1, dtype=torch.float16)
            yield case, name, lambda bits=bits, axis=axis: quantise.pack(k, bits, 32, axis)
            yield (
                case,
                name,
                lambda bits=bits, axis=axis, packed=packed, scale=scale: quantise.unpack(
                    packed, scale, scale, bits, 32, axis, k.dtype
                ),
            )


def _slots() -> Tensor:
    return torch.empty(1, HEADS, 1024, dtype=torch.int32)


def _decode(
    q: Tensor, k: Tensor, tail: Tensor, index: Tensor | None = None, code: str | None = None
) -> object:
    fp8 = FP8(code, torch.ones(HEADS), torch.ones(HEADS)) if code else None
    return decode.sparse_decode(q, k, k, tail, tail, torch.tensor([3]), 0.1, index, fp8=fp8)


def table(targets: list[str], dtypes: list[str]) -> pd.DataFrame:
    """One row per kernel, case, target and dtype."""
    rows = []
    for target in targets:
        chip = CHIPS[target]
        for case, dtype, call in cases():
            if dtype not in dtypes:
                continue
            with compiling_for(chip) as compiled:
                call()
            for kernel in compiled:
                key = {"case": case, "kernel": kernel.metadata.name, "target": target, "dtype": dtype}
                rows.append(key | resources(kernel, chip) | {"triton": triton.__version__})
    frame = pd.DataFrame(rows).drop_duplicates(KEY).sort_values(KEY, ignore_index=True)
    return frame


def regressions(new: pd.DataFrame, old: pd.DataFrame) -> list[str]:
    """Regressions from a table of the same Triton version: spills, over 10 % more registers, missing kernels."""
    found = [f"{_name(row)}: {row['spills']} spills" for _, row in new[new["spills"] > 0].iterrows()]
    same = (
        old["triton"].isin(new["triton"])
        & old["target"].isin(new["target"])
        & old["dtype"].isin(new["dtype"])
    )
    both = old[same].merge(new, how="left", on=KEY, suffixes=("_old", ""))
    for _, row in both.iterrows():
        if pd.isna(row["registers"]):
            found.append(f"{_name(row)}: missing")
        elif row["registers"] > GROWTH * row["registers_old"]:
            found.append(f"{_name(row)}: {row['registers']:.0f} registers, {row['registers_old']} before")
    return found


def _name(row: pd.Series) -> str:
    return f"{row['kernel']} ({row['case']}, {row['target']}, {row['dtype']})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kvbench.kernels.dev.aot", description=__doc__)
    parser.add_argument("--targets", default=",".join(CHIPS), help=f"comma-separated, of {', '.join(CHIPS)}")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"comma-separated, of {', '.join(DTYPES)}")
    parser.add_argument("--csv", type=Path, help="file to write the table to")
    parser.add_argument("--check", type=Path, help="table to compare with; exit 1 on a regression")
    options = parser.parse_args(arguments)
    targets, dtypes = options.targets.split(","), options.dtypes.split(",")
    for name, given, known in (("--targets", targets, CHIPS), ("--dtypes", dtypes, DTYPES)):
        if unknown := set(given) - set(known):
            parser.error(f"{name}: {', '.join(sorted(unknown))}: not among {', '.join(known)}")
    frame = table(targets, dtypes)
    print(frame.to_string(index=False))
    if options.csv:
        write(options.csv, frame.to_csv(index=False))
    worse = regressions(frame, pd.read_csv(options.check)) if options.check else []
    print(*worse, sep="\n", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
