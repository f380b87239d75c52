"""Triton's interpreter for tests on a machine without a GPU: corrected, watched and counted.

The stock interpreter keeps bf16 as its raw bits, computes with these, and truncates where a GPU rounds to
nearest. `corrected` fixes casts and `tl.dot`; the kernels compute everything else in fp32.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import numpy as np


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


@contextlib.contextmanager
def corrected() -> Iterator[None]:
    """Inside the context, bf16 and rounding are those of a GPU."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    stock_cast, stock_dot, stock_fp = builder.cast_impl, builder.create_dot, builder.create_fp_to_fp

    def widened(x):
        return handle(bf16_to_f32(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def cast(self, source, target):
        if source.dtype.scalar == target.scalar:
            return source
        if target.scalar == tl.bfloat16:
            return handle(f32_to_bf16(widened(source).data), tl.bfloat16)
        wide = widened(source)
        return wide if wide.dtype.scalar == target.scalar else stock_cast(self, wide, target)

    def fp_to_fp(self, source, target, rounding):
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return cast(self, source, target)
        return stock_fp(self, source, target, rounding)

    def dot(self, a, b, accumulator, *rest):
        # numpy has no fast product of fp16, and the product of two 16-bit numbers is exact in fp32
        a, b = (handle(widened(x).data.astype(np.float32), tl.float32) for x in (a, b))
        return stock_dot(self, a, b, accumulator, *rest)

    with (
        mock.patch.object(builder, "cast_impl", cast),
        mock.patch.object(builder, "create_fp_to_fp", fp_to_fp),
        mock.patch.object(builder, "create_dot", dot),
    ):
        yield


@dataclass
class Traffic:
    """Bytes that kernels loaded and stored on unmasked lanes, by tensor.

    Attributes:
        loaded: bytes by name.
        stored: bytes by name.
        launches: kernels started.
    """

    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    launches: int = 0


@contextlib.contextmanager
def watched(**tensors) -> Iterator[Traffic]:
    """Counts bytes per tensor; other tensors that a kernel was given count as "scratch".

    Raises:
        IndexError: an access outside the tensors that the kernel was given.
        RuntimeError: two programs, or two lanes of one, store to the same address.
    """
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    stock_load, stock_store, stock_init = (
        builder.create_masked_load, builder.create_masked_store, executor._init_args_hst,
    )  # fmt: skip
    traffic = Traffic()
    state: dict = {"ranges": {}, "written": set()}

    def extent(x) -> tuple[int, int]:
        storage = x.untyped_storage()
        return storage.data_ptr(), storage.data_ptr() + storage.nbytes()

    names = {extent(x): name for name, x in tensors.items()}

    def init(self, args, kwargs):
        found = stock_init(self, args, kwargs)
        ranges = {extent(x) for x in (*args, *kwargs.values()) if hasattr(x, "untyped_storage")}
        state["ranges"] = {span: names.get(span, "scratch") for span in ranges}
        state["written"] = set()
        traffic.launches += 1
        return found

    def count(pointers, mask, totals: dict[str, int]) -> np.ndarray:
        where, on = np.broadcast_arrays(pointers.data, mask.data)
        used = where[on]
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        left = used.size
        for (low, high), name in state["ranges"].items():
            inside = int(((used >= low) & (used + np.uint64(size) <= high)).sum())
            totals[name] = totals.get(name, 0) + inside * size
            left -= inside
        if left:
            raise IndexError(f"{left} of {used.size} lanes lie outside every tensor")
        return used

    def load(self, pointers, mask, *rest):
        count(pointers, mask, traffic.loaded)
        return stock_load(self, pointers, mask, *rest)

    def store(self, pointers, value, mask, *rest):
        used = count(pointers, mask, traffic.stored).tolist()
        if len(set(used)) < len(used) or state["written"].intersection(used):
            raise RuntimeError("two lanes store to the same address")
        state["written"].update(used)
        return stock_store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(executor, "_init_args_hst", init),
        mock.patch.object(builder, "create_masked_load", load),
        mock.patch.object(builder, "create_masked_store", store),
    ):
        yield traffic


@contextlib.contextmanager
def histograms() -> Iterator[list[dict[tuple[int, ...], int]]]:
    """Count the histograms of every program inside the context: one dictionary per launch that takes any."""
    from triton.runtime import interpreter

    launches: list[dict[tuple[int, ...], int]] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    stock, launch = builder.create_histogram, executor.__call__

    def counting(self, *args):
        launches[-1][self.grid_idx] = launches[-1].get(self.grid_idx, 0) + 1
        return stock(self, *args)

    def launching(self, *args, **kwargs):
        launches.append({})
        result = launch(self, *args, **kwargs)
        if not launches[-1]:
            launches.pop()
        return result

    with (
        mock.patch.object(builder, "create_histogram", counting),
        mock.patch.object(executor, "__call__", launching),
    ):
        yield launches
