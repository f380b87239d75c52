"""The engine compared with decoding by transformers and its caches, and with itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache

from kvbench.engine.attention import register_attention
from kvbench.engine.batch import BatchLayer
from kvbench.engine.compress import AuditError, assign_rows, audit
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.prefill import prefill
from kvbench.kernels.forms import using
from kvbench.kernels.pool import pool
from kvbench.kernels.sparse_decode import cpu
from kvbench.methods import Budget, Kept, Quota, Shape, build

NEW = 12
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(300)]
COMPRESSED = len(PROMPT) - 1
ENTRIES = [
    ({"method": "random"}, 40),
    ({"method": "streaming_llm", "positions": "original"}, 40),
    ({"method": "snapkv", "window": 8}, 40),
    ({"method": "snapkv", "window": 8}, 100),
    ({"method": "snapkv", "window": 8, "heads": "query_head"}, 40),
    ({"method": "chunkkv", "window": 8, "n_reuse": 2}, 64),
    ({"method": "chunkkv", "mode": "kvpress", "window": 16, "kernel": 5, "chunk": 20}, 64),
    ({"method": "quest", "page": 4, "dense_layers": 1}, 32),
    ({"method": "topk_oracle"}, 16),
    ({"method": "topk_oracle", "heads": "query_head"}, 16),
    ({"method": "rocketkv", "window": 8}, 48),
    ({"method": "sparq", "channels": 6}, 32),
    ({"method": "sparq", "channels": 6, "reallocate": False}, 32),
    ({"method": "chunkkv", "window": 8, "selection": {"name": "quest", "page": 4, "dense_layers": 0}}, 60),
    ({"method": "snapkv", "window": 8, "heads": "query_head", "selection": "hsa", "keep": 90}, 40),
    ({"method": "adakv", "window": 8, "heads": "query_head", "selection": "sparq", "keep": 90}, 40),
]


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3"])
def model(request, tiny_model_dir):
    return load(tiny_model_dir(request.param))


@pytest.fixture(scope="module")
def llama(tiny_model_dir):
    return load(tiny_model_dir("llama", group=3, layers=4))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


def eager(model):
    """The same weights with transformers' eager attention."""
    twin = AutoModelForCausalLM.from_pretrained(model.name_or_path, attn_implementation="eager")
    return twin.eval()


def resolve(model, entry, tokens, compressed=COMPRESSED, new=NEW):
    config = model.config
    shape = Shape(compressed, new, config.num_hidden_layers, config.head_dim)
    return build(entry).resolve(shape, Budget(tokens=tokens))


def run(model, cells, snapshot=None, rows=16, kl=False, question=(), prompt=PROMPT, **options):
    snapshot = snapshot or prefill(model, prompt[: len(prompt) - 1 - len(question)], 64)
    return decode_cells(
        model,
        snapshot,
        list(question),
        prompt[-1],
        cells,
        DecodeOptions(NEW, batch_rows=rows, kl=kl, **options),
    )


def reference(model, positions_per_layer, prompt=PROMPT, steps=NEW):
    """Greedy tokens of an eager model whose cache was cut to the given positions per layer and KV head."""
    twin, cache = eager(model), DynamicCache()
    with torch.inference_mode():
        twin(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache)
        for layer, positions in zip(cache.layers, positions_per_layer, strict=True):
            if positions is not None:
                layer.keys = torch.stack([layer.keys[:, h, p] for h, p in enumerate(positions)], dim=1)
                layer.values = torch.stack([layer.values[:, h, p] for h, p in enumerate(positions)], dim=1)
        token, out, logits = prompt[-1], [], []
        for step in range(steps):
            kept = cache.layers[0].keys.shape[2]
            answer = twin(
                input_ids=torch.tensor([[token]]),
                position_ids=torch.tensor([[len(prompt) - 1 + step]]),
                attention_mask=torch.ones(1, kept + 1, dtype=torch.long),
                past_key_values=cache,
            ).logits[0, -1]
            token = int(answer.argmax())
            out.append(token)
            logits.append(answer)
    return out, torch.stack(logits)


class Recorder:
    """A model that records the logits of every decode step."""

    def __init__(self, model):
        self.model, self.device, self.base_model, self.seen = model, model.device, model.base_model, []

    def __call__(self, **kwargs):
        result = self.model(**kwargs)
        self.seen.append(result.logits[:, -1].clone())
        return result


