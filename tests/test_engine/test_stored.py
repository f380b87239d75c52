"""Lanes that store every token: lossy formats, and evictions that go on while decoding."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.compress import build_batch
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.prefill import prefill
from kvbench.engine.rope import rope_of
from kvbench.kernels.forms import using
from kvbench.kernels.rope import rotate
from kvbench.methods import Budget, Quota, Shape, build
from kvbench.models.boundaries import boundaries

NEW, LAYERS, HEADS, GROUP, DIM = 12, 3, 2, 3, 16
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(300)]
COMPRESSED = len(PROMPT) - 1
SLOT = 2 * HEADS * DIM * 4 * LAYERS  # K and V of one token in fp32
#: bytes of a key and of a value
PER_TOKEN = {"fp8_token": (20, 20), "int8_token": (20, 20), "int4_token": (12, 12), "turboquant": (10, 12)}
STEPPING = [
    {"method": "h2o"},
    {"method": "tova"},
    {"method": "streaming_llm", "positions": "reindexed"},
]
FORMATS = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4", "int2", *PER_TOKEN]


@pytest.fixture(scope="module")
def folder(tiny_model_dir):
    return tiny_model_dir("llama", group=GROUP, layers=LAYERS)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def eager(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def snapshot(model):
    return prefill(model, PROMPT[:-1], 64, needs=frozenset({"attention_sum", "rope"}))


def settings(name):
    """The format in all layers."""
    return {"name": name, "plain_layers": 0} if name == "turboquant" else name


def resolve(entry, tokens, compressed=COMPRESSED, new=NEW):
    return build(entry).resolve(Shape(compressed, new, LAYERS, DIM), Budget(tokens=tokens))


def run(model, snapshot, cells, rows=12, kl=False, question=(), new=NEW, last=PROMPT[-1]):
    return decode_cells(
        model, snapshot, list(question), last, cells, DecodeOptions(new, batch_rows=rows, kl=kl)
    )


@pytest.mark.parametrize("chunk", [40, 299])
def test_attention_sum_and_queries_are_those_of_an_eager_model(model, eager, chunk):
    needs = frozenset({"attention_sum", "queries"})
    found = prefill(model, PROMPT[:-1], 8, chunk, needs=needs)
    with torch.inference_mode():
        exact = eager(torch.tensor([PROMPT[:-1]]), output_attentions=True).attentions
    for layer, attention in zip(found.layers, exact, strict=True):
        assert layer.q_QWD.shape[1] == len(PROMPT) - 1
        assert torch.allclose(layer.attention_sum_QT, attention[0].sum(1), atol=1e-3)
        assert torch.allclose(layer.window_scores(5), attention[0, :, -5:].sum(1), atol=1e-4)


def test_a_snapshot_holds_only_what_is_needed(model):
    layer = prefill(model, PROMPT[:-1], 8).layers[0]
    assert layer.attention_sum_QT is None and layer.rope is None and layer.q_QWD.shape[1] == 8


def test_rotations_add_up_and_are_those_of_the_model(model):
    rope, x = rope_of(model), torch.randn(2, 5, DIM)
    positions = torch.tensor([0, 3, 17, 100, 299])
    cos, sin = model.base_model.rotary_emb(x, positions[None])
    exact, _ = apply_rotary_pos_emb(x[None], x[None], cos, sin)
    rotated = rotate(x, *rope(positions))
    assert torch.allclose(rotated, exact[0], atol=1e-5)
    assert torch.allclose(rotate(rotated, *rope(-positions)), x, atol=1e-4)
    assert torch.allclose(
        rotate(rotated, *rope(7 - positions)), rotate(x, *rope(torch.tensor([7] * 5))), atol=1e-4
    )


def test_boundaries_are_ends_of_sentences_and_clauses(tiny_model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir("llama", group=GROUP, layers=LAYERS))
    text = 'Pi is 3.14, or so. "Is it?" Yes\nx'
    marks = boundaries(tokenizer, tokenizer(text)["input_ids"])
    found = [(text[i], int(m)) for i, m in enumerate(marks) if m]
    assert found == [(",", 1), (".", 2), ("\n", 2)]  # one token per byte: the mark before a quote is not free


class Reference:
    """Greedy decoding with transformers' eager attention on a cache that is cut after each step."""

    def __init__(self, eager, snapshot, kept, sums=None):
        self.eager, self.cache, self.sums = eager, DynamicCache(), sums
        with torch.inference_mode():
            eager(input_ids=torch.tensor([PROMPT[:-1]]), past_key_values=self.cache)
        self.cut([torch.stack(k.positions) for k in kept])

    def cut(self, positions_per_layer):
        for n, (layer, stay) in enumerate(zip(self.cache.layers, positions_per_layer, strict=True)):
            index = stay[None, :, :, None].expand(-1, -1, -1, DIM)
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
            if self.sums is not None:
                self.sums[n] = self.sums[n].gather(1, stay)

    def decode(self, choose, position=None):
        token, ids = PROMPT[-1], []
        for step in range(NEW):
            held = self.cache.layers[0].keys.shape[2]
            place = len(PROMPT) - 1 + step if position is None else position
            with torch.inference_mode():
                out = self.eager(
                    input_ids=torch.tensor([[token]]),
                    position_ids=torch.tensor([[place]]),
                    attention_mask=torch.ones(1, held + 1, dtype=torch.long),
                    past_key_values=self.cache,
                    output_attentions=True,
                )
            token = int(out.logits[0, -1].argmax())
            ids.append(token)
            probs = [a[0, :, 0].unflatten(0, (HEADS, GROUP)) for a in out.attentions]
            if self.sums is not None:
                self.sums = [
                    torch.nn.functional.pad(s, (0, 1)) + p.sum(1)
                    for s, p in zip(self.sums, probs, strict=True)
                ]
            self.cut([choose(n, p) for n, p in enumerate(probs)])
        return ids


