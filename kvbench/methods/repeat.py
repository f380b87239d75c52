"""What a model attends to while it repeats a text: the scores of the KVzip family."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

#: queries whose logits are held at once
QUERIES = 256


def repeat_scores(
    q_QND: Tensor, k_HND: Tensor, k_HTD: Tensor, sinks: int, start: int, end: int, scaling: float
) -> Tensor:
    """The largest attention of the repeating queries to each token of a chunk, `[H, end - start]` fp32.

    softmax over the sinks, the chunk, and the repeating tokens up to the query itself, and nothing else; the maximum
    is over all N queries and the query heads of a group. Source: KVzip, Kim et al. 2025, arXiv 2505.23416, section 3.

    Args:
        q_QND: post-RoPE queries of the tokens that ask for the repetition and repeat.
        k_HND: their keys.
        k_HTD: keys of the text.
        sinks: first tokens of the text.
        start: first token of the chunk.
        end: the token behind the chunk.
        scaling: factor on the attention logits.
    """
    heads, count = k_HND.shape[:2]
    keys = torch.cat([k_HTD[:, :sinks], k_HTD[:, start:end], k_HND], dim=1).float()
    before = keys.shape[1] - count
    q_HGND = q_QND.unflatten(0, (heads, -1)).float()
    best = q_HGND.new_zeros(heads, end - start)
    for low in range(0, count, QUERIES):
        high = min(low + QUERIES, count)
        logits_HGNC = q_HGND[:, :, low:high] @ keys[:, None, : before + high].transpose(-1, -2) * scaling
        seen = torch.ones(high - low, before + high, dtype=torch.bool, device=keys.device).tril(before + low)
        probs = logits_HGNC.masked_fill(~seen, -torch.inf).softmax(-1)
        best = torch.maximum(best, probs[..., sinks:before].amax((1, 2)))
    return best


@dataclass
class Repeat:
    """Scores of one text in all layers that are known.

    Attributes:
        sinks: first tokens of the text, which are kept in any case.
        scores: by layer, `[H, T]` fp32; infinity for the sinks.
        seconds: duration of the pass.
    """

    sinks: int
    scores: dict[int, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @cached_property
    def ranks(self) -> dict[int, Tensor]:
        """By layer, the place `[H, T]` of each token in the order of all layers and heads, from 0 for the highest.

        Ties go to the earlier layer, head and token.
        """
        order = torch.cat([x.flatten() for x in self.scores.values()]).argsort(descending=True, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        parts = place.split([x.numel() for x in self.scores.values()])
        return {
            layer: part.view(x.shape) for (layer, x), part in zip(self.scores.items(), parts, strict=True)
        }
