"""The engine compared with decoding by transformers and its caches, and with itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache

from kvbench.engine import decode, dense_answer
from kvbench.engine.attention import register_attention
from kvbench.engine.batch import BatchLayer
from kvbench.engine.compress import AuditError, audit
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.draw import Draw
from kvbench.engine.forced import Rows
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


def along(model, cell, tokens, snapshot=None):
    """The logits of a cell, None for dense, that is fed these tokens after the prompt's last one."""
    rows = Rows(model, snapshot or prefill(model, PROMPT[:-1], 64), [cell], len(tokens) + 1)
    found = []
    rows.feed({0: [PROMPT[-1], *tokens]}, lambda logits, at, _: found.extend(logits[: len(at)].clone()))
    return torch.stack(found)


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
    ours = run(model, [cell], snapshot)
    tokens, logits = reference(model, [k.positions for k in kept])
    assert ours.cells[0].ids == tokens
    assert torch.allclose(along(model, cell, tokens[:-1], snapshot), logits, atol=1e-3)


@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("question", [[], PROMPT[-21:-1]], ids=["aware", "agnostic"])
def test_a_cell_is_bitwise_the_same_alone_and_among_others_in_any_order_and_blocks(llama, kl, question):
    compressed = COMPRESSED - len(question)
    cells = [resolve(llama, *entry, compressed=compressed) for entry in ENTRIES]
    snapshot = prefill(llama, PROMPT[:compressed], 64)
    options = {"kl": kl, "question": question, "rows": 3}
    many = run(llama, cells, snapshot, **options)
    ways = {"reversed": run(llama, cells[::-1], snapshot, **options).cells[::-1]}
    ways["a block each"] = run(llama, cells, snapshot, **options, block_bytes=1).cells
    ways["some"] = run(llama, cells[3:9], snapshot, **options).cells
    ways["alone"] = [run(llama, [cell], snapshot, **options).cells[0] for cell in cells]
    for name, found in ways.items():
        assert found == (many.cells[3:9] if name == "some" else many.cells), name
    assert len({tuple(cell.ids) for cell in many.cells}) > 7, (
        "the methods must differ here, or the test shows nothing"
    )
    assert {cell.kl is not None for cell in many.cells} == {kl}


def test_kl_changes_no_answer(llama):
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    with_kl, without = run(llama, cells, kl=True), run(llama, cells)
    assert [c.ids for c in with_kl.cells] == [c.ids for c in without.cells]
    for a, b in zip(with_kl.cells, without.cells, strict=True):
        assert (a.read, a.resident_end, a.stop) == (b.read, b.resident_end, b.stop)


@pytest.mark.parametrize("draw", [None, Draw(0.7, 0.95, "0/1")], ids=["greedy", "draw"])
def test_an_answer_that_parts_from_dense_is_that_of_free_steps(llama, draw):
    """What a cell says after it has parted is what it says when it is fed its own tokens from the start."""
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    result = run(llama, cells, kl=True, draw=draw)
    choose, parted = DecodeOptions(NEW, draw=draw).choose, 0
    for cell, out in zip(cells, result.cells, strict=True):
        assert choose(along(llama, cell, out.ids[:-1]), range(NEW)).tolist() == out.ids
        parted += out.ids[:-1] != result.dense.ids[:-1]
    assert parted > 7


def test_dense_and_its_log_probabilities_in_parts_change_nothing(llama, monkeypatch):
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    whole = run(llama, cells, kl=True)
    # three steps of log probabilities at a time
    monkeypatch.setattr(decode, "REFERENCE_BYTES", 3 * 4 * llama.config.vocab_size)
    parts = run(llama, cells, kl=True)
    blocks = run(llama, cells, kl=True, block_bytes=1)
    assert parts == replace(
        whole, compress_seconds=parts.compress_seconds, decode_seconds=parts.decode_seconds
    )
    assert blocks.cells == whole.cells


