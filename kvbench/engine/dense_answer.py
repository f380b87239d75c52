"""Dense's answer: decoded alone, before any cell, and what its decode steps attend to.

Steps of one row draft it, and a pass as cells are fed in says whether the draft holds. Its first token
that does not is replaced, and the draft goes on behind it. A matrix product of another size may decide a near tie in
another way; so dense, and a cell whose cache equals dense's, are judged by the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.numbers import NotFiniteError
from kvbench.engine.finite import total
from kvbench.engine.forced import PASS_ROWS, Rows
from kvbench.engine.prefill import Snapshot
from kvbench.engine.results import Decoded, DecodeOptions
from kvbench.engine.rope import check_rope
from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods.base import LayerSnapshot

#: what the caller does with the fp32 logits `[rows of the pass, vocabulary]` of the answer's next steps: how many of
#: the first rows are steps, the rest is of no use
SeeSteps = Callable[[Tensor, int], None]


@torch.inference_mode()
def decode_dense_answer(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, options: DecodeOptions
) -> None:
    """Decode dense's answer, and set `answer_sum_QT` of every layer to what its decode steps attend to.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled prompt.
        question: tokens between the snapshot and the last prompt token; not counted.
        last: the last prompt token, the first decode step (ignored when the first token is dense).
        options: of the decoding that gives the answer.

    Raises:
        NotFiniteError: a step's logits, or appended keys or values, are not finite.
    """
    answer = _DenseAnswer(model, snapshot, question, options, record=True)
    answer.decode(last)
    answer.set_sums(snapshot)


@torch.inference_mode()
def decode_dense(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, options: DecodeOptions,
    see: SeeSteps | None = None,
) -> Decoded:  # fmt: skip
    """Decode dense alone; arguments as for `decode_dense_answer`.

    Args:
        see: called for the steps of the answer, in order.

    Raises:
        NotFiniteError: a step's logits, or appended keys or values, are not finite.
    """
    return _DenseAnswer(model, snapshot, question, options, see=see).decode(last)


class _DenseAnswer:
    """Decodes dense's answer; arguments as for `decode_dense`, `record` to keep the queries of its steps."""

    def __init__(
        self, model: PreTrainedModel, snapshot: Snapshot, question: list[int], options: DecodeOptions,
        see: SeeSteps | None = None, record: bool = False,
    ) -> None:  # fmt: skip
        self.options, self.see, self.record = options, see, record
        last_fed = snapshot.length + len(question) + options.max_new_tokens - (options.first_token == "dense")
        check_rope(snapshot.rope_until, snapshot.length, last_fed)
        self.first = (
            int(options.choose(snapshot.logits[None], [0])) if options.first_token == "dense" else None
        )
        self.rows = Rows(model, snapshot, [None], options.max_new_tokens, question)
        self.layers = self.rows.cache.packed_layers
        self.queries: list[list[Tensor]] = [[] for _ in self.layers]

    def decode(self, last: int) -> Decoded:
        # after compression, before the question
        held = self.rows.resident[0]
        assert held is not None
        out = Decoded(kept=held.kept, resident=held.bytes, resident_bf16=held.bf16, resident_end=held.bytes)
        stop = None
        if self.first is not None:
            out.ids.append(self.first)
            stop = self.options.stop(out.ids)
        while stop is None:
            start = out.ids[-1] if out.ids else last
            out.ids += self._checked(start, self._draft(start, out.ids), len(out.ids))
            stop = self.options.stop(out.ids)
        out.stop = stop
        done, question = len(self.rows.fed[0]), len(self.rows.question)
        if not all(appended := self.rows.finite(0, done)):
            step = appended.index(False) - question
            where = f"decode step {step}" if step >= 0 else "the question"
            raise NotFiniteError(f"dense: keys or values of {where} are not finite")
        if done:
            out.read, out.read_bf16 = self.rows.bytes_read(0)
            out.held = self.rows.held(0)
            out.resident_end = self.rows.cache.resident(0).bytes
        return out

    def _draft(self, token: int, before: list[int]) -> list[int]:
        """The tokens after `token`, one row per matrix product: up to the answer's end, at most a pass."""
        done, found, answer = len(self.rows.fed[0]), [], list(before)

        def see(logits_RV: Tensor, *_: object) -> None:
            found.append(int(self.options.choose(logits_RV, [len(answer)])))

        while len(found) < PASS_ROWS and (not found or self.options.stop(answer) is None):
            self.rows.feed({0: [token]}, see, sizes=[1])
            token = found[-1]
            answer.append(token)
        self.rows.rewind({0: done})
        return found

    def _checked(self, token: int, draft: list[int], number: int) -> list[int]:
        """The tokens of a draft after `token` that hold, and the first other one; these are fed, but for the last.

        Args:
            token: fed first.
            draft: tokens after it.
            number: of the first of them in the answer.
        """
        done, passes = len(self.rows.fed[0]), []
        for layer in self.layers:
            layer.queries_NHGD = [] if self.record else None
        self.rows.feed({0: [token, *draft[:-1]]}, lambda logits_RV, *_: passes.append(logits_RV))
        (logits_RV,) = passes
        chosen = self.options.choose(logits_RV, range(number, number + len(draft)))
        seen = torch.stack([chosen.double(), total(logits_RV, -1).isfinite().double()])
        tokens, good = seen[:, : len(draft)].tolist()
        same = [int(now) == then for now, then in zip(tokens, draft, strict=True)]
        count = len(draft) if all(same) else same.index(False) + 1
        if not all(good[:count]):
            raise NotFiniteError(f"dense: logits of decode step {done + good.index(0)} are not finite")
        if self.see is not None:
            self.see(logits_RV, count)
        for layer, queries in zip(self.layers, self.queries, strict=True):
            queries += [q_NHGD[:count] for q_NHGD in layer.queries_NHGD or []]
            layer.queries_NHGD = None
        self.rows.rewind({0: done + count})
        return [int(now) for now in tokens[:count]]

    def set_sums(self, snapshot: Snapshot) -> None:
        """Set `answer_sum_QT` of every layer."""
        appended = len(self.rows.question) + len(self.rows.fed[0])
        for layer, packed, queries in zip(snapshot.in_use(), self.layers, self.queries, strict=True):
            layer.answer_sum_QT = _attended(layer, packed.k_tail[0, :, :appended], queries)


def _attended(snapshot: LayerSnapshot, k_HTD: Tensor, queries: list[Tensor]) -> Tensor:
    """Attention of an answer's queries to the prompt, summed, `[Q, T]` fp32; `k_HTD` are the appended keys."""
    if not queries:
        return snapshot.q_QWD.new_zeros(snapshot.q_QWD.shape[0], snapshot.length, dtype=torch.float32)
    q_QND = torch.cat(queries).flatten(1, 2).transpose(0, 1).contiguous()
    summed_QT = attention_sum(q_QND, torch.cat([snapshot.k_HTD, k_HTD], dim=1), snapshot.scaling)
    return summed_QT[:, : snapshot.length].contiguous()
