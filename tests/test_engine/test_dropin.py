"""The cache for `model.generate` against the engine, for one prompt and for padded batches."""

import copy
import math
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvbench
from kvbench.config.errors import UserError
from kvbench.config.numbers import NotFiniteError
from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.prefill import PrefillLayer, prefill
from kvbench.methods import Budget, Shape, build
from kvbench.methods.knorm import KNorm

NEW, LAYERS = 10, 3
NEEDS = frozenset({"attention_sum", "rope", "queries"})
ENTRIES = [
    ({"method": "dense"}, None),
    ({"method": "snapkv", "window": 8}, 40),
    ({"method": "snapkv", "window": 8, "heads": "query_head"}, 40),
    ({"method": "chunkkv", "window": 8, "n_reuse": 2}, 64),
    ({"method": "adakv", "window": 8}, 40),
    ({"method": "quest", "page": 4, "dense_layers": 1}, 32),
    ({"method": "sparq", "channels": 6}, 32),
    ({"method": "rocketkv", "window": 8}, 48),
    ({"method": "h2o"}, 40),
    ({"method": "streaming_llm", "positions": "reindexed"}, 40),
    ({"method": "snapkv", "window": 8, "format": "fp8_e4m3"}, 80),
    ({"format": "int4"}, None),
    ({"method": "snapkv", "window": 8, "heads": "query_head", "selection": "hsa", "keep": 90}, 40),
]


def prompt(length):
    return [(7 * i * i + 3 * i + length) % 250 for i in range(length)]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request, tiny_model_dir):
    return tiny_model_dir(request.param, layers=LAYERS)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def make(model, entry, tokens, **params):
    entry = dict(entry)
    method = entry.pop("method", "dense")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kvbench.cache(model, method, tokens=tokens, max_new_tokens=NEW, **entry, **params)


def generate(model, cache, ids, mask=None, **options):
    inputs = torch.tensor(ids)
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, **options}
    mask = torch.ones_like(inputs) if mask is None else mask
    out = model.generate(inputs, attention_mask=mask, past_key_values=cache, **settings)
    return out[:, inputs.shape[1] :].tolist()


def padded(prompts):
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(p)) + p for p in prompts]
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@pytest.mark.parametrize(("entry", "tokens"), ENTRIES, ids=lambda e: str(e)[:60])
def test_generate_gives_the_tokens_of_the_engine(model, folder, entry, tokens):
    ids = prompt(200)
    found = generate(model, make(model, entry, tokens), [ids])[0]
    hooked = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()
    shape = Shape(len(ids), NEW, LAYERS, 16)
    cell = build(entry).resolve(shape, Budget(tokens=tokens) if tokens else None)
    options = DecodeOptions(NEW, batch_rows=2, kl=False, first_token="dense")
    snapshot = prefill(hooked, ids, 64, needs=NEEDS)
    result = decode_cells(hooked, snapshot, [], ids[-1], [] if cell.dense else [cell], options)
    assert found == (result.dense if cell.dense else result.cells[0]).ids


def test_the_dense_cache_gives_the_tokens_of_transformers(model):
    ids = prompt(150)
    expected = generate(model, None, [ids])
    assert generate(model, make(model, {"method": "dense"}, None), [ids]) == expected


@pytest.mark.parametrize(("entry", "tokens"), ENTRIES, ids=lambda e: str(e)[:60])
def test_a_padded_batch_gives_each_prompt_what_it_gets_alone(model, entry, tokens):
    prompts = [prompt(n) for n in (200, 120, 163)]
    alone = [generate(model, make(model, entry, tokens), [p])[0] for p in prompts]
    ids, mask = padded(prompts)
    assert generate(model, make(model, entry, tokens), ids, mask) == alone
    assert len({tuple(a) for a in alone}) == 3


def test_sampling_follows_the_seed(model):
    prompts = [prompt(n) for n in (120, 90)]
    ids, mask = padded(prompts)

    def sample(seed):
        torch.manual_seed(seed)
        cache = make(model, ENTRIES[1][0], 40)
        return generate(model, cache, ids, mask, do_sample=True, temperature=1.5)

    assert sample(1) == sample(1) != sample(2)


def test_memory_is_that_of_the_budget(model):
    cache = make(model, ENTRIES[1][0], 40)
    generate(model, cache, [prompt(200)])
    assert cache.resident_bytes() == (40 + NEW - 1) * 2 * 2 * 16 * 4 * LAYERS
    assert all(layer.keys is None and not layer.prefilled for layer in cache.dropin_layers)