@pytest.mark.parametrize("chunk", [37, 128, 299])
def test_prefill_in_chunks_equals_eager(model, chunk):
    whole = prefill(model, PROMPT[:-1], 64, chunk=512)
    parts = prefill(model, PROMPT[:-1], 64, chunk=chunk)
    cache = DynamicCache()
    with torch.inference_mode():
        expected = eager(model)(input_ids=torch.tensor([PROMPT[:-1]]), past_key_values=cache).logits[0, -1]
    assert torch.allclose(whole.logits, expected, atol=2e-4)
    assert torch.allclose(parts.logits, expected, atol=2e-4)
    for ours, again, theirs in zip(whole.layers, parts.layers, cache.layers, strict=True):
        assert torch.allclose(ours.k_HTD, theirs.keys[0], atol=1e-4)
        assert torch.allclose(again.v_HTD, theirs.values[0], atol=1e-4)
        assert torch.allclose(ours.q_QWD, again.q_QWD, atol=1e-4)
        assert ours.k_HTD.shape[0] == model.config.num_key_value_heads


def test_dense_decodes_as_eager(model):
    assert run(model, []).dense.ids == reference(model, [None] * 3)[0]


@pytest.mark.parametrize("entry", [ENTRIES[1], ENTRIES[2], ENTRIES[5]], ids=lambda e: e[0]["method"])
def test_evictions_decode_as_an_eager_model_on_the_cut_cache(model, entry):
    cell = resolve(model, *entry)
    snapshot = prefill(model, PROMPT[:-1], 64)
    kept: list[Kept] = []
    for layer in snapshot.layers:
        scores = cell.eviction.scores(layer)
        kept.append(cell.eviction.keep(layer, scores, Quota(cell.rules[layer.layer].keep, earlier=kept)))
    recorder = Recorder(model)
    ours = run(recorder, [cell], snapshot)
    tokens, logits = reference(model, [k.positions for k in kept])
    assert ours.cells[0].ids == tokens
    assert torch.allclose(torch.stack(recorder.seen)[:, 1], logits, atol=1e-3)


def test_many_cells_together_equal_each_alone(llama):
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    snapshot = prefill(llama, PROMPT[:-1], 64)
    together, alone = Recorder(llama), Recorder(llama)
    many = run(together, cells, snapshot, rows=32)
    for row, cell in enumerate(cells):
        alone.seen.clear()
        one = run(alone, [cell], snapshot)
        assert one.cells[0].ids == many.cells[row].ids, ENTRIES[row]
        difference = torch.stack(alone.seen)[:, 1] - torch.stack(together.seen)[:, row + 1]
        assert float(difference.abs().max()) < 1e-3
        assert one.cells[0].resident == many.cells[row].resident
        assert one.cells[0].read == many.cells[row].read
    assert len({tuple(cell.ids) for cell in many.cells}) > 7, (
        "the methods must differ here, or the test shows nothing"
    )


def test_more_cells_than_rows_go_to_further_batches(llama):
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    wide, narrow = run(llama, cells, rows=32, kl=True), run(llama, cells, rows=4, kl=True)
    assert [c.ids for c in narrow.cells] == [c.ids for c in wide.cells]
    for a, b in zip(narrow.cells, wide.cells, strict=True):
        assert a.kl == pytest.approx(b.kl, abs=1e-4) and a.agree == b.agree


def test_a_used_snapshot_equals_a_fresh_one_bit_for_bit(llama):
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    used = prefill(llama, PROMPT[:-1], 64)
    run(llama, cells, used)
    again, fresh = Recorder(llama), Recorder(llama)
    run(again, cells, used)
    run(fresh, cells, prefill(llama, PROMPT[:-1], 64))
    assert torch.equal(torch.stack(again.seen), torch.stack(fresh.seen))


def test_portable_and_compiled_kernels_give_the_same_tokens(llama):
    if not cpu.available():
        pytest.skip("no C++ compiler")
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    compiled = run(llama, cells, kl=True, rows=32)
    with using("portable"):
        portable = run(llama, cells, kl=True, rows=32)
    for a, b in zip(compiled.cells, portable.cells, strict=True):
        assert a.ids == b.ids and a.kl == pytest.approx(b.kl, abs=1e-4)
        assert a.read == b.read and a.resident == b.resident


def test_kl_is_the_divergence_over_the_tokens_of_dense(llama):
    cell = resolve(llama, *ENTRIES[2])
    recorder = Recorder(llama)
    result = run(recorder, [cell], prefill(llama, PROMPT[:-1], 64), kl=True)
    log_p = torch.stack(recorder.seen)[:, 0].double().log_softmax(-1)
    log_q = torch.stack(recorder.seen)[:, 2].double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    out = result.cells[0]
    assert out.kl_tokens == NEW and out.kl == pytest.approx(float(expected), rel=1e-4)
    assert out.kl > 1e-3
    assert out.agree == pytest.approx(float((log_p.argmax(-1) == log_q.argmax(-1)).float().mean()))


def test_the_teacher_forced_row_of_a_method_that_changes_nothing_has_no_divergence(llama):
    nothing_evicted = resolve(llama, {"method": "snapkv", "window": 8}, len(PROMPT) - 1)
    assert not nothing_evicted.dense and nothing_evicted.covers_prompt
    result = run(llama, [nothing_evicted], kl=True)
    assert result.cells[0].kl < 1e-6 and result.cells[0].ids == result.dense.ids


