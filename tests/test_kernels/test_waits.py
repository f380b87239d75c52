"""The watch for host waits sees each kind of them, with and without gradients, and nothing else."""

import pytest
import torch
from kvbench_testing.recording import Graph
from kvbench_testing.waits import watching

WAITS = {
    "int": lambda x, m: int(x[0]),
    "float": lambda x, m: float(x[0]),
    "item": lambda x, m: x[0].item(),
    "bool": lambda x, m: bool(m.any()),
    "if": lambda x, m: 1 if m.any() else 2,
    "is_nonzero": lambda x, m: torch.is_nonzero(x[0]),
    "index": lambda x, m: list(range(m.sum())),
    "tolist": lambda x, m: x.tolist(),
    "cpu": lambda x, m: x.cpu(),
    "to cpu": lambda x, m: x.to("cpu"),
    "to device=cpu": lambda x, m: x.to(device="cpu"),
    "numpy": lambda x, m: x.numpy(),
    "in": lambda x, m: 3 in x,
    "read by mask": lambda x, m: x[m],
    "read by mask among others": lambda x, m: x[None][:, m],
    "write by mask": lambda x, m: x.clone().__setitem__(m, 0.0),
    "index_put by mask": lambda x, m: x.index_put((m,), torch.zeros(())),
    "nonzero": lambda x, m: m.nonzero(),
    "where of one": lambda x, m: torch.where(m),
    "argwhere": lambda x, m: torch.argwhere(m),
    "masked_select": lambda x, m: torch.masked_select(x, m),
    "unique": lambda x, m: x.unique(),
    "equal": lambda x, m: torch.equal(x, x),
    "allclose": lambda x, m: torch.allclose(x, x),
    "bincount": lambda x, m: torch.bincount(m.long()),
    "repeat_interleave": lambda x, m: x.repeat_interleave(m.long()),
    "inside an operation of the library": lambda x, m: torch.ops.aten.item(x[0]),
}


def kernels_use(x, m):
    """Operations that never wait."""
    y = x.masked_fill(m, 0.0) + torch.where(m, x, 1.0) + x.index_select(0, m.long()) + x[m.long()]
    y[1:] += x[0]
    y[m.long()] = x
    return y.to(torch.float64).to(x.device).topk(2).values.cumsum(-1) + x.repeat_interleave(2)[:2]


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("kind", WAITS)
def test_every_kind_of_wait_is_seen(kind, inference):
    x, m = torch.arange(4.0), torch.tensor([True, False, True, True])
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match="the host waits"), watching():
        WAITS[kind](x, m)
    with torch.inference_mode(inference), watching(raising=False) as waits:
        WAITS[kind](x, m)
    assert len(waits) == 1 and "test_waits.py" in waits[0]


@pytest.mark.parametrize("inference", [True, False])
def test_nothing_else_is_seen(inference):
    x, m = torch.arange(4.0), torch.tensor([True, False, True, True])
    with torch.inference_mode(inference), watching():
        kernels_use(x, m)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("kind", WAITS)
def test_a_recorded_step_may_not_wait_either(kind, inference):
    x, m = torch.arange(4.0), torch.tensor([True, False, True, True])
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match="the host waits"), Graph():
        WAITS[kind](x, m)
