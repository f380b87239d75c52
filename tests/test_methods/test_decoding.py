"""Every eviction in the engine decodes as transformers' eager attention with evicted tokens masked."""

import pytest
import torch
from kvbench_testing.cases import EVICTIONS, add_repetition, name_of
from transformers import AutoModelForCausalLM, DynamicCache

from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.prefill import prefill
from kvbench.methods import Budget, Quota, Shape, build

PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(180)]
LENGTH, NEW, TOKENS = len(PROMPT) - 1, 6, 60
NEEDS = frozenset({"attention_sum", "queries", "rope"})


def steady(case):
    """Whether the eviction evicts at prefill only and does not reindex."""
    return not build({"method": case[0], **case[1]}).eviction.steps


@pytest.fixture(scope="module")
def folder(tiny_model_dir):
    return tiny_model_dir("llama", group=3, layers=4)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def snapshot(model):
    found = prefill(model, PROMPT[:-1], 64, needs=NEEDS)
    for layer in found.layers:
        layer.boundaries_T = torch.tensor([2 * (n % 23 == 7) + (n % 23 == 15) for n in range(LENGTH)])
    decode_dense_answer(model, found, [], PROMPT[-1], DecodeOptions(NEW))
    add_repetition(found.layers)
    return found


def masks(cell, snapshot):
    """Additive masks `[1, Q, 1, T + NEW]`, one per layer."""
    out, kept_so_far = [], []
    for layer, rule in zip(snapshot.layers, cell.rules, strict=True):
        visible = torch.ones(layer.heads, layer.group, LENGTH + NEW, dtype=torch.bool)
        if rule.keep is not None:
            kept = cell.eviction.keep(
                layer, cell.eviction.scores(layer), Quota(rule.keep, earlier=kept_so_far)
            )
            kept_so_far.append(kept)
            visible[..., :LENGTH] = False
            for head, positions in enumerate(kept.positions):
                visible[head, :, positions] = kept.members[head] if kept.members is not None else True
        out.append(torch.zeros(visible.shape).masked_fill(~visible, -1e30).flatten(0, 1)[None, :, None])
    return out


def eager_tokens(folder, masks):
    """Greedy tokens of an eager model that sees only unmasked tokens, per layer and query head."""
    twin, cache = (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(),
        DynamicCache(),
    )
    token, out = PROMPT[-1], []
    with torch.no_grad():
        twin(input_ids=torch.tensor([PROMPT[:-1]]), past_key_values=cache)
        for layer, mask in zip(twin.model.layers, masks, strict=True):

            def hide(module, args, kwargs, mask=mask):
                return args, {
                    **kwargs,
                    "attention_mask": mask[..., : cache.get_seq_length(module.layer_idx) + 1],
                }

            layer.self_attn.register_forward_pre_hook(hide, with_kwargs=True)
        for _ in range(NEW):
            position = torch.tensor([[cache.get_seq_length()]])
            logits = twin(torch.tensor([[token]]), position_ids=position, past_key_values=cache).logits
            token = int(logits[0, -1].argmax())
            out.append(token)
    return out


@pytest.mark.parametrize("case", [case for case in EVICTIONS if steady(case)], ids=name_of)
def test_an_eviction_decodes_as_an_eager_model_that_cannot_see_evicted_tokens(case, folder, model, snapshot):
    name, params = case
    shape = Shape(LENGTH, NEW, 4, model.config.head_dim)
    cell = build({"method": name, **params}).resolve(shape, Budget(tokens=TOKENS))
    options = DecodeOptions(NEW, batch_rows=4, kl=False)
    ours = decode_cells(model, snapshot, [], PROMPT[-1], [cell], options).cells[0]
    assert ours.ids == eager_tokens(folder, masks(cell, snapshot))
