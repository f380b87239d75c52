"""The cost model equals what the engine counts on real tensors, for every registered method."""

import pytest
from kvbench_testing.cases import add_repetition, methods
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvbench import cost
from kvbench.cost.shapes import from_config
from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.prefill import prefill_for
from kvbench.methods import Budget, Shape, build, registry

NEW, LENGTH = 12, 300
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(LENGTH + 1)]

FORMATS = [({"format": {"name": name}}, None) for name, cls in registry().items() if cls.family == "format"]
COMPOSED = [
    ({"method": "chunkkv", "selection": {"name": "quest", "page": 4, "dense_layers": 0}}, 60),
    (
        {"method": "snapkv", "format": {"name": "fp8_e4m3", "scales": "head"}, "selection": {"name": "hsa"}},
        90,
    ),
    ({"method": "h2o", "format": {"name": "fp8_e5m2"}}, 50),
    *(
        ({"method": method, "window": 8, "heads": "query_head", "selection": selection}, 70)
        for method in ("snapkv", "adakv")
        for selection in ("quest", "sparq", "hsa", "topk_oracle")
    ),
    ({"method": "streaming_llm", "selection": {"name": "topk_oracle"}}, 50),
    ({"method": "rocketkv_mt", "format": {"name": "bf16"}}, 50),
    ({"method": "snapkv", "window": 8, "format": {"name": "int4", "residual": 32}}, 100),
    ({"method": "knorm", "dense_layers": 2}, 50),
    ({"method": "chunkkv", "n_reuse": 2}, 70),
    ({"method": "quest", "page": 16}, 8),
    ({"method": "block_topk", "page": 4, "dense_layers": 0}, 40),
    ({"method": "block_topk", "page": 16, "heads": "layer"}, 8),
    ({"method": "snapkv", "window": 8, "selection": {"name": "block_topk", "page": 4}, "keep": 100}, 40),
]
CASES = [
    *(({"method": name, **params}, 70) for name, params in methods("eviction", "selection", "method")),
    *(({"method": "rocketkv_trtllm", "prompt_budget": 100, "pages": 3}, None),),
    *FORMATS, *COMPOSED,
]  # fmt: skip


@pytest.fixture(scope="module")
def decoded(tiny_model_dir):
    """Shape of a tiny model, and the measurements of every case when the engine decodes all together."""
    folder = tiny_model_dir("llama", group=3, layers=4)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()
    shape = from_config(model.config.to_dict(), "tiny")
    built = [build(entry) for entry, _ in CASES]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    snapshot = prefill_for(built, model, tokenizer, PROMPT[:-1], 64, "sdpa")
    rule = Shape(LENGTH, NEW, shape.layers, shape.head_dim)
    cells = [
        method.resolve(rule, Budget(tokens=tokens) if tokens else None)
        for method, (_, tokens) in zip(built, CASES, strict=True)
    ]
    options = DecodeOptions(NEW, batch_rows=16, kl=False)
    decode_dense_answer(model, snapshot, [], PROMPT[-1], options)
    add_repetition(snapshot.layers)
    group = decode_cells(model, snapshot, [], PROMPT[-1], cells, options)
    return shape, dict(zip(map(str, CASES), group.cells, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_are_those_that_the_engine_counts(decoded, case):
    shape, measured = decoded
    entry, tokens = case
    account, found = (
        cost.account(entry, shape, prompt=LENGTH, new=NEW, tokens=tokens, element=4),
        measured[str(case)],
    )
    # the engine does not count what updates of auxiliary data read
    per_head = account.resolved.selection.append_bytes(shape.head_dim, 4)[0]
    per_query_head = entry.get("heads") == "query_head" and "selection" in entry
    select_heads = shape.heads if per_query_head else shape.kv_heads
    updates = select_heads * per_head * sum(rule.read is not None for rule in account.resolved.rules)
    pairs = [
        (account.kept, found.kept),
        (account.resident, found.resident),
        (account.resident_end, found.resident_end),
        (account.mean_step().read - updates, found.read),
    ]
    for modelled, counted in pairs:
        if account.exact:
            assert modelled == pytest.approx(counted)
        else:
            assert 0.5 * modelled < counted <= modelled
    if per_query_head and entry["method"] == "snapkv":
        # each query head's list is as long as the budget, however large the union
        per_token = shape.layers * (2 * shape.kv_heads * shape.head_dim * 4 + shape.heads)
        assert account.resident - found.resident == pytest.approx((account.kept - found.kept) * per_token)
    # the number of kept tokens may depend on the data, the bytes per token do not
    if not per_query_head:
        assert account.resident / account.kept == pytest.approx(found.resident / found.kept)
