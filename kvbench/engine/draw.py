"""Draws tokens at a temperature, with the same random numbers for every row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Chooses tokens at random instead of the likeliest.

    The number that decides a step depends on the key and the step only, not on the row: where two methods give the same
    probabilities, they choose the same token, so that answers to a prompt stay paired.

    Attributes:
        temperature: divides the logits; above 0.
        top_p: the likeliest tokens that together have this probability are drawn from, 1 for all.
        key: seeds the random numbers.
    """

    temperature: float
    top_p: float
    key: str

    def __call__(self, logits_RV: Tensor, steps: int | Sequence[int]) -> Tensor:
        """One token per row, `[R]`.

        Args:
            logits_RV: fp32 logits.
            steps: number of the token in the answer: of all rows, or of each of the first ones, the rest being padding.
        """
        rows = len(logits_RV)
        numbers = [steps] * rows if isinstance(steps, int) else [*steps, *[0] * (rows - len(steps))]
        uniform = [[self._uniform(step)] for step in numbers]
        uniform_R1 = torch.tensor(uniform, dtype=torch.float64, device=logits_RV.device)
        p_RV, order_RV = (logits_RV / self.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        sums_RV = p_RV.double().cumsum(-1)
        # a token belongs if those before it do not suffice; the first always does
        count_R = ((sums_RV - p_RV) < self.top_p).sum(-1, keepdim=True)
        whole_R = sums_RV.gather(-1, count_R - 1)
        place_R = torch.searchsorted(sums_RV, whole_R * uniform_R1, right=True)
        return order_RV.gather(-1, torch.minimum(place_R, count_R - 1))[:, 0]

    def _uniform(self, step: int) -> float:
        return random.Random(f"{self.key}/{step}").random()
