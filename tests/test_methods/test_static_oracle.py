"""No eviction recalls more of the dense answer's attention than the static oracle with as many tokens."""

import math

import pytest
import torch
from kvbench_testing.cases import DIM, EVICTIONS, NEW, answer, keep, name_of, tensors
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import kvbench
from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.compress import cell_lanes
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.prefill import prefill, prefill_for
from kvbench.methods import Budget, Quota, Shape, build

LENGTH = 331
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(180)]


def attention_of_the_answer(data):
    """Summed attention of the answer's queries to the prompt's keys `[B, Q, T]`, one query at a time, in fp64."""
    q, k, *_ = data
    q_new, k_new = (x.double() for x in answer(data))
    keys = torch.cat([k.double(), k_new], dim=2).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    out = torch.zeros(*q.shape[:2], q.shape[2], dtype=torch.float64)
    for n in range(q_new.shape[2]):
        seen = keys[:, :, : q.shape[2] + n + 1]
        probs = (q_new[:, :, n, None] @ seen.transpose(2, 3))[:, :, 0].div(math.sqrt(DIM)).softmax(-1)
        out += probs[..., : q.shape[2]]
    return out


@pytest.mark.parametrize("case", EVICTIONS, ids=name_of)
@pytest.mark.parametrize("tokens", [9, 64, 200])
def test_no_eviction_recalls_more_of_the_answers_attention(case, tokens):
    name, params = case
    data = tensors("gqa4", LENGTH)
    mass_BQT = attention_of_the_answer(data)
    for row, kept in enumerate(keep(name, params, data, tokens, [0, 1])):
        heads = "query_head" if len(kept) == mass_BQT.shape[1] else "kv_head"
        mass = mass_BQT[row] if heads == "query_head" else mass_BQT[row].unflatten(0, (2, -1)).sum(1)
        for head, positions in enumerate(kept):
            best = keep("static_oracle", {"heads": heads}, data, len(positions), [0, 1])[row][head]
            assert len(best) == len(positions)
            assert float(mass[head][positions].sum()) <= float(mass[head][best].sum()) + 1e-5


def test_keep_needs_the_answer():
    q, k, v, *_ = tensors("gqa4", 63)
    with pytest.raises(UserError, match="answer: static_oracle needs it"):
        kvbench.keep("static_oracle", q, k, v, tokens=5)


@pytest.fixture(scope="module")
def folder(tiny_model_dir):
    return tiny_model_dir("llama", group=3, layers=4)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@torch.inference_mode()
def eager_answer(folder, ids, fed, last, steps):
    """Greedy tokens of transformers' eager model, and the summed attention of the steps to `ids`, by layer."""
    twin = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    cache = DynamicCache()
    twin(input_ids=torch.tensor([ids + fed]), past_key_values=cache)
    sums, token, out = [0.0] * 4, last, []
    for _ in range(steps):
        result = twin(input_ids=torch.tensor([[token]]), past_key_values=cache, output_attentions=True)
        token = int(result.logits[0, -1].argmax())
        out.append(token)
        sums = [a + probs[0, :, 0, : len(ids)] for a, probs in zip(sums, result.attentions, strict=True)]
    return out, sums


@pytest.mark.parametrize("fed", [0, 1, 20])
def test_the_answers_attention_is_that_of_an_eager_model(folder, model, fed):
    end = len(PROMPT) - 1 - fed
    ids, question = PROMPT[:end], PROMPT[end:-1]
    snapshot = prefill(model, ids, 8)
    decode_dense_answer(model, snapshot, question, PROMPT[-1], DecodeOptions(NEW))
    tokens, expected = eager_answer(folder, ids, question, PROMPT[-1], NEW)
    for layer, sums in zip(snapshot.layers, expected, strict=True):
        assert torch.allclose(layer.answer_sum_QT, sums, atol=1e-4)
    # the sum ends with the answer
    short = prefill(model, ids, 8)
    decode_dense_answer(model, short, question, PROMPT[-1], DecodeOptions(NEW, frozenset({tokens[1]})))
    count = tokens.index(tokens[1]) + 1
    _, expected = eager_answer(folder, ids, question, PROMPT[-1], count)
    assert torch.allclose(short.layers[0].answer_sum_QT, expected[0], atol=1e-4)
    options = DecodeOptions(NEW, ends=lambda answer: len(answer) == count)
    by_text = prefill(model, ids, 8)
    decode_dense_answer(model, by_text, question, PROMPT[-1], options)
    assert torch.equal(by_text.layers[0].answer_sum_QT, short.layers[0].answer_sum_QT)


