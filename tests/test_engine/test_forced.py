"""Known tokens fed many steps at once, compared with the same tokens one step at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvbench.engine.attention import register_attention
from kvbench.engine.batch import BatchCache, BatchLayer
from kvbench.engine.compress import cell_lanes
from kvbench.engine.forced import PASS_ROWS, Rows, token_log_probs
from kvbench.engine.lanes import PlacedLane, plain_lane
from kvbench.engine.prefill import prefill
from kvbench.methods import Budget, Shape, build

NEW, LAYERS = 24, 3
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(200)]
TOKENS = [(11 * i * i + 5 * i + 1) % 250 for i in range(NEW)]
QUESTION = PROMPT[-9:]
ENTRIES = [
    ({"method": "snapkv", "window": 8}, 40),
    ({"method": "snapkv", "window": 8, "heads": "query_head"}, 40),
    ({"method": "adakv", "window": 8}, 40),
    ({"method": "quest", "page": 4, "dense_layers": 1}, 32),
    ({"method": "quest", "page": 4, "dense_layers": 0, "heads": "query_head"}, 24),
    ({"method": "topk_oracle"}, 16),
    ({"method": "rocketkv", "window": 8}, 48),
    ({"method": "rocketkv_mt", "window": 8}, 48),
    ({"method": "sparq", "channels": 6}, 32),
    ({"method": "snapkv", "window": 8, "heads": "query_head", "selection": "sparq", "keep": 90}, 40),
    ({"method": "h2o"}, 40),
    ({"method": "tova"}, 30),
    ({"method": "streaming_llm"}, 40),
    ({"method": "h2o", "selection": {"name": "quest", "page": 4, "dense_layers": 0}, "keep": 60}, 24),
    ({"method": "snapkv", "window": 8, "format": "fp8_e4m3"}, 60),
    ({"method": "snapkv", "window": 8, "format": {"name": "int4", "group": 8, "residual": 16}}, 100),
    ({"method": "quest", "page": 4, "dense_layers": 0, "format": "fp8_e4m3"}, 32),
]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=LAYERS)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def snapshot(model):
    return prefill(model, PROMPT, 64, needs=frozenset({"attention_sum", "rope"}))


@pytest.fixture(scope="module")
def exact(tiny_model_dir):
    """Model and snapshot in fp64, where no rounding moves a choice or the code of a quantised number."""
    folder = tiny_model_dir("llama", group=3, layers=LAYERS)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=register_attention(), dtype=torch.float64
    ).eval()
    return model, prefill(model, PROMPT, 64, needs=frozenset({"attention_sum", "rope"}))


def resolve(entry, tokens, new=NEW):
    cell = build(entry).resolve(Shape(len(PROMPT), new, LAYERS, 16), Budget(tokens=tokens))
    assert not cell.dense
    return cell


CELLS = [resolve(*entry) for entry in ENTRIES]


def keep_logits(found):
    def see(logits_RV, rows, steps):
        for row, step, logits in zip(rows, steps, logits_RV, strict=False):
            found.setdefault(row, {})[step] = logits.clone()

    return see


def fed(model, snapshot, cells, tokens=TOKENS, question=(), **options):
    """Rows, and the logits `[N, V]` of each after every token."""
    rows, found = Rows(model, snapshot, cells, len(tokens), question), {}
    rows.feed(dict.fromkeys(range(len(cells)), tokens), keep_logits(found), **options)
    return rows, [torch.stack([found[row][n] for n in range(len(tokens))]) for row in range(len(cells))]


def step_by_step(model, snapshot, cell, tokens=TOKENS, question=()):
    """The logits of one cell that is decoded alone, a token at a time."""
    scores, kept, layers, room = [{} for _ in snapshot.layers], {}, [], len(tokens) + len(question)
    for number, layer in enumerate(snapshot.layers):
        row = slice(0, 1)
        lanes = (
            [plain_lane(layer, row)]
            if cell is None
            else cell_lanes(layer, cell, row, room, scores[number], kept)
        )
        layers.append(BatchLayer(lanes, 1, layer.group, layer.k_HTD, layer.heads, room))
    cache, found = BatchCache(layers, snapshot.length), []
    with torch.inference_mode():
        for given, selecting in ((list(question), False), *(([token], True) for token in tokens)):
            if not given:
                continue
            cache.set_selecting(selecting)
            start = cache.get_seq_length()
            position = torch.arange(start, start + len(given))[None]
            logits = model(
                input_ids=torch.tensor([given]), position_ids=position, past_key_values=cache, use_cache=True
            ).logits[0, -1].float()  # fmt: skip
            found.append(logits)
    return cache, torch.stack(found[-len(tokens) :])


@pytest.mark.parametrize("question", [(), QUESTION], ids=["aware", "agnostic"])
@pytest.mark.parametrize("cell", [None, *CELLS], ids=["dense", *(str(e[0]) for e in ENTRIES)])
def test_many_steps_at_once_are_those_of_one_step_at_a_time(exact, cell, question):
    model, snapshot = exact
    rows, (logits,) = fed(model, snapshot, [cell], question=question)
    cache, expected = step_by_step(model, snapshot, cell, question=question)
    assert torch.allclose(logits, expected, atol=1e-6)
    assert rows.cache.resident(0) == cache.resident(0)
    assert rows.bytes_read(0) == cache.bytes_read(0, NEW)
    assert all(rows.finite(0, NEW)) and len(rows.finite(0, NEW)) == NEW + len(question)


@pytest.mark.parametrize("question", [(), QUESTION], ids=["aware", "agnostic"])
def test_a_row_is_bitwise_the_same_whatever_else_is_fed_and_in_whichever_passes(model, snapshot, question):
    cells = [None, *CELLS]
    _, together = fed(model, snapshot, cells, question=question)
    for number, cell in enumerate(cells):
        _, (alone,) = fed(model, snapshot, [cell], question=question)
        assert torch.equal(alone, together[number]), number
    rows, found = Rows(model, snapshot, cells[::-1], NEW, question), {}
    for low in range(0, NEW, 7):
        rows.feed(dict.fromkeys(range(len(cells)), TOKENS[low : low + 7]), keep_logits(found))
    for number, logits in enumerate(together[::-1]):
        assert torch.equal(torch.stack(list(found[number].values())), logits), number


@pytest.mark.parametrize("question", [(), QUESTION], ids=["aware", "agnostic"])
def test_a_rewound_row_goes_on_as_if_it_had_stopped_there(model, snapshot, question):
    other = TOKENS[::-1]
    cells = [None, *CELLS]
    rows, _ = fed(model, snapshot, cells, question=question)
    rows.rewind({row: row % 5 for row in range(len(cells))})
    found = {}
    rows.feed({row: other[: NEW - row % 5] for row in range(len(cells))}, keep_logits(found))
    for row, cell in enumerate(cells):
        kept = row % 5
        fresh, (expected,) = fed(model, snapshot, [cell], TOKENS[:kept] + other[: NEW - kept], question)
        assert torch.equal(torch.stack(list(found[row].values())), expected[kept:]), row
        assert rows.fed[row] == fresh.fed[0] and rows.cache.resident(row) == fresh.cache.resident(0)
        assert rows.bytes_read(row) == fresh.bytes_read(0)


def test_a_state_that_is_not_taken_back_changes_what_follows(model, snapshot, monkeypatch):
    """The tests above can fail."""
    cell = CELLS[3]
    expected = fed(model, snapshot, [cell], TOKENS[:2] + TOKENS[5:])[1][0][2:]
    rows, _ = fed(model, snapshot, [cell], TOKENS[:10])
    for layer in rows.cache.packed_layers:
        for lane in layer.lanes:
            if lane.read is not None:
                monkeypatch.setattr(type(lane.selection), "prepare", lambda self, *args, s=lane.state: s)
    rows.rewind({0: 2})
    found = {}
    rows.feed({0: TOKENS[5:13]}, keep_logits(found))
    assert not torch.equal(torch.stack(list(found[0].values())), expected[:8])


def test_rows_that_start_alike_do_not_share_what_they_append(model, snapshot, monkeypatch):
    cells = [resolve({"method": "quest", "page": 4, "dense_layers": 0}, tokens) for tokens in (24, 32)]
    tokens = {0: TOKENS, 1: TOKENS[::-1]}
    alone = [fed(model, snapshot, [cell], tokens[row])[1][0] for row, cell in enumerate(cells)]

    def together():
        rows, found = Rows(model, snapshot, cells, NEW), {}
        rows.feed(tokens, keep_logits(found))
        return [torch.stack(list(found[row].values())) for row in tokens]

    assert all(map(torch.equal, together(), alone))
    # and this can fail
    monkeypatch.setattr("kvbench.engine.packed.copy.deepcopy", lambda state: state)
    assert not all(map(torch.equal, together(), alone))


@pytest.mark.parametrize("question", [(), QUESTION], ids=["aware", "agnostic"])
def test_cells_that_refer_to_the_prompt_are_bitwise_those_that_copy_what_they_keep(
    model, snapshot, monkeypatch, question
):
    entries = [
        *ENTRIES,
        ({"method": "snapkv", "window": 8, "selection": "sparq", "keep": 90}, 40),
        ({"method": "adakv", "window": 8, "selection": "hsa", "keep": 90}, 40),
        (
            {
                "method": "snapkv",
                "window": 8,
                "keep": 90,
                "selection": {"name": "quest", "page": 4, "dense_layers": 0, "heads": "query_head"},
            },
            24,
        ),
    ]
    cells = [resolve(*entry) for entry in entries]

    def found():
        rows, logits = fed(model, snapshot, cells, question=question)
        held = [(rows.cache.resident(row), rows.bytes_read(row)) for row in range(len(cells))]
        layers = rows.cache.packed_layers
        return sum(isinstance(x, PlacedLane) for layer in layers for x in layer.lanes), logits, held

    placed, logits, held = found()
    monkeypatch.setattr("kvbench.engine.compress.refers", lambda *_: False)
    copied, expected, held_by_copies = found()
    if any(layer.table is not None for layer in Rows(model, snapshot, cells, 1).cache.packed_layers):
        assert placed > LAYERS * 8
    assert not copied and held == held_by_copies
    for row, (a, b) in enumerate(zip(logits, expected, strict=True)):
        assert torch.equal(a, b), entries[row]


@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize("steps", [1, 5, NEW])
@pytest.mark.parametrize("sizes", [[PASS_ROWS], [16, 64, PASS_ROWS]])
def test_work_is_the_number_of_tokens_and_the_padding_of_one_pass(
    model, snapshot, monkeypatch, cells, steps, sizes
):
    monkeypatch.setattr("kvbench.engine.forced.pass_sizes", lambda *_: sizes)
    shapes = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda x, *rest: shapes.append(x.shape[:-1].numel()) or linear(x, *rest),
    )
    rows = Rows(model, snapshot, CELLS[:cells], NEW)
    rows.feed(dict.fromkeys(range(cells), TOKENS[:steps]))
    assert cells * steps <= PASS_ROWS
    assert shapes == [next(size for size in sizes if size >= cells * steps)] * (7 * LAYERS)


def test_log_probabilities_of_tokens_are_those_of_the_logits(model, snapshot):
    rows = Rows(model, snapshot, [None, CELLS[0]], NEW)
    rows.feed({1: TOKENS[:3]})
    found = token_log_probs(rows, {0: TOKENS[:6], 1: TOKENS[3:20]})
    _, (dense, other) = fed(model, snapshot, [None, CELLS[0]])
    for row, (logits, first, count) in enumerate(((dense, 0, 5), (other, 3, 16))):
        log_p = logits.log_softmax(-1)
        expected = [float(log_p[n, TOKENS[n + 1]]) for n in range(first, first + count)]
        assert found[row] == pytest.approx(expected, abs=1e-6)
