"""KVzip: scores of the official code, the scopes, and the pass that repeats the text."""

import math

import pytest
import torch
from kvbench_testing.golden import DIM, digest, tensors
from transformers import AutoModelForCausalLM

import kvbench
from kvbench.config.errors import UserError
from kvbench.engine import repeat as pass_over
from kvbench.engine.attention import register_attention
from kvbench.engine.prefill import prefill
from kvbench.methods import LayerSnapshot, Quota, build
from kvbench.methods.repeat import Repeat, repeat_scores

TEXT, SINKS = 200, 4


@pytest.fixture(scope="module")
def scores():
    """Of the golden tensors: 200 tokens of text, 131 that repeat it."""
    q, k, _ = (x[0] for x in tensors())
    return repeat_scores(q[:, TEXT:], k[:, TEXT:], k[:, :TEXT], SINKS, SINKS, TEXT, DIM**-0.5)


def test_the_scores_are_those_of_the_official_code(scores):
    assert scores[0, :4].tolist() == pytest.approx([0.2118649, 0.0925342, 0.1842426, 0.1332124], abs=1e-6)
    # its choice: strictly above the value of the last place
    place = max(int(scores.numel() * 0.3) - 1, 0)
    least = scores.flatten().sort(descending=True).values[place]
    assert float(least) == pytest.approx(0.3427807, abs=1e-6)
    chosen = [SINKS + row.nonzero()[:, 0] for row in scores > least]
    assert [len(row) for row in chosen] == [60, 56] and digest(chosen) == "dd859f40b101145a"
    uniform = [SINKS + row.topk(58).indices.sort().values for row in scores]
    assert digest(uniform) == "dca7eaa47d00733f"


def test_the_scores_are_a_softmax_over_sinks_chunk_and_repetition():
    draw = torch.Generator().manual_seed(0)
    q, k_new = torch.randn(6, 7, 8, generator=draw), torch.randn(2, 7, 8, generator=draw)
    k = torch.randn(2, 50, 8, generator=draw)
    found = repeat_scores(q, k_new, k, 3, 20, 31, 0.4)
    for head in range(2):
        expected = torch.zeros(11, dtype=torch.double)
        for row in range(3 * head, 3 * head + 3):
            for n in range(7):
                keys = torch.cat([k[head, :3], k[head, 20:31], k_new[head, : n + 1]]).double()
                probs = (keys @ q[row, n].double() * 0.4).softmax(-1)
                expected = torch.maximum(expected, probs[3:14])
        assert torch.allclose(found[head].double(), expected, atol=1e-6)


def test_queries_are_taken_in_parts(monkeypatch, scores):
    from kvbench.methods import repeat

    monkeypatch.setattr(repeat, "QUERIES", 10)
    q, k, _ = (x[0] for x in tensors())
    again = repeat_scores(q[:, TEXT:], k[:, TEXT:], k[:, :TEXT], SINKS, SINKS, TEXT, DIM**-0.5)
    assert torch.allclose(again, scores, atol=1e-6)


def layers_of(scores_LHT):
    found = Repeat(SINKS, dict(enumerate(scores_LHT)))
    layers = []
    for number, scores in enumerate(scores_LHT):
        k = torch.zeros(*scores.shape, DIM)
        layer = LayerSnapshot(k, k, torch.zeros(4, 1, DIM), number, len(scores_LHT))
        layer.repeats[2048, SINKS] = found
        layers.append(layer)
    return layers


@pytest.mark.parametrize("scope", ["model", "layer", "head"])
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 20, 49])
def test_a_scope_ranks_its_own(scope, tokens):
    draw = torch.Generator().manual_seed(1)
    scores = torch.rand(3, 2, 50, generator=draw)
    # the last layer is attended to more
    scores[2] += 0.5
    scores[..., :SINKS] = torch.inf
    method = build({"method": "kvzip", "scope": scope}).eviction
    kept = [method.keep(layer, method.scores(layer), Quota(tokens)) for layer in layers_of(scores)]
    counts = torch.tensor([[len(positions) for positions in one.positions] for one in kept])
    assert int(counts.sum()) == 6 * tokens and int(counts.min()) >= min(tokens, SINKS)
    if scope == "head" or tokens <= SINKS:
        assert bool((counts == tokens).all())
        return
    together = scores if scope == "model" else None
    for number, one in enumerate(kept):
        pool = scores[number] if together is None else together
        assert scope == "model" or int(counts[number].sum()) == 2 * tokens
        least = pool.flatten().sort(descending=True).values[tokens * (6 if scope == "model" else 2) - 1]
        for head, positions in enumerate(one.positions):
            assert positions.tolist() == (scores[number, head] >= least).nonzero()[:, 0].tolist()
    if scope == "model" and tokens < 49:
        assert counts[2].sum() > counts[0].sum()


class Words:
    """A tokenizer of numbers."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(map(str, ids))


def test_the_text_is_asked_for_chunk_by_chunk():
    asked = []

    def tail(question):
        asked.append(question)
        return [7, 8]

    found = pass_over.requests(list(range(100, 125)), 10, 4, tail, Words())
    assert [(one.start, one.end) for one in found] == [(4, 14), (14, 24), (24, 25)]
    assert found[1].ids == [7, 8, *range(114, 124)]
    assert asked[0] == "\n\nRepeat the previous context exactly."
    assert asked[1].endswith("starting with 106 107 108 109 110 111 112 113")
    assert pass_over.requests([1, 2, 3], 10, 4, tail, Words()) == []


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


def test_the_pass_reads_the_whole_cache_and_leaves_it_alone(model):
    ids = [(7 * i * i + 3 * i) % 250 for i in range(120)]
    asked = [pass_over.Request([5, 6, *ids[4:64]], 4, 64), pass_over.Request([9, *ids[64:]], 64, 120)]
    snapshot = prefill(model, ids, 8)
    before = [layer.k_HTD.clone() for layer in snapshot.layers]
    pass_over.repeat(model, snapshot, 60, 4, asked)
    for request in asked:
        # queries and keys of one prefill of the text and the request
        whole = prefill(model, [*ids, *request.ids], len(request.ids))
        for layer, long in zip(snapshot.layers, whole.layers, strict=True):
            expected = repeat_scores(
                long.q_QWD, long.k_HTD[:, 120:], layer.k_HTD, 4, request.start, request.end, layer.scaling
            )
            found = layer.repeats[60, 4].scores[layer.layer]
            assert torch.allclose(found[:, request.start : request.end], expected, atol=1e-4)
            assert bool(found[:, :4].isinf().all())
    assert all(torch.equal(layer.k_HTD, k) for layer, k in zip(snapshot.layers, before, strict=True))
    assert snapshot.layers[0].repeats[60, 4].seconds > 0


def test_what_it_needs_is_one_line():
    q, k, v = tensors()
    with pytest.raises(UserError, match=r"^repetition: kvzip needs it$"):
        kvbench.keep("kvzip", q, k, v, tokens=50)
    layer = LayerSnapshot(k[0], v[0], q[0])
    with pytest.raises(
        UserError, match=r"^kvzip: needs a second pass over the text, which only accuracy runs"
    ):
        build({"method": "kvzip"}).eviction.scores(layer)
    kept = kvbench.keep("kvzip", q[:, :, :TEXT], k[:, :, :TEXT], v[:, :, :TEXT], tokens=60,
                        repetition=(q[:, :, TEXT:], k[:, :, TEXT:]))  # fmt: skip
    assert sum(len(positions) for positions in kept[0]) == 120 and math.isfinite(kept[0][0].sum())