def test_ratios_are_of_each_prompt(model):
    prompts = [prompt(n) for n in (200, 100)]
    ids, mask = padded(prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = kvbench.cache(model, "snapkv", ratio=0.2, window=8, max_new_tokens=NEW)
    generate(model, cache, ids, mask)
    assert [lane.kept for lane in cache.batch.batch_layers[0].lanes] == [40, 20]


def test_a_prompt_of_one_token(model):
    assert len(generate(model, make(model, {"method": "snapkv"}, 40), [[7]])[0]) == NEW


def test_switching_the_attention_warns(model):
    with pytest.warns(UserWarning, match="now 'kvbench', it was 'eager'"):
        kvbench.cache(model, "dense", max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kvbench.cache(model, "dense", max_new_tokens=4)
    model.set_attn_implementation("sdpa")
    assert len(generate(model, None, [prompt(20)])[0]) == NEW


def test_mistakes_are_one_line(model):
    ids = [prompt(60)]
    with pytest.raises(UserError, match="static_oracle needs the answer in advance"):
        kvbench.cache(model, "static_oracle", tokens=40, max_new_tokens=10)
    with pytest.raises(UserError, match="needs budget"):
        generate(model, make(model, {"method": "snapkv"}, None), ids)
    with pytest.raises(UserError, match="max_new_tokens: the cache was made for 10"):
        generate(model, make(model, {"method": "snapkv"}, 30), ids, max_new_tokens=NEW + 5)
    used = make(model, {"method": "snapkv"}, 30)
    generate(model, used, ids)
    with pytest.raises(UserError, match="make a new one"):
        model(torch.tensor(ids), past_key_values=used)
    mask = torch.ones(1, 60, dtype=torch.long)
    mask[0, -5:] = 0
    with pytest.raises(UserError, match="pad on the left"):
        generate(model, make(model, {"method": "snapkv"}, 30), ids, mask)
    with pytest.raises(UserError, match="num_beams"):
        generate(model, make(model, {"method": "snapkv"}, 30), ids, num_beams=2)
    used = make(model, {"method": "snapkv"}, 30)
    with pytest.raises(UserError, match="make a new one"):
        used.reset()
    with pytest.raises(UserError, match="rows of a kvbench cache"):
        used.batch_repeat_interleave(2)
    with pytest.raises(UserError, match="rows of a kvbench cache"):
        used.batch_select_indices(torch.tensor([0]))


@pytest.mark.parametrize(
    ("entry", "tokens"), [ENTRIES[n] for n in (0, 1, 7, 8, 11)], ids=lambda e: str(e)[:60]
)
def test_a_copy_is_independent(model, entry, tokens):
    def after(cache, *given):
        for token in given:
            position = torch.tensor([[cache.get_seq_length()]])
            out = model(torch.tensor([[token]]), past_key_values=cache, position_ids=position)
        return out.logits[0, -1]

    def begun():
        cache = make(model, entry, tokens)
        with torch.inference_mode():
            model(torch.tensor([prompt(60)]), past_key_values=cache)
            after(cache, 5)
        return cache

    first = begun()
    copied = copy.deepcopy(first)
    assert copied.model is model
    with torch.inference_mode():
        after(first, 40, 41)
        del first
        assert torch.equal(after(copied, 7, 8), after(begun(), 7, 8))


SMALL = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "options", "method", "message"),
    [
        ("mistral", {"sliding_window": 65}, "dense", "sliding window of 65"),
        ("gemma2", {"head_dim": 16, "attn_logit_softcapping": 5.0}, "dense", "'softcap'"),
        ("llama4_text", {"intermediate_size_mlp": 64, "num_local_experts": 2}, "dense", "within chunks"),
        ("glm", {"head_dim": 16}, "streaming_llm", "supported for llama"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "streaming_llm",
            "rope_type 'dynamic'",
        ),
    ],
)
def test_models_with_unsupported_attention_are_refused(family, options, method, message):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **options)).eval()
    tokens = 20 if method != "dense" else None
    with pytest.raises(UserError, match=message):
        generate(model, make(model, {"method": method}, tokens), [[n % 90 for n in range(56)]])


def test_a_text_that_just_fits_the_sliding_window_is_accepted():
    config = AutoConfig.for_model("mistral", **SMALL, sliding_window=66)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = [[n % 90 for n in range(56)]]
    expected = generate(model, None, ids)
    assert generate(model, make(model, {"method": "dense"}, None), ids) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["knorm", "streaming_llm", "snapkv"])
def test_a_prefill_that_is_not_finite_is_an_error(model, monkeypatch, method, value):
    attend = PrefillLayer.attend

    def attended(self, q_BQTD, scaling):
        # not in the short prompt on which a model is tried
        if self.keys.shape[2] > 90:
            self.keys[0, 1, 90, 5] = value
        return attend(self, q_BQTD, scaling)

    monkeypatch.setattr(PrefillLayer, "attend", attended)
    with pytest.raises(NotFiniteError, match=r"^keys of layer 0 are not finite$"):
        generate(model, make(model, {"method": method}, 40), [prompt(200)])


def test_scores_that_are_not_finite_are_an_error(model, monkeypatch):
    monkeypatch.setattr(KNorm, "scores", lambda self, x: x.k_HTD.sum(-1) / torch.zeros(()))
    with pytest.raises(NotFiniteError, match=r"^scores of knorm in layer 0 are not finite$"):
        generate(model, make(model, {"method": "knorm"}, 40), [prompt(200)])
