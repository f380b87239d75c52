"""Feeds cells tokens that are known beforehand, many steps of many cells in one matrix product.

Linear layers take the tokens of all steps and cells as the rows of one matrix; attention and the per-step state of
methods go step by step inside each layer (`packed.py`), so that every row computes what it would compute one step at
a time, whatever its method does while decoding. Passes are filled up with padding to sizes that give the same numbers
(`sizes.py`): those of a row depend neither on the other rows nor on how the tokens are divided into passes.

    rows = Rows(model, snapshot, [cell, None], room=64)       # None is dense
    rows.feed({0: answer, 1: answer}, see)                    # see(logits, rows, steps) after each pass
    rows.rewind({0: 5})                                       # as it was after 5 tokens, for any method
    token_log_probs(rows, {0: [last, *choice]})               # log p of each token of a choice
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.engine.compress import lane_maker
from kvbench.engine.failures import Failure, out_of_memory
from kvbench.engine.held import Held
from kvbench.engine.lanes import Lane, plain_lane
from kvbench.engine.packed import PackedCache, PackedLayer, Pass, Question
from kvbench.engine.prefill import Snapshot
from kvbench.engine.sizes import pass_sizes
from kvbench.engine.stored import StoredLane
from kvbench.methods.base import Eviction, Kept, Resolved

#: most rows of a pass: the same for every run, as last digits depend on it
PASS_ROWS = 128
#: what the caller does with the fp32 logits `[rows of the pass, vocabulary]` after the tokens of a pass: the row of the
#: cache that each of the first ones belongs to, and its number among the tokens fed to that row; the rest is padding
See = Callable[[Tensor, Sequence[int], Sequence[int]], None]


class Rows:
    """Cells of one prompt, one row each, with the tokens that they were fed.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled prompt.
        cells: methods with their budgets; None for dense.
        room: tokens that may be fed to a row, without the question.
        question: tokens fed to every row first, which reads everything it kept; not counted as steps.
        scores: by layer, scores of evictions so far; a dict per layer that is added to, None to compute all.
        failed: is given the failures to compress, by index of the cell, whose rows stay empty; None to raise the first.

    Raises:
        AuditError: an eviction kept tokens that it may not keep.
        NotFiniteError: an eviction's scores are not finite.
    """

    def __init__(
        self, model: PreTrainedModel, snapshot: Snapshot, cells: Sequence[Resolved | None], room: int,
        question: Sequence[int] = (), scores: Sequence[dict[Eviction, Any]] | None = None,
        failed: dict[int, Failure] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.question = model, list(question)
        #: of passes, ascending, all of which give the same numbers
        self.sizes = pass_sizes(model, PASS_ROWS)
        self.fed: list[list[int]] = [[] for _ in cells]
        # of the rows that cannot take back what they appended: what makes their lanes anew, by layer
        self._makers: dict[int, list[Callable[[], list[Lane | StoredLane]]]] = {}
        kept_so_far: dict[tuple[Any, ...], list[Kept]] = {}
        layers, total = [], room + len(question)
        for number, layer in enumerate(snapshot.in_use()):
            known = {} if scores is None else scores[number]
            prepared: dict[tuple[Any, ...], Any] = {}
            lanes: list[Lane | StoredLane] = []
            for row, cell in enumerate(cells):
                place = slice(row, row + 1)
                if cell is None:
                    lanes.append(plain_lane(layer, place))
                elif failed is None or row not in failed:
                    try:
                        maker = lane_maker(layer, cell, place, total, known, kept_so_far, prepared=prepared)
                        lanes += maker()
                    except Exception as error:
                        # what does not fit is all cells together
                        if failed is None or out_of_memory(error):
                            raise
                        failed[row] = Failure.of(error, "compress")
                        continue
                    self._makers.setdefault(row, []).append(maker)
            use = partial(snapshot.use, number)
            layers.append(PackedLayer(lanes, len(cells), layer.group, layer.k_HTD, layer.heads, total, use))
        self.cache = PackedCache(layers, snapshot.length)
        kept_back = {row for row in self._makers if not self._rewinds(row)}
        self._makers = {row: makers for row, makers in self._makers.items() if row in kept_back}
        #: what each row holds after compression
        self.resident = [
            None if failed and row in failed else self.cache.resident(row) for row in range(len(cells))
        ]
        if question:
            self._ask([row for row in range(len(cells)) if not (failed and row in failed)])

    @torch.inference_mode()
    def feed(
        self, tokens: Mapping[int, Sequence[int]], see: See | None = None, sizes: Sequence[int] | None = None
    ) -> None:
        """Feed each row its next tokens; each is a decode step.

        Args:
            tokens: by row.
            see: called after each pass; None to compute no logits.
            sizes: rows that a pass may have, ascending; None for those of known tokens. Last digits depend on it.
        """
        sizes = sizes or self.sizes
        most = sizes[-1]
        todo = [
            (row, len(self.fed[row]) + n, token)
            for row, given in tokens.items()
            for n, token in enumerate(given)
        ]
        for low in range(0, len(todo), most):
            rows, steps, given = zip(*todo[low : low + most], strict=True)
            size = next(size for size in sizes if size >= len(rows))
            logits = self._run(rows, steps, given, size, see is not None)
            for row, token in zip(rows, given, strict=True):
                self.fed[row].append(token)
            if see is not None:
                assert logits is not None
                see(logits, rows, steps)

    def rewind(self, counts: Mapping[int, int]) -> None:
        """Return rows to their state after the first of the tokens that they were fed.

        Rows that evict while decoding, or store their tokens in a lossy format, are made anew and fed again.

        Args:
            counts: by row, the number of tokens that remain.
        """
        again: dict[int, list[int]] = {}
        for row, count in counts.items():
            assert 0 <= count <= len(self.fed[row])
            kept = self.fed[row][:count]
            if count == len(self.fed[row]):
                continue
            if self._rewinds(row):
                self.fed[row] = kept
                for layer in self.cache.packed_layers:
                    layer.rewind(row, len(self.question) + count)
            else:
                self.fed[row], again[row] = [], kept
                for layer, maker in zip(self.cache.packed_layers, self._makers[row], strict=True):
                    layer.use()
                    layer.rewind(row, 0, maker())
        if again:
            if self.question:
                self._ask(list(again))
            self.feed(again)

    def bytes_read(self, row: int) -> tuple[float, float]:
        """Bytes of K, V and auxiliary data that a row read per token it was fed: as measured, and with a bf16 model."""
        return self.cache.bytes_read(row, len(self.fed[row]))

    def held(self, row: int) -> Held | None:
        """What a row held over the tokens that it was fed; None before the first."""
        return self.cache.held(row, len(self.fed[row]))

    def finite(self, row: int, count: int) -> list[bool]:
        """Whether keys and values of the question's tokens, then of a row's first `count`, are finite."""
        return self.cache.finite_tokens(row, len(self.question) + count).tolist()

    def _rewinds(self, row: int) -> bool:
        return all(layer.rewinds(row) for layer in self.cache.packed_layers)

    def _run(
        self, rows: Sequence[int], steps: Sequence[int], tokens: Sequence[int], size: int, logits: bool
    ) -> Tensor | None:
        before, device = len(self.question), self.model.device
        self.cache.begin(Pass(rows, [before + step for step in steps], device))
        padding = [0] * (size - len(rows))
        first = self.cache.compressed + before
        ids = torch.tensor([*tokens, *padding], device=device)[:, None]
        position = torch.tensor([first + step for step in (*steps, *padding)], device=device)[:, None]
        call = {"input_ids": ids, "position_ids": position, "past_key_values": self.cache, "use_cache": True}
        if not logits:
            self.model.base_model(**call)
            return None
        return self.model(**call).logits[:, -1].float()

    @torch.inference_mode()
    def _ask(self, rows: Sequence[int]) -> None:
        """Feed the question to rows that were fed nothing."""
        count, device = len(self.question), self.model.device
        together = max(1, PASS_ROWS // count)
        ids = torch.tensor(self.question, device=device).expand(together, -1)
        start = self.cache.compressed
        position = torch.arange(start, start + count, device=device).expand(together, -1)
        for low in range(0, len(rows), together):
            self.cache.begin(Question(rows[low : low + together], count))
            self.model.base_model(
                input_ids=ids, position_ids=position, past_key_values=self.cache, use_cache=True
            )


def token_log_probs(rows: Rows, tokens: Mapping[int, Sequence[int]]) -> dict[int, list[float]]:
    """Natural-log probability of tokens given all before them.

    Args:
        rows: where they are fed, all but the last one.
        tokens: by row: the last token that the row has not been fed yet, then those that are judged.

    Returns:
        By row, one number for each token but the first.
    """
    start = {row: len(rows.fed[row]) for row in tokens}
    found: dict[int, list[float]] = {row: [] for row in tokens}

    def see(logits_RV: Tensor, fed: Sequence[int], steps: Sequence[int]) -> None:
        following = [tokens[row][step - start[row] + 1] for row, step in zip(fed, steps, strict=True)]
        targets = torch.tensor(following + [0] * (len(logits_RV) - len(fed)), device=logits_RV.device)
        log_p = logits_RV.log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()
        for row, value in zip(fed, log_p, strict=False):
            found[row].append(value)

    rows.feed({row: given[:-1] for row, given in tokens.items()}, see)
    return found
