"""Decode steps in a CUDA graph: a replay on changed inputs equals the eager step."""

from collections.abc import Callable

import pytest
import torch
from kvbench_testing.recording import Graph
from kvbench_testing.triton import needs_triton
from torch import Tensor

from kvbench.kernels.forms import using
from kvbench.kernels.hsa_decode import hsa_decode
from kvbench.kernels.page_bounds import page_bounds, update_page_bounds
from kvbench.kernels.quest_scores import quest_scores
from kvbench.kernels.sparse_decode import sparse_decode
from kvbench.kernels.top_k import select_tokens, top_k

HEADS, GROUP, DIM, KEPT, ROOM, PAGE, READ = 2, 4, 64, 331, 6, 3, 40
PAGES = -(-(KEPT + ROOM) // PAGE)


class Cache:
    """Static tensors of a decode step: two rows that share a prefix."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

        self.k, self.v = draw(1, HEADS, KEPT, DIM), draw(1, HEADS, KEPT, DIM)
        self.k_tail, self.v_tail = (torch.zeros(2, HEADS, ROOM, DIM).to(self.k) for _ in range(2))
        self.tail = torch.zeros(1, dtype=torch.long, device=device)
        low, high = page_bounds(self.k.expand(2, -1, -1, -1), PAGE, PAGES)
        self.bounds = torch.cat([low, high], -1).transpose(-1, -2).contiguous()
        # what changes between steps
        self.q, self.new_k, self.new_v = draw(2, HEADS, GROUP, DIM), draw(2, HEADS, DIM), draw(2, HEADS, DIM)

    def append(self) -> None:
        """Appends the new token to tail and bounds."""
        low, high = self.bounds.transpose(-1, -2).split(DIM, -1)
        update_page_bounds(low, high, self.new_k, (self.tail + KEPT) // PAGE)
        self.k_tail.index_copy_(2, self.tail, self.new_k[:, :, None])
        self.v_tail.index_copy_(2, self.tail, self.new_v[:, :, None])
        self.tail.add_(1)

    def state(self) -> list[Tensor]:
        """Tensors that a step changes."""
        return [self.bounds, self.k_tail, self.v_tail, self.tail]

    def next_inputs(self, seed: int) -> None:
        """New contents in the same memory."""
        generator = torch.Generator().manual_seed(seed)
        for x in (self.q, self.new_k, self.new_v):
            x.copy_(torch.randn(x.shape, generator=generator))


def dense(c: Cache) -> tuple[Tensor, ...]:
    c.append()
    return sparse_decode(c.q, c.k, c.v, c.k_tail, c.v_tail, c.tail, 0.125)


def rocketkv(c: Cache) -> tuple[Tensor, ...]:
    c.append()
    return hsa_decode(
        c.q, c.k, c.v, c.k_tail, c.v_tail, c.tail, c.bounds, 20, PAGE, READ, 0.125
    )  # fmt: skip


def quest(c: Cache) -> tuple[Tensor, ...]:
    c.append()
    low, high = c.bounds.transpose(-1, -2).split(DIM, -1)
    scores = quest_scores(c.q, low, high).sum(2)
    # a page without tokens has bounds of infinities
    used = torch.arange(PAGES, device=scores.device) < (c.tail + KEPT + PAGE - 1) // PAGE
    scores = torch.where(used, scores, -torch.inf)
    index = select_tokens(scores, READ, PAGE, c.tail + KEPT)
    out, lse = sparse_decode(c.q, c.k, c.v, c.k_tail, c.v_tail, c.tail, 0.125, index)
    return out, lse, index, top_k(scores, 5)


STEPS: list[Callable[[Cache], tuple[Tensor, ...]]] = [dense, rocketkv, quest]


def eagerly(step: Callable[[Cache], tuple[Tensor, ...]], device: str, steps: int) -> list[list[Tensor]]:
    """Results of every step, from an empty tail."""
    cache, results = Cache(device), []
    for n in range(steps):
        cache.next_inputs(n)
        results.append([x.clone() for x in step(cache)])
    return results


@pytest.mark.parametrize("step", STEPS)
def test_every_step_sees_what_was_appended(step):
    results = eagerly(step, "cpu", 3)
    for n, (out, lse, *chosen) in enumerate(results):
        assert out.shape == (2, HEADS, GROUP, DIM) and lse.shape == (2, HEADS, GROUP)
        assert out.isfinite().all() and not torch.equal(out, results[n - 1][0])
        for index in chosen[:1]:
            assert index.shape == (2, HEADS, READ) and int(index.max()) <= KEPT + n
    # an appended key that the query looks for is found, in the bounds too
    cache = Cache("cpu")
    cache.new_k.copy_(cache.q.sum(2))
    out, _, *chosen = step(cache)
    assert all((index == KEPT).any(-1).all() for index in chosen[:1])
    assert (out - cache.new_v[:, :, None]).abs().mean() < (out - cache.v.mean(2)[:, :, None]).abs().mean()


def check_replays(cache: Cache, record: Callable[[], tuple], expected: list[list[Tensor]]) -> None:
    """Records a step, and replays it on the inputs of all steps from an empty tail."""
    start = [x.clone() for x in cache.state()]
    results, replay = record()
    # undo warm-up and recording
    for x, before in zip(cache.state(), start, strict=True):
        x.copy_(before)
    for n, wanted in enumerate(expected):
        cache.next_inputs(n)
        replay()
        for ours, theirs in zip(results, wanted, strict=True):
            assert torch.equal(ours, theirs), n


@pytest.mark.parametrize("step", STEPS)
def test_a_replayed_recording_gives_what_eager_steps_give(step):
    with using("portable"):
        cache, recording = Cache("cpu"), Graph()

        def record():
            with recording:
                return step(cache), recording.replay

        check_replays(cache, record, eagerly(step, "cpu", ROOM))


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("step", STEPS)
def test_a_replayed_graph_gives_what_eager_steps_give(step):
    cache = Cache("cuda")

    def record():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(cache)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step(cache)
        return results, graph.replay

    check_replays(cache, record, eagerly(step, "cuda", ROOM))
