"""Every registered method, and the prompts of its contract."""

import torch

import kvbench
from kvbench.engine.contract import DIM, LAYERS, NEW, prompts
from kvbench.methods import registry
from kvbench.methods.repeat import Repeat

# further settings of methods with alternatives
SETTINGS = [
    ("snapkv", {"heads": "query_head"}),
    ("snapkv", {"mode": "kvpress", "pool": "avg"}),
    ("pyramidkv", {"heads": "query_head"}),
    ("pyramidkv", {"mode": "kvpress", "beta": 2}),
    ("adakv", {"heads": "query_head"}),
    ("adakv", {"mode": "kvpress", "alpha": 0.9}),
    ("adakv", {"scorer": "expected_attention"}),
    ("adakv", {"scorer": "expected_attention", "mode": "kvpress"}),
    ("chunkkv", {"heads": "kv_head", "offset": 3}),
    ("chunkkv", {"chunks": "sentence"}),
    ("chunkkv", {"chunks": "punctuation", "chunk": 40}),
    ("chunkkv", {"mode": "kvpress", "scorer": "keydiff"}),
    ("egchunkkv", {"scorer": "knorm", "chunk": 7, "spiky": 2}),
    ("h2o", {"recent": 1.0}),
    ("streaming_llm", {"positions": "original"}),
    ("tova", {"mode": "kvpress"}),
    ("quest", {"heads": "query_head"}),
    ("topk_oracle", {"heads": "query_head"}),
    ("static_oracle", {"heads": "query_head"}),
    ("hsa", {"page": 3, "channels": 4}),
    ("rocketkv", {"split": 0.5}),
    ("fp8_e4m3", {"scales": "head"}),
    ("int4", {"residual": 64}),
]  # fmt: skip


def methods(*families):
    known = {name: cls.family for name, cls in registry().items()}
    plain = [(name, {}) for name, family in sorted(known.items()) if family in families]
    return plain + [(name, params) for name, params in SETTINGS if known[name] in families]


def name_of(case):
    return "-".join([case[0], *map(str, case[1].values())]) if isinstance(case, tuple) else None


EVERY = methods("eviction", "selection", "method")
EVICTIONS = methods("eviction")
FORMATS = methods("format")


def tensors(shape, length):
    """q, k, v of two different prompts, RoPE and sentence boundaries."""
    p = prompts(shape, length)
    return p.q_BQTD, p.k_BHTD, p.v_BHTD, p.rope, p.boundaries_BT


def answer(tensors):
    """Queries and keys of an answer of five tokens to each of the two prompts."""
    q, k, *_ = tensors
    draw = torch.Generator().manual_seed(q.shape[2] + 1)
    return tuple(torch.randn(2, x.shape[1], 5, DIM, generator=draw) for x in (q, k))


def repetition(tensors):
    """Queries and keys of nine tokens that ask for a repetition, for each of the two prompts."""
    q, k, *_ = tensors
    draw = torch.Generator().manual_seed(q.shape[2] + 2)
    return tuple(torch.randn(2, x.shape[1], 9, DIM, generator=draw) for x in (q, k))


def add_repetition(layers, chunk=2048, sinks=4):
    """Gives the layers of a prompt what KVzip needs: random scores."""
    layers, draw = list(layers), torch.Generator().manual_seed(11)
    found = Repeat(
        sinks, {layer.layer: torch.rand(layer.k_HTD.shape[:2], generator=draw) for layer in layers}
    )
    for layer in layers:
        found.scores[layer.layer][:, :sinks] = torch.inf
        layer.repeats[chunk, sinks] = found


def keep(name, params, tensors, tokens, rows):
    q, k, v, rope, ends = tensors
    return kvbench.keep(
        name, q[rows], k[rows], v[rows], tokens=tokens, num_layers=LAYERS, rope=rope,
        boundaries_BT=ends[rows], answer=tuple(x[rows] for x in answer(tensors)),
        repetition=tuple(x[rows] for x in repetition(tensors)), max_new_tokens=NEW, **params,
    )  # fmt: skip


def select(name, params, tensors, tokens, rows):
    q, k, v, *_ = tensors
    return kvbench.select(name, q[rows, :, -1], k[rows], v[rows], tokens=tokens, max_new_tokens=NEW, **params)