def test_end_tokens_stop_a_row_and_are_counted_in_kl(llama):
    free = run(llama, [])
    stop = free.dense.ids[4]
    first = free.dense.ids.index(stop)
    result = run(llama, [resolve(llama, *ENTRIES[2])], kl=True, eos=frozenset([stop]))
    assert result.dense.ids == free.dense.ids[: first + 1] and result.dense.stop == "eos"
    assert result.cells[0].kl_tokens == first + 1


@pytest.fixture(scope="module", params=["compressed", "dense"])
def free_answers(request, llama):
    """Answers of dense and three methods that nothing ends, and how to repeat them with end tokens."""
    snapshot = prefill(llama, PROMPT[:-1] if request.param == "compressed" else PROMPT, 64)
    compressed = snapshot.length
    cells = [resolve(llama, *ENTRIES[n], compressed=compressed) for n in (0, 2, 10)]

    def answers(eos=frozenset()):
        found = run(llama, cells, snapshot, eos=eos, first_token=request.param)
        return [found.dense, *found.cells]

    return answers, answers()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_answer_ends_with_the_first_end_token_of_any_set(free_answers, data):
    answers, free = free_answers
    said = sorted({token for answer in free for token in answer.ids})
    eos = data.draw(st.frozensets(st.sampled_from([*said, 257, 258]), max_size=4))
    for found, whole in zip(answers(eos), free, strict=True):
        ends = [n for n, token in enumerate(whole.ids) if token in eos]
        assert len(whole.ids) == NEW
        assert found.ids == (whole.ids[: ends[0] + 1] if ends else whole.ids)
        assert found.stop == ("eos" if ends else "length")


def test_a_text_stops_a_row_and_dense_continuation_with_it(llama):
    free = run(llama, [resolve(llama, *ENTRIES[2])], kl=True)
    short = run(llama, [resolve(llama, *ENTRIES[2])], kl=True, ends=lambda ids: len(ids) == 3)
    for out, whole in ((short.dense, free.dense), (short.cells[0], free.cells[0])):
        assert out.ids == whole.ids[:3] and out.stop == "string"
    assert short.cells[0].kl_tokens == 3 and free.cells[0].kl_tokens == NEW


def test_question_after_the_compressed_context_reads_all_that_was_kept(llama):
    question = PROMPT[-21:-1]
    dense = run(llama, [], question=question).dense.ids
    assert dense == reference(llama, [None] * 4)[0]
    oracle = resolve(llama, {"method": "topk_oracle"}, 10**6)
    everything = run(llama, [oracle], question=question).cells[0].ids
    assert everything == dense
    cell = resolve(
        llama, {"method": "streaming_llm", "positions": "original"}, 100, compressed=len(PROMPT) - 21
    )
    cut = run(llama, [cell], question=question)
    assert cut.cells[0].kept == 100
    slot = 2 * 2 * 16 * 4 * 4  # K and V, KV heads, channels, bytes, layers
    assert cut.cells[0].read == slot * (100 + 20 + (NEW + 1) / 2)


