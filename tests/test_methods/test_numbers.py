"""Budgets and sizes from Python: whole numbers of any library, and one line for anything else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kvbench
from kvbench import cost
from kvbench.config import typed
from kvbench.config.errors import UserError
from kvbench.cost.shapes import model_shape
from kvbench.methods import Budget, build
from kvbench.runs.rerun import text

WHOLE = [
    16,
    np.int64(16),
    np.int32(16),
    np.uint8(16),
    torch.tensor(16),
    torch.tensor(16, dtype=torch.int32),
    np.array(16),
]
NOT_WHOLE = [
    True, False, np.True_, torch.tensor(True), 16.0, 16.5, np.float64(16), np.float32(16), torch.tensor(16.0), "16",
    "x", 0, -1, np.int64(0), np.int64(-5), torch.tensor(-1), float("nan"), float("inf"), [16], (16,), np.array([16]),
    torch.tensor([16]), torch.arange(100), {"tokens": 16}, object(), 16 + 0j,
]  # fmt: skip
FRACTIONS = [0.25, "0.25", np.float64(0.25), np.float32(0.25), 1, 1.0, "1"]
NOT_FRACTIONS = [
    True, 0, 0.0, -0.5, 1.5, 2, "abc", "", "nan", float("nan"), float("inf"), "0,5", [0.5], np.array([0.5, 0.2]),
    torch.tensor([0.5]), "1/2", None.__class__, object(),
]  # fmt: skip
DATA = [torch.randn(1, heads, 60, 16, generator=torch.Generator().manual_seed(3)) for heads in (4, 2, 2)]
Q_NOW = DATA[0][:, :, -1]


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("tokens", WHOLE, ids=repr)
def test_a_whole_number_of_any_library_is_a_budget(tokens):
    assert Budget(tokens=tokens) == Budget(tokens=16) and type(Budget(tokens=tokens).tokens) is int
    assert Budget(tokens=tokens).label() == "16"
    kept = kvbench.keep("snapkv", *DATA, tokens=tokens, window=np.int64(8))
    expected = kvbench.keep("snapkv", *DATA, tokens=16, window=8)
    assert all(torch.equal(*pair) for pair in zip(kept[0], expected[0], strict=True))
    kvbench.select("hsa", Q_NOW, *DATA[1:], tokens=tokens, max_new_tokens=tokens, prompt_tokens=tokens)
    cost.account("snapkv", model_shape("llama31_8b"), prompt=100, new=tokens, tokens=tokens)
    assert text({"budget.tokens": [tokens]}) == text({"budget.tokens": [16]})


@pytest.mark.parametrize("tokens", NOT_WHOLE, ids=lambda value: repr(value).partition(" at 0x")[0][:30])
def test_anything_else_is_refused_in_one_line(tokens, monkeypatch):
    with pytest.raises(UserError, match=r"^budget\.tokens: .* is not a whole number above 0$") as error:
        Budget(tokens=tokens)
    one_line(error)
    with pytest.raises(UserError, match=r"^tokens: "):
        kvbench.keep("knorm", *DATA, tokens=tokens)
    with pytest.raises(UserError, match=r"^tokens: "):
        kvbench.select("quest", Q_NOW, *DATA[1:], tokens=tokens)
    with pytest.raises(UserError, match=r"^budget\.tokens: "):
        cost.account("snapkv", model_shape("llama31_8b"), prompt=100, new=8, tokens=tokens)
    for key in ("prompt", "new"):
        sizes = {"prompt": 100, "new": 8, key: tokens}
        with pytest.raises(UserError, match=rf"^{key}: .* is not a whole number above 0$") as error:
            cost.account("snapkv", model_shape("llama31_8b"), tokens=16, **sizes)
        one_line(error)
    with pytest.raises(UserError, match=r"^max_new_tokens: ") as error:
        kvbench.cache(None, "snapkv", tokens=16, max_new_tokens=tokens)  # type: ignore[arg-type]
    one_line(error)


@pytest.mark.parametrize("ratio", FRACTIONS, ids=repr)
def test_fractions(ratio):
    expected = Budget(ratio="0.25" if float(ratio) < 1 else "1").of(100)
    assert Budget(ratio=ratio).of(100) == expected
    assert len(kvbench.keep("knorm", *DATA, ratio=ratio)[0][0]) == 60 * expected // 100


@pytest.mark.parametrize("ratio", NOT_FRACTIONS, ids=lambda value: repr(value).partition(" at 0x")[0][:30])
def test_anything_else_is_not_a_fraction(ratio):
    with pytest.raises(UserError, match=r"^budget\.ratio: .*is not in \(0, 1\]$") as error:
        Budget(ratio=ratio)
    one_line(error)
    with pytest.raises(UserError, match=r"^ratio: "):
        kvbench.keep("knorm", *DATA, ratio=ratio)


@given(
    value=st.integers()
    | st.floats()
    | st.booleans()
    | st.text(max_size=5)
    | st.none()
    | st.binary(max_size=3)
)
def test_whole_is_an_int_or_one_line(value):
    if type(value) is int and value >= 1:
        assert typed.whole("size", value, 1) == value
        return
    with pytest.raises(UserError, match=r"^size: [^\n]* is not a whole number above 0$"):
        typed.whole("size", value, 1)


def test_parameters_and_overrides_of_other_libraries():
    assert (
        build({"method": "adakv", "alpha": np.float64(0.5), "window": np.int64(4)}).describe()["params"][
            "alpha"
        ]
        == 0.5
    )
    with pytest.raises(UserError, match=r"^method\.window: True is not a whole number$"):
        build({"method": "snapkv", "window": np.True_})
    with pytest.raises(UserError, match=r"^array\(\[1, 2\]\) is not a number, text, list or set of keys$"):
        text({"budget.tokens": np.array([1, 2])})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(3))
def test_tensors_that_are_not_finite_are_refused(place, bad):
    data = [x.clone() for x in DATA]
    data[place][0, 1, 17, 3] = bad
    for name in ("knorm", "snapkv", "egchunkkv", "h2o"):
        with pytest.raises(UserError, match=rf"^{'qkv'[place]}: holds NaN or an infinity$"):
            kvbench.keep(name, *data, tokens=16)
    if place:
        with pytest.raises(UserError, match="NaN or an infinity"):
            kvbench.select("quest", Q_NOW, *data[1:], tokens=48, dense_layers=0)
