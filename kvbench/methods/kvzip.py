"""KVzip: keeps the tokens that the model attends to when it repeats the text."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.top_k import top_k_mask
from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota
from kvbench.methods.registry import register
from kvbench.methods.repeat import Repeat


@register("kvzip")
@dataclass(frozen=True, kw_only=True)
class KVzip(Eviction):
    """Keeps the tokens that get the highest attention while the model, asked to, repeats the text.

    After prefill the text is fed again, `chunk` tokens at a time, each behind a request to repeat it and against the
    whole cache; the score of a token is the largest attention that any query head of the group gives it then, in a
    softmax over the first `sinks` tokens, the chunk and the repetition. `scope=model` ranks all layers and KV heads
    together, so that these keep different numbers of tokens; `scope=layer` those of a layer; `scope=head` gives every
    KV head the budget. The sinks are kept in every head. The extra pass takes as long as one to two prefills and
    counts as compression. It looks at no question: only for `protocol=query_agnostic`.
    """

    differs = (
        "The official code keeps what is strictly above the value of its last place, one token fewer than the ratio "
        "allows, and leaves system prompt and template out of the ranking; kvpress may leave a head nothing but its "
        "sinks, and masks instead of evicting. Here the mean is exactly the budget, of which the sinks are part. The "
        "request to repeat has the official words."
    )
    source = "Kim et al. 2025, arXiv 2505.23416; official chunks of 2000 tokens, kvpress 2048 and 4 sinks"
    budget_meaning = (
        "tokens kept per KV head: in each (head), or as the mean over a layer (layer) or the model (model)"
    )
    bytes_formula = "2 * keep * D * element; keep is the mean over heads"

    positive = ("chunk",)
    pins = True

    chunk: int = 2048
    sinks: int = 4
    scope: Literal["model", "layer", "head"] = "model"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"repeat"})

    @property
    def repeats(self) -> tuple[int, int]:
        return self.chunk, self.sinks

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        return self.scope != "head"

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Attention from the repetition `[H, T]`, infinity for the sinks."""
        return self._repeat(snapshot).scores[snapshot.layer]

    def keep(self, snapshot: LayerSnapshot, scores: Tensor, quota: Quota) -> Kept:
        if quota.tokens <= self.sinks or self.scope == "head":
            return super().keep(snapshot, scores, quota)
        if self.scope == "layer":
            chosen = top_k_mask(scores.flatten(), quota.tokens * snapshot.heads).view(scores.shape)
        else:
            repeat = self._repeat(snapshot)
            allowed = quota.tokens * snapshot.heads * len(repeat.scores)
            chosen = repeat.ranks[snapshot.layer] < allowed
        return Kept([row.nonzero()[:, 0] for row in chosen])

    def _repeat(self, snapshot: LayerSnapshot) -> Repeat:
        if self.repeats not in snapshot.repeats:
            raise UserError("kvzip: needs a second pass over the text, which only accuracy runs make")
        return snapshot.repeats[self.repeats]