def kept_by(cell, snapshot):
    kept = []
    for layer in snapshot.layers:
        kept.append(
            cell.eviction.keep(layer, cell.eviction.scores(layer), Quota(cell.rules[0].keep, earlier=kept))
        )
    return kept


def without(dropped_H, count):
    stay = torch.arange(count).expand(HEADS, -1)
    return stay[stay != dropped_H[:, None]].view(HEADS, count - 1)


def test_h2o_evicts_at_each_step_as_an_eager_model_would(model, eager, snapshot):
    cell = resolve({"method": "h2o"}, 40)
    kept = kept_by(cell, snapshot)
    sums = []
    for layer, one in zip(snapshot.layers, kept, strict=True):
        total = layer.attention_sum_QT.unflatten(0, (HEADS, GROUP)).sum(1)
        sums.append(total.gather(1, torch.stack(one.positions)))
    reference = Reference(eager, snapshot, kept)
    reference.sums = sums

    def choose(layer, probs):
        return without(reference.sums[layer][:, : 41 - 20].argmin(-1), 41)

    assert run(model, snapshot, [cell]).cells[0].ids == reference.decode(choose)


def test_tova_evicts_at_each_step_as_an_eager_model_would(model, eager, snapshot):
    cell = resolve({"method": "tova"}, 40)
    reference = Reference(eager, snapshot, kept_by(cell, snapshot))

    def choose(layer, probs):
        return without(probs.mean((0, 1)).argmin().expand(HEADS), 41)

    assert run(model, snapshot, [cell]).cells[0].ids == reference.decode(choose)


def test_reindexed_streaming_equals_positions_inside_the_cache(model, eager, snapshot):
    cell = resolve({"method": "streaming_llm", "positions": "reindexed"}, 40)
    kept = kept_by(cell, snapshot)
    reference = Reference(eager, snapshot, kept)
    rope = rope_of(model)
    # each step rotates every key to its index in the cache and the query to the end
    targets = torch.arange(40)
    for layer in reference.cache.layers:
        layer.keys = rotate(layer.keys, *rope(targets - kept[0].positions[0]))

    def choose(layer, probs):
        keys = reference.cache.layers[layer].keys
        rotated = rotate(keys[:, :, 5:], *rope(torch.tensor([-1] * 36)))
        reference.cache.layers[layer].keys = torch.cat([keys[:, :, :5], rotated], 2)
        return without(torch.tensor([4] * HEADS), 41)

    assert run(model, snapshot, [cell]).cells[0].ids == reference.decode(choose, position=40)


