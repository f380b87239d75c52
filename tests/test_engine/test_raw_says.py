"""`keep` and `select` say what a method does not do, and errors name their arguments."""

import warnings

import pytest
import torch

import kvbench
from kvbench.config.errors import UserError


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(1, 4, 64, 8), torch.randn(1, 2, 64, 8), torch.randn(1, 2, 64, 8)


def test_a_selection_evicts_nothing_and_says_so(qkv):
    with pytest.warns(
        UserWarning, match=r"^quest evicts nothing.*; kvbench.select says what it reads$"
    ) as told:
        (kept,) = kvbench.keep("quest", *qkv, tokens=16)
    assert [len(head) for head in kept] == [64, 64]
    assert len(told) == 1 and told[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^dense evicts nothing, so that every token is kept$"):
        kvbench.keep("dense", *qkv)


def test_an_eviction_selects_nothing_and_says_so(qkv):
    q, k, v = qkv
    with pytest.warns(
        UserWarning, match=r"^snapkv selects nothing.*; kvbench.keep says what it keeps$"
    ) as told:
        (read,) = kvbench.select("snapkv", q[:, :, -1], k, v, tokens=16)
    assert [len(head) for head in read] == [64, 64] and told[0].filename == __file__


def test_methods_that_do_are_silent(qkv):
    q, k, v = qkv
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kvbench.keep("snapkv", *qkv, tokens=16, window=8)
        kvbench.select("quest", q[:, :, -1], k, v, tokens=16)
        kvbench.keep("rocketkv", *qkv, tokens=16)
        kvbench.select("rocketkv", q[:, :, -1], k, v, tokens=16)
        # a budget that covers the prompt evicts nothing either, but the method would
        kvbench.keep("snapkv", *qkv, tokens=100)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("snapk", {"tokens": 16}, "method: there is no method 'snapk' "),
        ("snapkv", {"tokens": 16, "wndow": 8}, "wndow: there is no "),
        ("snapkv", {"tokens": 16, "window": "x"}, "window: "),
        ("snapkv", {"tokens": 0}, "tokens: "),
        ("snapkv", {"ratio": 2}, "ratio: 2 is not in "),
        ("snapkv", {}, "tokens: missing; give tokens or ratio"),
        ("snapkv", {"tokens": 8, "ratio": 0.1}, "ratio: given beside tokens"),
    ],
)
def test_errors_name_the_argument(qkv, method, settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        kvbench.keep(method, *qkv, **settings)
