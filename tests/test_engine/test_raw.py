"""`kvbench.keep` and `kvbench.select`: results, and one line per mistake."""

import math
import subprocess
import sys

import pytest
import torch

import kvbench
from kvbench.config.errors import UserError
from kvbench.config.numbers import NotFiniteError
from kvbench.methods.knorm import KNorm

DATA = [torch.randn(2, n, 40, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 2, 2)]
Q, K, V = DATA


def shapes(lists):
    return [[len(positions) for positions in row] for row in lists]


def test_one_list_per_row_and_kv_head():
    kept = kvbench.keep("snapkv", *DATA, tokens=10, window=4)
    assert shapes(kept) == [[10, 10]] * 2
    assert all(positions.dtype == torch.int64 for row in kept for positions in row)


@pytest.mark.parametrize("tokens", [3, 10, 100])
def test_one_list_per_query_head_at_every_budget(tokens):
    kept = kvbench.keep("snapkv", *DATA, tokens=tokens, window=4, heads="query_head")
    assert shapes(kept) == [[min(tokens, 40)] * 6] * 2


@pytest.mark.parametrize("ratio", [0.25, "0.25"])
def test_a_ratio_is_the_fraction_retained(ratio):
    assert shapes(kvbench.keep("knorm", *DATA, ratio=ratio)) == [[10, 10]] * 2


def test_dense_needs_no_budget_and_a_selection_keeps_everything():
    everything = [list(range(40))] * 2
    for name, budget in (("dense", {}), ("quest", {"tokens": 8}), ("topk_oracle", {"tokens": 8})):
        kept = kvbench.keep(name, *DATA, **budget)
        assert [positions.tolist() for positions in kept[0]] == everything
    read = kvbench.select("dense", Q[:, :, -1], K, V)
    assert [slots.tolist() for slots in read[1]] == everything


def test_rocketkv_selects_within_what_it_kept():
    kept = kvbench.keep("rocketkv", *DATA, tokens=12, window=4, max_new_tokens=8)
    k, v = (
        torch.stack([torch.stack([x[b, h, kept[b][h]] for h in range(2)]) for b in range(2)]) for x in (K, V)
    )
    read = kvbench.select(
        "rocketkv", Q[:, :, -1], k, v, tokens=12, prompt_tokens=40, max_new_tokens=8, window=4
    )
    assert shapes(read) == [[6, 6]] * 2 and max(int(slots[-1]) for slots in read[0]) < k.shape[2]


def test_select_uses_a_layer_that_the_method_does_not_leave_dense():
    assert shapes(kvbench.select("quest", Q[:, :, -1], K, V, tokens=8, page=2)) == [[8, 8]] * 2
    read = kvbench.select("quest", Q[:, :, -1], K, V, tokens=8, page=2, heads="query_head")
    assert shapes(read) == [[8] * 6] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kvbench.keep("snapk", *DATA, tokens=5), "method: there is no method 'snapk'"),
        (lambda: kvbench.keep("snapkv", *DATA, tokens=5, wndow=3), "wndow: there is no key 'wndow'"),
        (lambda: kvbench.keep("snapkv", *DATA), "tokens: missing; give tokens or ratio"),
        (lambda: kvbench.keep("snapkv", *DATA, tokens=5, ratio=0.5), "ratio: given beside tokens"),
        (lambda: kvbench.keep("snapkv", *DATA, tokens=0), "tokens: 0"),
        (lambda: kvbench.keep("snapkv", Q[:, :, -1:], K, V, tokens=5), "q: needs the queries of all"),
        (lambda: kvbench.keep("snapkv", Q[:, :5], K, V, tokens=5), "q: 5 query heads"),
        (lambda: kvbench.keep("snapkv", Q[:1], K, V, tokens=5), "q: must have the batch"),
        (lambda: kvbench.keep("snapkv", Q, K, V[:, :1], tokens=5), "k, v: must be"),
        (lambda: kvbench.keep("snapkv", *DATA, tokens=5, layer=1), "layer: 1 is not in"),
        (lambda: kvbench.keep("expected_attention", *DATA, tokens=5), "rope: expected_attention needs it"),
        (lambda: kvbench.keep("chunkkv", *DATA, tokens=5, chunks="sentence"), "boundaries_BT: chunkkv needs"),
        (lambda: kvbench.keep("chunkkv", *DATA, tokens=5, scorer="knorm"), "scorer: knorm needs"),
        (lambda: kvbench.keep("adakv", *DATA, tokens=5, alpha=2), "alpha: 2.0 is not in [0, 1]"),
        (lambda: kvbench.keep("h2o", *DATA, tokens=5, recent=-1), "recent: -1.0 is not in [0, 1]"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_package_imports_torch_on_first_use_only():
    code = (
        "import sys, kvbench as k; assert 'torch' not in sys.modules; k.keep; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("n", "name"), list(enumerate("qkv")))
@pytest.mark.parametrize("method", ["knorm", "streaming_llm", "snapkv", "quest"])
def test_a_number_that_is_not_finite_is_one_line(value, n, name, method):
    """Also where the method would not have looked at it; key norm kept such keys first."""
    data = [x.clone() for x in DATA]
    data[n][1, 0, 20, 3] = value
    with pytest.raises(UserError, match=f"^{name}: holds NaN or an infinity$"):
        kvbench.keep(method, *data, tokens=10)
    data[0] = data[0][:, :, 20]
    with pytest.raises(UserError, match=f"^{name}: holds NaN"):
        kvbench.select(method, *data, tokens=10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_ranks_nothing(monkeypatch, value):
    def scores(self, snapshot):
        found = torch.zeros(2, snapshot.length)
        found[1, 7] = value
        return found

    monkeypatch.setattr(KNorm, "scores", scores)
    with pytest.raises(NotFiniteError, match=r"^scores of knorm in layer 0 are not finite$"):
        kvbench.keep("knorm", *DATA, tokens=10)
    # an eviction may say that +inf marks what is kept in any case; the other two it may not use
    monkeypatch.setattr(KNorm, "pins", True)
    if value == math.inf:
        assert 7 in kvbench.keep("knorm", *DATA, tokens=10)[0][1]
    else:
        with pytest.raises(NotFiniteError):
            kvbench.keep("knorm", *DATA, tokens=10)