@pytest.mark.parametrize("format", ["native", "fp16", "fp8_e4m3"])
def test_rounding_of_reindexed_sinks_does_not_add_up(model, snapshot, format):
    entry = {"method": "streaming_llm", "positions": "reindexed", "format": {"name": format}}
    cell = resolve(entry, 40, new=600)
    cache = build_batch(snapshot, cell, 1, 600)
    lane = cache.batch_layers[0].stored[0]
    if format == "native":
        lane.store.slots[:2] = [x.bfloat16() for x in lane.store.slots[:2]]
    start = lane._read()[0][:, :, :5].clone().float()
    q, new = torch.randn(1, HEADS, GROUP, DIM).to(start.dtype), torch.randn(1, HEADS, 1, DIM)
    for _ in range(500):
        lane.append(new.to(lane.store.slots[0].dtype) if format == "native" else new, new)
        lane.attend(q.to(lane.store.read()[0].dtype), 0.25, selecting=True)
    rotated = rotate(start[:, :, :4], *rope_of(model)(torch.tensor([500])))
    error = (lane._read()[0][:, :, :4].float() - rotated).norm() / rotated.norm()
    assert error < {"native": 2**-8, "fp16": 1e-6, "fp8_e4m3": 1e-6}[format]


@pytest.mark.parametrize("entry", STEPPING, ids=lambda e: e["method"])
def test_memory_stays_constant_while_decoding(model, snapshot, entry):
    cell = resolve(entry, 40)
    cache = build_batch(snapshot, cell, 2, NEW)
    places = [
        [x.data_ptr() for x in lane.store.slots] for layer in cache.batch_layers for lane in layer.stored
    ]
    result = run(model, snapshot, [cell]).cells[0]
    carried = 4 * HEADS * LAYERS * 40 if entry["method"] == "h2o" else 0
    assert result.resident == result.resident_end == SLOT * 40 + carried
    assert result.read == SLOT * 41 + carried // 40 * 41
    for step in range(4):
        position = torch.full((2, 1), len(PROMPT) + step)
        with torch.inference_mode():
            model(input_ids=torch.tensor([[5], [6]]), position_ids=position, past_key_values=cache)
        lanes = [lane for layer in cache.batch_layers for lane in layer.stored]
        assert [[x.data_ptr() for x in lane.store.slots] for lane in lanes] == places
        assert all(x.shape[2] == 41 for lane in lanes for x in lane.store.slots)
        assert {lane.store.count for lane in lanes} == {40} and cache.recordable


@pytest.mark.parametrize("entry", STEPPING, ids=lambda e: e["method"])
def test_a_prompt_below_the_budget_grows_to_it_and_no_further(model, snapshot, entry):
    cell = resolve(entry, len(PROMPT) + 3)
    assert not cell.dense and cell.rules[0].keep is None
    result = run(model, snapshot, [cell])
    assert result.cells[0].resident_end >= SLOT * (len(PROMPT) + 3)
    assert result.cells[0].resident_end < SLOT * (len(PROMPT) + 3) * 1.05
    assert result.cells[0].ids[:4] == result.dense.ids[:4]  # nothing is dropped before


@pytest.mark.parametrize("entry", STEPPING, ids=lambda e: e["method"])
def test_a_question_is_read_whole_and_then_counts_within_the_budget(model, entry):
    question = PROMPT[-21:-1]
    context = prefill(model, PROMPT[:-21], 64, needs=frozenset({"attention_sum", "rope"}))
    cell = resolve(entry, 40, compressed=len(PROMPT) - 21, new=NEW + len(question))
    result = run(model, context, [cell], question=question).cells[0]
    assert result.kept == 40 and result.resident_end == result.resident


@pytest.mark.parametrize("count", [1, 20])
def test_the_question_is_stored_in_the_format_and_is_no_step(model, count):
    question = PROMPT[-1 - count : -1]
    context = prefill(model, PROMPT[: -1 - count], 64)
    method = build({"format": "fp16"})
    cell = method.resolve(Shape(context.length, NEW + count, LAYERS, DIM), None)
    result = run(model, context, [cell], question=question)
    assert result.cells[0].resident_end == SLOT // 2 * (COMPRESSED + NEW)
    assert result.cells[0].read == SLOT // 2 * (COMPRESSED + (NEW + 1) / 2)
    assert result.cells[0].ids == result.dense.ids