def test_bytes_are_those_of_the_tensors(llama):
    layers, heads, dim = 4, 2, 16
    slot = 2 * heads * dim * 4 * layers
    prompt = len(PROMPT) - 1
    cells = [resolve(llama, *e) for e in (ENTRIES[2], ENTRIES[7], ENTRIES[10])]
    result = run(llama, cells)
    dense, snap, quest, rocket = result.dense, *result.cells
    mean_tail = (NEW + 1) / 2
    assert dense.resident == slot * prompt and dense.resident_end == slot * (prompt + NEW)
    assert dense.read == slot * (prompt + mean_tail)
    assert snap.kept == 40 and snap.resident == slot * 40 and snap.read == slot * (40 + mean_tail)
    pages = -(-(prompt + NEW) // 4)
    bounds = 2 * heads * dim * 4 * pages
    assert quest.resident == slot * prompt + 3 * bounds  # the first layer is dense
    scored = sum(2 * heads * dim * 4 * -(-(prompt + n) // 4) for n in range(1, NEW + 1)) / NEW
    attended = slot // layers * (32 * NEW - sum(-(prompt + n) % 4 for n in range(1, NEW + 1))) / NEW
    assert quest.read == pytest.approx(slot // layers * (prompt + mean_tail) + 3 * (scored + attended))
    page, channels = cells[2].selection.page, cells[2].selection.channels
    keep, read = cells[2].rules[0].keep, cells[2].rules[0].read
    edges = 2 if page > 1 else 1
    assert rocket.kept == keep
    assert rocket.resident == slot * keep + layers * heads * edges * dim * 4 * -(-(keep + NEW) // page)
    scored = sum(heads * channels * 4 * -(-(keep + n) // page) for n in range(1, NEW + 1)) / NEW * layers
    assert rocket.read == pytest.approx(slot * read + scored)


def test_ragged_heads_are_stored_without_padding(llama):
    cell = resolve(llama, *ENTRIES[4])
    result = run(llama, [cell])
    sizes = []
    snapshot = prefill(llama, PROMPT[:-1], 64)
    for layer in snapshot.layers:
        kept = cell.eviction.keep(layer, cell.eviction.scores(layer), Quota(40))
        sizes += [len(p) for p in kept.positions]
    assert len(set(sizes)) > 1
    assert result.cells[0].kept == sum(sizes) / len(sizes)
    assert result.cells[0].resident == sum(sizes) * (2 * 16 * 4 + 3)  # K, V and one byte per query head


def test_first_token_dense_takes_it_from_the_prefill(llama):
    snapshot = prefill(llama, PROMPT, 64)
    cell = resolve(llama, *ENTRIES[2], compressed=len(PROMPT))
    result = decode_cells(
        llama,
        snapshot,
        [],
        PROMPT[-1],
        [cell],
        DecodeOptions(NEW, batch_rows=4, kl=True, first_token="dense"),
    )
    dense = reference(llama, [None] * 4)[0]
    assert result.dense.ids == dense
    assert result.cells[0].ids[0] == dense[0] and len(result.cells[0].ids) == NEW
    assert result.cells[0].kl_tokens == NEW - 1


def test_a_cell_stays_in_one_batch():
    spans, batches = assign_rows(5, batch_rows=4, rows_each=2)
    assert batches == 3
    assert [(s.batch, s.rows.start, s.rows.stop) for s in spans] == [
        (0, 1, 3), (1, 0, 2), (1, 2, 4), (2, 0, 2), (2, 2, 4),
    ]  # fmt: skip


def test_a_cell_that_keeps_too_much_or_repeats_positions_fails_loudly(llama):
    layer = prefill(llama, PROMPT[:-1], 64).layers[0]
    method = build({"method": "snapkv"}).eviction
    few = torch.arange(5)
    for positions in ([few], [few, torch.arange(7)], [few, torch.tensor([1, 1, 2])], [few, few + 297]):
        with pytest.raises(AuditError, match="snapkv, layer 0"):
            audit(Kept(positions), layer, 6, method)
    audit(Kept([few, few]), layer, 5, method)


def test_heads_are_never_expanded_in_storage(llama, monkeypatch):
    shapes = []
    original = BatchLayer.__init__

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        shapes.append(self.k_tail.shape[1])
        shapes.extend(lane.k_BHKD.shape[1] for lane in self.lanes)

    monkeypatch.setattr(BatchLayer, "__init__", spy)
    run(llama, [resolve(llama, *e) for e in ENTRIES])
    assert max(shapes) == llama.config.num_key_value_heads


def test_sparq_with_all_channels_and_tokens_is_dense(llama):
    # one token short of everything, so that the dense path is not taken
    total = len(PROMPT) - 1 + NEW
    cell = resolve(llama, {"method": "sparq", "channels": 16}, total - 1)
    result = run(llama, [cell], kl=True)
    assert result.cells[0].ids == result.dense.ids and result.cells[0].kl < 1e-4


def test_rocketkv_mt_generates_as_rocketkv_and_stores_more_than_dense(llama):
    params = {"window": 8, "format": "native"}
    cells = [resolve(llama, {"method": name, **params}, 48) for name in ("rocketkv", "rocketkv_mt")]
    result = run(llama, cells, kl=True)
    one, many = result.cells
    assert many.ids == one.ids and many.kl == one.kl and many.read == one.read
    assert many.kept == len(PROMPT) - 1 and one.kept < many.kept
    assert many.resident == one.resident + result.dense.resident


def test_rocketkv_of_tensorrt_llm_ranks_the_prefix_alone(llama):
    entry = {"method": "rocketkv_trtllm", "window": 8, "prompt_budget": 60, "pages": 6}
    cell = build(entry).resolve(Shape(len(PROMPT) - 1, NEW, 4, 16), None)
    layer = prefill(llama, PROMPT[:-1], 64).layers[0]
    early = len(PROMPT) - 1 - 8
    q, k = layer.q_QWD[:, -8:].double().unflatten(0, (2, 3)), layer.k_HTD[:, None, :early].double()
    exact = (q @ k.transpose(-1, -2) * 16**-0.5).softmax(-1).sum((1, 2))
    assert torch.allclose(cell.eviction.scores(layer).double(), pool(exact, 63, "max"), atol=1e-5)
    result = run(llama, [cell]).cells[0]
    assert result.kept == 60 and result.ids != run(llama, []).dense.ids
