"""What the comparisons with official codes share: loading a clone's modules, drawing tensors, counting mismatches."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

#: a comparison yields one entry per thing compared: None if equal, else what differs
Compare = Callable[[Path, random.Random], Iterator[str | None]]


def main(compare: Compare, doc: str | None, cases: int = 200) -> int:
    """Run a comparison over seeded cases; print how many things were compared and how many differ.

    Args:
        compare: yields for one case what was compared.
        doc: the script's docstring, for --help.
        cases: default number of cases.

    Returns:
        1 if anything differs or nothing was compared, else 0.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="path of the cloned repository")
    parser.add_argument("--cases", type=int, default=cases, help=f"default {cases}")
    args = parser.parse_args()
    compared, wrong = 0, []
    for seed in range(args.cases):
        torch.manual_seed(seed)
        for found in compare(args.clone, random.Random(seed)):
            compared += 1
            if found is not None:
                wrong.append(f"case {seed}: {found}")
    for line in wrong[:5]:
        print(f"  {line}")
    print(f"{Path(sys.argv[0]).stem}: {compared} compared, {len(wrong)} mismatches")
    return int(bool(wrong) or not compared)


class _Stub(types.ModuleType):
    """A module that has every name; classes may inherit from what it holds."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


def load(clone: Path, path: str, name: str | None = None, **stubs: types.ModuleType) -> Any:
    """Import one file of a clone; what it imports and this environment lacks becomes an empty stand-in.

    Args:
        clone: the repository.
        path: of the file inside it.
        name: the module's dotted name, where it imports siblings; its folder must be importable then.
        **stubs: stand-ins that do something, by name with `__` for a dot.
    """
    for stub, module in stubs.items():
        sys.modules[stub.replace("__", ".")] = module
    file = clone / path
    name = name or f"official_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    while True:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            sys.exit(f"{file}: there is no such file; give the path of a clone of the official repository")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            return module
        except ModuleNotFoundError as error:
            sys.modules[str(error.name)] = _Stub(str(error.name))
        except ImportError as error:
            # a name that the installed version of a library no longer has
            missing = str(error).partition("cannot import name '")[2].partition("'")[0]
            if not missing or error.name is None:
                raise
            setattr(sys.modules[error.name], missing, type(missing, (), {}))


@contextmanager
def ties_to_the_earlier() -> Iterator[None]:
    """While it lasts, torch's topk and sort break ties by position, as kvbench does; theirs is arbitrary.

    Max pooling makes neighbours tie, so that the last token kept would be left to chance.
    """
    topk, method, sort = torch.topk, Tensor.topk, Tensor.sort

    def stable_sort(x: Tensor, dim: int = -1, descending: bool = False, **_: Any) -> Any:
        return sort(x, stable=True, dim=dim, descending=descending)

    def stable_topk(x: Tensor, k: int, dim: int = -1, **_: Any) -> Any:
        values, indices = sort(x, stable=True, dim=dim, descending=True)
        return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))

    torch.topk = Tensor.topk = stable_topk
    Tensor.sort = stable_sort
    try:
        yield
    finally:
        torch.topk, Tensor.topk, Tensor.sort = topk, method, sort


def draw(
    pick: random.Random, query_heads: int, heads: int, length: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random fp32 queries, keys and values of a batch of one `[1, heads, T, D]`; queries share a direction."""
    q, k, v = (torch.randn(1, n, length, dim) for n in (query_heads, heads, heads))
    q = q * pick.choice([0.5, 1.0, 2.0]) + torch.randn(1, query_heads, 1, dim)
    return q, k, v


def expanded(x: Tensor, group: int) -> Tensor:
    """Keys or values repeated for every query head of a group."""
    return x.repeat_interleave(group, dim=1)


def positions(kept_KD: Tensor, all_TD: Tensor) -> list[int]:
    """Ascending positions of rows that are copies of rows."""
    at = {row.numpy().tobytes(): n for n, row in enumerate(all_TD.contiguous())}
    return sorted(at[row.numpy().tobytes()] for row in kept_KD.contiguous())


def difference(what: str, theirs: Sequence[Any], ours: Sequence[Any]) -> str | None:
    """None if equal, else a short description."""
    theirs, ours = list(theirs), list(ours)
    if theirs == ours:
        return None
    if len(theirs) < 8:
        return f"{what}: {theirs} officially, {ours} here"
    differ = len(set(theirs) ^ set(ours))
    return f"{what}: {len(theirs)} officially, {len(ours)} here, {differ} differ"