def test_stepping_rows_do_not_depend_on_neighbours_or_kernels(model, snapshot):
    entries = [*STEPPING, {"method": "snapkv", "window": 8}, {"method": "h2o", "format": "fp8_e4m3"}]
    cells = [resolve(entry, 40) for entry in entries]
    together = run(model, snapshot, cells, kl=True)
    assert len({tuple(c.ids) for c in together.cells}) == len(cells)
    for cell, expected in zip(cells, together.cells, strict=True):
        alone = run(model, snapshot, [cell], kl=True).cells[0]
        assert alone.ids == expected.ids and alone.kl == pytest.approx(expected.kl, abs=1e-4)
        assert (alone.read, alone.resident) == (expected.read, expected.resident)
    with using("portable"):
        portable = run(model, snapshot, cells, kl=True)
    assert [c.ids for c in portable.cells] == [c.ids for c in together.cells]


def test_decode_time_eviction_composes_with_selections(model, snapshot):
    alone = run(model, snapshot, [resolve({"method": "h2o"}, 40)]).cells[0]
    entry = {"method": "h2o", "selection": {"name": "topk_oracle"}, "keep": 40}
    everything, some = (run(model, snapshot, [resolve(entry, read)]).cells[0] for read in (41, 10))
    assert everything.ids == alone.ids
    assert some.read < alone.read / 3 and some.resident == alone.resident


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_alone_reads_what_it_stores(model, snapshot, name):
    method = build({"format": settings(name)})
    cell = method.resolve(Shape(COMPRESSED, NEW, LAYERS, DIM), None)
    assert not method.needs_budget and not cell.dense
    result = run(model, snapshot, [cell], kl=True).cells[0]
    per_element = {"b": 2, "f": 1 if "8" in name else 2}.get(name[0])
    if name in PER_TOKEN:
        slot = HEADS * sum(PER_TOKEN[name]) * LAYERS
        assert result.resident == result.resident_bf16 == slot * COMPRESSED
        assert result.resident_end == slot * (COMPRESSED + NEW)
        assert result.read == result.read_bf16 == slot * (COMPRESSED + (NEW + 1) / 2)
    elif per_element:
        scales = 2 * 4 * LAYERS if per_element == 1 else 0
        slot = SLOT // 4 * per_element
        assert result.resident == result.resident_bf16 == slot * COMPRESSED + scales
        assert result.resident_end == slot * (COMPRESSED + NEW) + scales
        assert result.read == result.read_bf16 == slot * (COMPRESSED + (NEW + 1) / 2) + scales
    else:
        assert result.resident_bf16 < result.resident < SLOT * len(PROMPT)
    limit = {"bf16": 0.01, "fp16": 0.001, "fp8_e4m3": 0.3, "int8": 0.02}.get(name, 5)
    assert 0 < result.kl < limit


def test_wider_formats_are_closer_to_dense(model, snapshot):
    kl = {}
    for name in FORMATS:
        cell = build({"format": settings(name)}).resolve(Shape(COMPRESSED, NEW, LAYERS, DIM), None)
        kl[name] = run(model, snapshot, [cell], kl=True).cells[0].kl
    assert kl["fp16"] < kl["bf16"] < kl["fp8_e4m3"] < kl["fp8_e5m2"]
    assert kl["int8"] < kl["int4"] < kl["int2"]
    assert kl["int8_token"] < kl["int4_token"] and kl["fp8_token"] < kl["int4_token"]


