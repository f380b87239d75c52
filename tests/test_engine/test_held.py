"""What rows hold step by step, compared with a look at their tensors after every step."""

from dataclasses import dataclass, replace

import pytest
from transformers import AutoModelForCausalLM

from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.failures import AuditError
from kvbench.engine.forced import Rows
from kvbench.engine.prefill import prefill
from kvbench.methods import Budget, Shape, build
from kvbench.methods.decode_every import DecodeEvery

NEW, LAYERS = 24, 3
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(120)]
TOKENS = [(11 * i * i + 5 * i + 1) % 250 for i in range(NEW)]
ENTRIES = [
    ({"method": "h2o"}, 40, 24),
    ({"method": "tova", "format": "fp8_e4m3"}, 40, 24),
    ({"method": "decode_every", "scorer": "knorm", "interval": 5}, 40, 4),
    ({"method": "decode_every", "scorer": "knorm", "prefill": "snapkv", "interval": 5}, 40, 4),
    ({"method": "rkv", "interval": 6}, 40, 4),
    ({"method": "rpc", "interval": 8, "window": 4}, None, 2),
    ({"method": "snapkv"}, 40, 0),
    ({"method": "adakv"}, 40, 0),
    ({"method": "quest", "page": 4, "dense_layers": 0}, 40, 0),
    ({"method": "int4"}, None, 0),
    ({"method": "rocketkv_mt", "window": 8}, 48, 0),
]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=LAYERS)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def snapshot(model):
    return prefill(model, PROMPT, 64, needs=frozenset({"attention_sum", "rope"}))


def resolve(entry, tokens, new=NEW):
    method = build({"format": entry["method"]} if entry["method"] == "int4" else entry)
    budget = None if tokens is None else Budget(tokens=tokens)
    return method.resolve(Shape(len(PROMPT), new, LAYERS, 16), budget)


@pytest.mark.parametrize(("entry", "tokens", "drops"), ENTRIES, ids=lambda value: str(value)[:60])
def test_the_trace_is_what_the_tensors_hold(model, snapshot, entry, tokens, drops):
    rows = Rows(model, snapshot, [resolve(entry, tokens)], NEW, PROMPT[:3])
    held = [rows.cache.resident(0).bytes]
    counts, dropped, peak = [], [], 0
    for step, token in enumerate(TOKENS):
        before = _tokens(rows)
        rows.feed({0: [token]})
        after = _tokens(rows)
        held.append(rows.cache.resident(0).bytes)
        counts.append(sum(n * w for n, w in after) / sum(w for _, w in after))
        peak = max(peak, *(n + 1 for n, _ in before))
        if any(b + 1 > a for (b, _), (a, _) in zip(before, after, strict=True)):
            dropped.append(step + 1)
    found = rows.held(0)
    assert found.mean == pytest.approx(sum(counts) / NEW) and found.end == pytest.approx(counts[-1])
    assert found.bytes_mean == pytest.approx(sum(held[1:]) / NEW) and found.bytes_peak == max(held[1:])
    assert found.peak == peak and found.drops == len(dropped) == drops
    assert found.first_drop == (dropped[0] if dropped else None)
    assert found.after_first_drop == ((NEW - dropped[0]) / NEW if dropped else 0)
    # fed at once, and again after a rewind
    rows.rewind({0: 0})
    rows.feed({0: TOKENS})
    assert rows.held(0) == found


def _tokens(rows):
    """Tokens and KV heads of every lane."""
    found = []
    for layer in rows.cache.packed_layers:
        for lane in layer.of_row[0]:
            own = lane.store.count if hasattr(lane, "store") else lane.kept + layer.counts[0]
            more = 0 if lane.retained is None else lane.retained.count - lane.kept
            found.append((own + more, lane.width))
    return found


def test_results_carry_the_trace_of_their_own_answer(model, snapshot):
    cells = [resolve(*entry[:2]) for entry in ENTRIES[:6]]
    group = decode_cells(model, snapshot, [], PROMPT[-1], cells, DecodeOptions(max_new_tokens=NEW))
    assert group.dense.held.mean == len(PROMPT) + (NEW + 1) / 2 and group.dense.held.drops == 0
    assert group.dense.held.bytes_peak == group.dense.resident_end
    for cell, (_, tokens, drops) in zip(group.cells, ENTRIES, strict=False):
        assert cell.held.drops == drops and cell.held.bytes_peak >= cell.resident_end
        if tokens == 40 and drops == NEW:
            assert cell.held.mean == cell.held.end == 40 and cell.held.peak == 41


def test_an_answer_shorter_than_the_interval_is_never_compressed(model, snapshot):
    cell = resolve({"method": "decode_every", "scorer": "knorm", "interval": 100}, 40)
    found = decode_cells(model, snapshot, [], PROMPT[-1], [cell], DecodeOptions(max_new_tokens=NEW)).cells[0]
    assert found.held.drops == 0 and found.held.first_drop is None and found.kept == len(PROMPT)


@dataclass(frozen=True, kw_only=True)
class Late(DecodeEvery):
    """Drops at its first and third boundary only."""

    def held_after(self, hold, prompt, before, length):
        due = super().held_after(hold, prompt, before, length)
        return due if length - prompt in (5, 15) else None


def test_a_method_that_holds_more_than_an_interval_is_caught(model, snapshot):
    cell = resolve({"method": "decode_every", "scorer": "knorm", "interval": 5}, 40)
    Rows(model, snapshot, [cell], NEW).feed({0: TOKENS})
    late = Rows(model, snapshot, [replace(cell, eviction=Late(scorer="knorm", interval=5))], NEW)
    with pytest.raises(
        AuditError, match="holds 46 tokens, more than 45: what a drop left and an interval of 5"
    ):
        late.feed({0: TOKENS})
