"""Sizes, kept tokens, decode steps and turns of RocketKV: github.com/NVlabs/RocketKV, its accuracy code.

    python tests/parity/check_rocketkv.py PATH_OF_CLONE

Compared are the sizes that it derives from a budget, the tokens that its SnapKV keeps, the tokens that its hybrid
sparse attention chooses in each decode step with the output, and the tokens that RocketKV-MT keeps in a later turn.
Tokens of a page tie: of the page that is cut, any may be chosen.
"""

import random
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import difference, draw, load, main, positions, ties_to_the_earlier
from torch import Tensor

import kvbench
from kvbench.engine.turns import prompt_parts
from kvbench.kernels.sparse_decode import sparse_decode
from kvbench.methods import Budget, LayerSnapshot, Quota, Resolved, Shape, build

ROOT = "pipeline/inf_stream_llm"
STEPS, DIM = 4, 64


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Causal attention `[B, T, H, D]`, the queries being the last tokens."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


class Recorder:
    """torch, with the indices of every top-k that is called on it."""

    def __init__(self) -> None:
        self.chosen: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def topk(self, x: Tensor, k: int, dim: int = -1) -> Any:
        found = torch.topk(x, k, dim=dim)
        self.chosen.append(found.indices)
        return found


class Official:
    """One attention layer of the official code."""

    def __init__(self, clone: Path, kind: str, query_heads: int, heads: int, **settings: Any) -> None:
        flash = types.ModuleType("flash_attn.flash_attn_interface")
        flash.flash_attn_func = flash_attention
        names = {"flash_attn": types.ModuleType("flash_attn"), "flash_attn__flash_attn_interface": flash}
        for name in ("inf_llm", "inf_llm.attention"):
            sys.modules.setdefault(name, types.ModuleType(name))
        load(clone, f"{ROOT}/inf_llm/attention/utils.py", "inf_llm.attention.utils")
        self.module = load(clone, f"{ROOT}/inf_llm/attention/{kind}.py", f"inf_llm.attention.{kind}", **names)
        self.module.torch = self.recorder = Recorder()
        self.module.tmp_key_value = []
        self.query_heads, self.heads = query_heads, heads
        self.forward = getattr(self.module, f"{kind}_forward")(True, kernel_size=63, **settings)
        self.layer = types.SimpleNamespace(layer_idx=0, config=types.SimpleNamespace(num_hidden_layers=1))
        self.cache: Any = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Feed post-RoPE queries, keys and values of some tokens; the output `[1, Q, T, D]`."""
        self.recorder.chosen.clear()
        packed = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1)
        ends = [
            n * DIM
            for n in (self.query_heads, self.query_heads + self.heads, self.query_heads + 2 * self.heads)
        ]
        projections = [lambda x, a=a, b=b: x[..., a:b] for a, b in zip([0, *ends], ends, strict=False)]
        out, self.cache = self.forward(
            self.layer, packed, packed, lambda q, k, seq_len=None: (q, k), True, self.cache, *projections, lambda x: x,
            DIM, self.query_heads, self.heads,
        )  # fmt: skip
        return out.unflatten(2, (self.query_heads, DIM)).transpose(1, 2)

    @property
    def chosen(self) -> Tensor:
        """Tokens of the last decode step `[H, N]`."""
        return self.recorder.chosen[-1][0, :, 0, 0]


def sizes(
    clone: Path, method: str, prompt: int, new: int, budget: int, turns: bool = False
) -> dict[str, Any]:
    """What the official code derives from a budget."""
    official = load(clone, f"{ROOT}/infllm_utils.py")
    official.patch_hf = lambda model, *args, **kwargs: model
    settings: dict[str, Any] = {"method": method, "token_budget": budget}
    config = types.SimpleNamespace(num_attention_heads=8, num_key_value_heads=2)
    official.compress({}, settings, prompt + new, new, types.SimpleNamespace(config=config), is_scbench=turns)
    return settings


def resolve(method: str, prompt: int, new: int, budget: int, **params: Any) -> Resolved:
    """The same budget here, for a prompt whose last token is a decode step, as officially."""
    built = build({"method": method, "floor_2m": True, **params})
    (part,) = prompt_parts(list(range(prompt)), prompt, "query_aware", "compressed", None, [built])
    return part.resolve(built, Budget(tokens=budget), Shape(prompt - 1, new, 1, DIM))


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    for _ in range(100):
        yield from budget_settings(clone, pick)
    yield from one_turn(clone, pick)
    yield from later_turn(clone, pick)


def budget_settings(clone: Path, pick: random.Random) -> Iterator[str | None]:
    prompt, new, budget = pick.randrange(100, 130_000), pick.randrange(1, 513), pick.randrange(16, 16_385)
    name, split = pick.choice([("rocket", "adaptive"), ("rocket_r0.3", 0.3), ("rocket_r0.7", 0.7)])
    theirs = sizes(clone, name, prompt, new, budget)
    ours = resolve("rocketkv", prompt, new, budget, split=split)
    # covered budgets are dense here; the official code asserts that the window is kept
    if ours.covers_prompt or theirs["prompt_budget"] < 32:
        return
    keep = min(theirs["prompt_budget"], prompt - 1)
    found = (ours.rules[0].keep or prompt - 1, ours.rules[0].read)
    yield difference(f"S={prompt}+{new}, t={budget}", (keep, theirs["topk"]), found)


def one_turn(clone: Path, pick: random.Random) -> Iterator[str | None]:
    query_heads, heads = pick.choice([(4, 4), (8, 2), (6, 2)])
    prompt, new, budget = pick.randrange(200, 900), pick.randrange(8, 40), pick.choice([32, 64, 128])
    theirs, ours = sizes(clone, "rocket", prompt, new, budget), resolve("rocketkv", prompt, new, budget)
    if ours.covers_prompt or theirs["prompt_budget"] < 32:
        return
    names = ("topk", "compression_ratio", "prompt_budget", "window_size")
    official = Official(clone, "rocket", query_heads, heads, **{name: theirs[name] for name in names})
    q, k, v = draw(pick, query_heads, heads, prompt - 1 + STEPS, DIM)
    with ties_to_the_earlier():
        official(*(x[:, :, : prompt - 1] for x in (q, k, v)))
    (kept,) = kvbench.keep(
        "rocketkv",
        *(x[:, :, : prompt - 1] for x in (q, k, v)),
        tokens=budget,
        max_new_tokens=new,
        floor_2m=True,
    )
    keep = ours.rules[0].keep or prompt - 1
    for head in range(heads):
        at = positions(official.cache[0][0, head], k[0, head])
        # keep resolves without the last token of the prompt, so that it may be one short
        if len(kept[head]) == keep:
            yield difference(f"kept, head {head}", at, kept[head].tolist())
    yield from decode_steps(official, ours, q, k, v, prompt - 1)


def decode_steps(
    official: Official, cell: Resolved, q: Tensor, k: Tensor, v: Tensor, start: int
) -> Iterator[str | None]:
    """Feed one token after the other; compare the tokens chosen and the output."""
    selection, read = cell.selection, cell.rules[0].read
    held = [x.clone() for x in official.cache]
    for at in range(start, start + STEPS):
        held = [torch.cat([x, y[:, :, at : at + 1]], 2) for x, y in zip(held, (k, v), strict=True)]
        theirs = official(*(x[:, :, at : at + 1] for x in (q, k, v)))[:, :, 0]
        if read is None:
            continue
        length, empty = torch.tensor(held[0].shape[2]), held[0][:, :, :0]
        now = q[:, :, at].unflatten(1, (official.heads, -1))
        state = selection.prepare(*held, 1, 0)
        slots = selection.select(now, held[0], empty, length, state, read, DIM**-0.5)
        whole = True
        for head in range(official.heads):
            pages = [
                Counter(n // selection.page for n in chosen.tolist() if n >= 0)
                for chosen in (official.chosen[head], slots[0, head])
            ]
            whole &= set(official.chosen[head].tolist()) == set(slots[0, head].tolist())
            yield difference(
                f"step {at - start}, head {head}", sorted(pages[0].items()), sorted(pages[1].items())
            )
        if whole:
            none = torch.zeros(1, official.heads, 1, DIM)
            out, _ = sparse_decode(now, *held, none, none, torch.tensor(0), DIM**-0.5, slots)
            error = float((out.flatten(1, 2) - theirs).abs().max())
            yield None if error < 1e-4 else f"step {at - start}: output off by {error:.2g}"


def later_turn(clone: Path, pick: random.Random) -> Iterator[str | None]:
    query_heads, heads = pick.choice([(4, 4), (8, 2), (6, 2)])
    prompt, new, budget = pick.randrange(300, 900), pick.randrange(8, 40), pick.choice([64, 128])
    theirs = sizes(clone, "rocket_mt", prompt, new, budget, turns=True)
    if theirs["prompt_budget"] < 128 or theirs["prompt_budget"] >= prompt:
        return
    names = ("topk", "compression_ratio", "prompt_budget", "window_size")
    official = Official(clone, "rocket_mt", query_heads, heads, **{name: theirs[name] for name in names})
    turn = pick.choice([2, 3, 20, 127, 128, 129, 200])
    total = prompt + STEPS + turn
    q, k, v = draw(pick, query_heads, heads, total, DIM)
    spans = [(0, prompt), *((n, n + 1) for n in range(prompt, prompt + STEPS)), (prompt + STEPS, total)]
    for start, end in spans:
        with ties_to_the_earlier():
            official(*(x[:, :, start:end] for x in (q, k, v)))
    built = build({"method": "rocketkv_mt", "floor_2m": True})
    (part,) = prompt_parts(list(range(total)), total, "query_aware", "dense", prompt, [built], prompt + STEPS)
    cell = part.resolve(built, Budget(tokens=budget), Shape(total, new, 1, DIM))
    layer = LayerSnapshot(k[0], v[0], q[0], 0, 1, DIM**-0.5, turn=part.turn)
    tokens = cell.rules[0].keep
    assert tokens is not None
    kept = cell.eviction.keep(layer, cell.eviction.scores(layer), Quota(tokens))
    side = official.module.tmp_key_value[0][0]
    for head in range(heads):
        found = kept.positions[head].tolist()
        yield difference(f"turn of {turn}, head {head}", positions(side[0, head], k[0, head]), found)


if __name__ == "__main__":
    sys.exit(main(compare, __doc__, cases=100))