@pytest.mark.parametrize("name", ["native", *FORMATS])
@pytest.mark.parametrize(
    "entry",
    [
        {"method": "snapkv", "window": 8},
        {"method": "snapkv", "window": 8, "heads": "query_head"},
        {"method": "adakv", "window": 8, "heads": "kv_head"},
        {"method": "quest", "page": 4, "dense_layers": 1},
        {"method": "topk_oracle", "heads": "query_head"},
        {"method": "chunkkv", "window": 8, "selection": {"name": "hsa"}},
        {"method": "snapkv", "window": 8, "heads": "query_head", "selection": "hsa", "keep": 200},
        {"method": "adakv", "window": 8, "heads": "query_head", "selection": "topk_oracle", "keep": 200},
        {"method": "rocketkv", "window": 8},
    ],
    ids=lambda e: "-".join(map(str, e.values()))[:30],
)
def test_formats_compose_with_evictions_and_selections(model, snapshot, entry, name):
    exact = run(model, snapshot, [resolve(entry, 160)], kl=True)
    stored = run(model, snapshot, [resolve({**entry, "format": settings(name)}, 160)], kl=True).cells[0]
    native = exact.cells[0]
    assert stored.kept == native.kept
    if name == "native":
        assert stored == native
        return
    assert stored.resident < native.resident and stored.read < native.read
    if name in ("fp16", "int8"):
        assert stored.kl == pytest.approx(native.kl, rel=0.3, abs=0.02)


def test_format_of_a_covered_budget_is_not_dense(model, snapshot):
    cell = resolve({"method": "snapkv", "format": "int4"}, 10**6)
    assert not cell.dense and cell.covers_prompt
    assert run(model, snapshot, [cell], kl=True).cells[0].kl > 0


def test_covered_native_budgets_equal_dense_for_evictions_that_step(model, snapshot):
    for entry in STEPPING:
        assert resolve(entry, len(PROMPT) - 1 + NEW).dense


def test_groups_of_tokens_and_decode_time_eviction_exclude_each_other():
    with pytest.raises(UserError, match="format: int4 stores tokens in groups"):
        build({"method": "h2o", "format": "int4"})
    build({"method": "h2o", "format": "fp8_e5m2"})


def test_evictions_while_decoding_give_what_they_gave(model, snapshot):
    """Tokens, divergence and bytes of the code before evictions had intervals."""
    before = json.loads(Path(__file__).with_name("while_decoding.json").read_text())
    cells = [resolve(one["entry"], one["tokens"], new=40) for one in before]
    found = run(model, snapshot, cells, rows=16, kl=True, new=40).cells
    for one, cell in zip(before, found, strict=True):
        assert cell.ids == one["ids"] and cell.resident_end == one["resident_end"]
        assert cell.kl == pytest.approx(one["kl"], abs=2e-5) and cell.read == pytest.approx(
            one["read"], abs=1e-2
        )


EVERY_SO_OFTEN = [
    ({"method": "decode_every", "scorer": "knorm", "interval": 3}, 40),
    ({"method": "decode_every", "scorer": "expected_attention", "prefill": "snapkv", "interval": 4}, 40),
    ({"method": "decode_every", "scorer": "snapkv", "interval": 1, "format": "int8_token"}, 60),
    ({"method": "decode_every", "scorer": "tova", "interval": 2, "selection": "topk_oracle", "keep": 80}, 20),
    ({"method": "rkv", "interval": 4}, 40),
    ({"method": "rpc", "interval": 4, "window": 3}, None),
]


def resolved(entry, tokens):
    budget = None if tokens is None else Budget(tokens=tokens)
    return build(entry).resolve(Shape(COMPRESSED, NEW, LAYERS, DIM), budget)


def test_evictions_with_an_interval_compress_alone_as_in_a_batch(model, snapshot):
    cells = [resolved(*one) for one in EVERY_SO_OFTEN]
    together = run(model, snapshot, cells, rows=16, kl=True).cells
    for cell, found in zip(cells, together, strict=True):
        alone = run(model, snapshot, [cell], rows=16, kl=True).cells[0]
        assert alone == found and found.kl > 1e-4
    # a question belongs to the prompt, which rpc leaves alone
    asked = run(model, snapshot, cells, question=PROMPT[20:40], kl=True).cells
    rpc = asked[-1]
    slot = 2 * HEADS * DIM * 4 * LAYERS
    # after two cuts: a quarter of two periods, the last three, and one more
    held = COMPRESSED + 20 + 2 * (4 // 4) + 3 + (NEW - 3) % 4
    assert rpc.resident_end == slot * held + LAYERS * 3 * HEADS * GROUP * DIM * 4


def test_a_budget_that_covers_the_answer_is_dense():
    for entry, _ in EVERY_SO_OFTEN[:-1]:
        if "keep" not in entry and "format" not in entry:
            assert resolved(entry, COMPRESSED + NEW).dense and not resolved(entry, COMPRESSED + NEW - 1).dense