class SingleRowsDiffer:
    """A model whose products of one row make another token the most likely one at some calls."""

    def __init__(self, model, calls):
        self.model, self.calls, self.seen = model, calls, 0
        self.device, self.config, self.base_model = model.device, model.config, model.base_model
        self.modules = model.modules

    def __call__(self, **kwargs):
        result = self.model(**kwargs)
        if len(kwargs["input_ids"]) == 1:
            if self.seen in self.calls:
                result.logits[0, -1, (int(result.logits[0, -1].argmax()) + 1) % 250] = 1e3
            self.seen += 1
        return result


def whole(cell):
    """The cell with budgets that keep and read everything, so that its cache is dense's."""
    rules = [replace(rule, keep=None, read=None) for rule in cell.rules]
    return replace(cell, rules=rules)


@pytest.mark.parametrize(
    "options",
    [{}, {"kl": True}, {"kl": True, "first_token": "dense"}, {"draw": Draw(0.7, 0.95, "0/1")}],
    ids=["plain", "kl", "first_token", "draw"],
)
@pytest.mark.parametrize("calls", [{0}, {NEW - 2}, {1, 2, 9, 20}, range(99)], ids=str)
def test_a_near_tie_of_single_rows_parts_no_equal_cache_from_dense(llama, calls, options):
    cells = [whole(resolve(llama, *ENTRIES[2])), resolve(llama, *ENTRIES[3])]
    snapshot = prefill(llama, PROMPT[:-1], 64)
    expected = run(llama, cells, snapshot, **options)
    other = SingleRowsDiffer(llama, calls)
    found = run(other, cells, snapshot, **options)
    assert found.dense == expected.dense and found.cells == expected.cells
    assert found.cells[0].ids == found.dense.ids and found.cells[0].kl == (0.0 if "kl" in options else None)
    assert other.seen >= NEW - 1


@pytest.mark.parametrize("question", [[], PROMPT[-21:-1]], ids=["aware", "agnostic"])
def test_dense_holds_the_prompt_and_no_question_after_compression(llama, question):
    snapshot = prefill(llama, PROMPT[: COMPRESSED - len(question)], 64)
    held = run(llama, [], snapshot, question=question).dense
    size = sum(layer.k_HTD.nbytes + layer.v_HTD.nbytes for layer in snapshot.layers)
    assert held.resident == size
    assert held.resident_end == size * (COMPRESSED + NEW) // snapshot.length


def test_the_attention_of_dense_is_that_of_the_answer_that_holds(llama):
    found = []
    for model in (llama, SingleRowsDiffer(llama, {2, 4, 7})):
        snapshot = prefill(llama, PROMPT[:-1], 64)
        decode_dense_answer(model, snapshot, [], PROMPT[-1], DecodeOptions(NEW))
        found.append([layer.answer_sum_QT for layer in snapshot.layers])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and float(a.sum(-1).min()) > NEW - 5


def test_a_long_answer_is_drafted_in_parts(llama, monkeypatch):
    cells = [resolve(llama, *ENTRIES[2])]
    once = run(llama, cells, kl=True)
    monkeypatch.setattr(dense_answer, "PASS_ROWS", 5)
    parts = run(llama, cells, kl=True)
    assert (parts.dense, parts.cells) == (once.dense, once.cells)


def test_a_used_snapshot_equals_a_fresh_one_bit_for_bit(llama):
    cells = [resolve(llama, *entry) for entry in ENTRIES]
    used = prefill(llama, PROMPT[:-1], 64)
    run(llama, cells, used, kl=True)
    again = run(llama, cells, used, kl=True)
    assert again.cells == run(llama, cells, prefill(llama, PROMPT[:-1], 64), kl=True).cells


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
    result = run(llama, [cell], kl=True)
    log_p, log_q = (along(llama, c, result.dense.ids[:-1]).double().log_softmax(-1) for c in (None, cell))
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
