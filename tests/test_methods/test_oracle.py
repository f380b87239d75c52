"""No method recalls more attention than exact top-k with the same number of tokens."""

import pytest
from kvbench_testing.cases import DIM, EVERY, NEW, keep, name_of, select, tensors

import kvbench

LENGTH = 331


def recall(q_BQTD, k_BHTD, chosen):
    """Attention of the last query to the chosen tokens, by row and list of `chosen`."""
    heads = k_BHTD.shape[1]
    q_BHGD = q_BQTD[:, :, -1].unflatten(1, (heads, -1))
    probs_BHGT = (q_BHGD @ k_BHTD.transpose(2, 3) * DIM**-0.5).softmax(-1)
    out = []
    for row, lists in enumerate(chosen):
        probs = probs_BHGT[row].sum(1) if len(lists) == heads else probs_BHGT[row].flatten(0, 1)
        out.append([float(p[one].sum()) for p, one in zip(probs, lists, strict=True)])
    return out


@pytest.mark.parametrize("case", EVERY, ids=name_of)
@pytest.mark.parametrize("tokens", [9, 64, 200])
def test_recall_of_attention_is_highest_for_the_oracle(case, tokens):
    name, params = case
    data = tensors("gqa4", LENGTH)
    q, k, v, *_ = data
    kept = keep(name, params, data, tokens, [0, 1])
    chosen = kept
    if not all(len(positions) < LENGTH for positions in kept[0]):
        chosen = select(name, params, data, tokens, [0, 1])
    for row, found in enumerate(recall(q, k, chosen)):
        for head, mass in enumerate(found):
            heads = "query_head" if len(found) == q.shape[1] else "kv_head"
            best = kvbench.select(
                "topk_oracle", q[row : row + 1, :, -1], k[row : row + 1], v[row : row + 1],
                tokens=len(chosen[row][head]), max_new_tokens=NEW, heads=heads,
            )  # fmt: skip
            assert mass <= recall(q[row : row + 1], k[row : row + 1], best)[0][head] + 1e-5
