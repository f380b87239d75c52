"""Expected attention: the attention of future queries, estimated from the statistics of past ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels.rope import rotate
from kvbench.methods.base import Eviction, LayerSnapshot
from kvbench.methods.registry import register


@register("expected_attention")
@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Eviction):
    """Keeps the tokens with the highest expected attention from future queries, times the norm of their values.

    Future queries are taken as normally distributed. Mean and covariance are those of the prompt's queries before RoPE,
    without the first `sinks`, rotated by the mean rotation of the next `future` positions. The first `sinks` tokens are
    always kept. The score is `(mean over the group of softmax(mu . k / sqrt(D) + k' Sigma k / (2 D)) + epsilon) *
    norm(v)`.
    """

    differs = (
        "kvpress registers it wrapped in AdaKV, with epsilon 0.01: here `adakv` with "
        "scorer=expected_attention and mode=kvpress."
    )
    source = (
        "Devoto et al. 2025, arXiv 2510.00636; as kvpress 0.5.5, whose registry entry is AdaKV over it with "
        "epsilon 0.01"
    )
    budget_meaning = "tokens kept per KV head, sinks included"

    positive = ("future",)
    pins = True

    sinks: int = 4
    future: int = 512
    epsilon: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"queries", "rope"})

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        scores_HT = torch.full(snapshot.k_HTD.shape[:2], torch.inf, device=snapshot.k_HTD.device)
        if snapshot.length > self.sinks:
            scores_HT[:, self.sinks :] = self._scores(snapshot)
        return scores_HT

    def _scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Scores of the tokens after the sinks `[H, T - sinks]`."""
        assert snapshot.rope is not None
        # while decoding, the last queries stand for all
        end, dim = snapshot.end or snapshot.length, snapshot.k_HTD.shape[-1]
        first = end - snapshot.q_QWD.shape[1]
        begin = max(self.sinks, first)
        position = torch.arange(end + self.future, device=snapshot.k_HTD.device)
        q_QTD = snapshot.q_QWD[:, begin - first :].float()
        q_QTD = rotate(q_QTD, *snapshot.rope(-position[begin:end]))
        mean_Q1D = q_QTD.mean(1, keepdim=True)
        centred = q_QTD - mean_Q1D
        covariance_QDD = centred.transpose(1, 2) @ centred / q_QTD.shape[1]
        cos_FR, sin_FR = snapshot.rope(position[end:])
        rotation_DD = rotate(torch.eye(dim, device=position.device), cos_FR.mean(0), sin_FR.mean(0))
        mean_QD = mean_Q1D[:, 0] @ rotation_DD
        covariance_QDD = rotation_DD.T @ covariance_QDD @ rotation_DD
        out = []
        for head, k_TD in enumerate(snapshot.k_HTD[:, self.sinks :].float()):
            group = slice(head * snapshot.group, (head + 1) * snapshot.group)
            quadratic_GT = ((k_TD @ covariance_QDD[group]) * k_TD).sum(-1)
            logits_GT = mean_QD[group] @ k_TD.T * snapshot.scaling + quadratic_GT * (snapshot.scaling**2 / 2)
            out.append(logits_GT.softmax(-1).mean(0))
        return (torch.stack(out) + self.epsilon) * snapshot.v_HTD[:, self.sinks :].float().norm(dim=-1)