def test_a_first_token_from_prefill_is_not_a_step(folder, model):
    whole = prefill(model, PROMPT, 8)
    decode_dense_answer(model, whole, [], PROMPT[-1], DecodeOptions(NEW, first_token="dense"))
    first, _ = eager_answer(folder, PROMPT[:-1], [], PROMPT[-1], 1)
    _, expected = eager_answer(folder, PROMPT, [], first[0], NEW - 1)
    for layer, sums in zip(whole.layers, expected, strict=True):
        assert torch.allclose(layer.answer_sum_QT, sums, atol=1e-4)


def test_in_the_engine_no_eviction_recalls_more(folder, model):
    methods = {name_of(case): build({"method": case[0], **case[1]}) for case in EVICTIONS}
    # kvzip needs another pass, and what leaves the prompt whole recalls all
    methods = {
        name: method
        for name, method in methods.items()
        if "repeat" not in method.needs and method.parts()[0].at_prefill
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    snapshot = prefill_for(list(methods.values()), model, tokenizer, PROMPT[:-1])
    decode_dense_answer(model, snapshot, [], PROMPT[-1], DecodeOptions(NEW))
    shape = Shape(len(PROMPT) - 1, NEW, 4, 16)
    oracles = {}
    for heads in ("kv_head", "query_head"):
        oracles[heads] = build({"method": "static_oracle", "heads": heads}).parts()[0]
    for name, method in methods.items():
        cell, earlier = method.resolve(shape, Budget(tokens=60)), {}
        for layer in snapshot.layers:
            cell_lanes(layer, cell, slice(0, 1), NEW, {}, earlier)
        for layer, kept in zip(snapshot.layers, *earlier.values(), strict=True):
            for head, positions in enumerate(kept.positions):
                rows = layer.answer_sum_QT.unflatten(0, (2, -1))[head]
                sets = [(rows.sum(0), positions, "kv_head", head)]
                if kept.members is not None:
                    sets = [
                        (row, positions[member], "query_head", None)
                        for row, member in zip(rows, kept.members[head], strict=True)
                    ]
                for mass, chosen, heads, at in sets:
                    best = mass.topk(len(chosen)).values.sum()
                    assert float(mass[chosen].sum()) <= float(best) + 1e-5, name
                    if heads == "kv_head":
                        oracle_kept = oracles[heads].keep(
                            layer, oracles[heads].scores(layer), Quota(len(chosen))
                        )
                        assert float(mass[oracle_kept.positions[at]].sum()) == pytest.approx(
                            float(best), abs=1e-5
                        )


def test_it_decodes_closer_to_dense_than_chance(model):
    snapshot = prefill(model, PROMPT[:-1], 8)
    options = DecodeOptions(NEW, batch_rows=8)
    decode_dense_answer(model, snapshot, [], PROMPT[-1], options)
    shape = Shape(len(PROMPT) - 1, NEW, 4, 16)
    cells = [build({"method": m}).resolve(shape, Budget(tokens=60)) for m in ("static_oracle", "random")]
    oracle, random = decode_cells(model, snapshot, [], PROMPT[-1], cells, options).cells
    assert oracle.kept == random.kept == 60 and oracle.kl < random.kl / 2
