"""Every kind of rotary embedding: prefill in chunks against one pass, decoding against transformers, limits."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import kvbench
from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.forced import Rows
from kvbench.engine.prefill import prefill
from kvbench.engine.rope import position_limit, rope_until, settle_rope, turning_rope
from kvbench.engine.snapshot_file import load, save

ORIGINAL, MOST, DIM, NEW = 64, 256, 16, 5
FACTORS = {"short_factor": [1.0] * (DIM // 2), "long_factor": [1.0 + n for n in range(DIM // 2)]}
SCALED = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": SCALED,
    "longrope": SCALED | FACTORS,
    "llama3": SCALED | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "proportional": {"factor": 4.0, "partial_rotary_factor": 0.5},
}
#: prompt lengths on both sides of the original length, and chunks that divide them or do not
LENGTHS, CHUNKS = (40, 64, 65, 150), (1, 7, 32, 64, 65, 100, 1000)


def make(kind, most=MOST, family="llama", **entries):
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPES[kind], **entries}
    config = AutoConfig.for_model(
        family, vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=DIM, max_position_embeddings=ORIGINAL if kind == "dynamic" else most,
        rope_parameters=rope, initializer_range=0.3, pad_token_id=0,
        **({"original_max_position_embeddings": ORIGINAL} if family == "phi3" else {}),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def prompt(length):
    return [(7 * i * i + 3 * i + 1) % 89 + 3 for i in range(length)]


def hooked(model):
    model.set_attn_implementation(register_attention())
    return model


def test_every_kind_of_transformers_is_here():
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", ROPES)
def test_prefill_in_chunks_equals_one_pass_of_transformers(kind, chunk):
    for length in LENGTHS:
        with torch.inference_mode():
            expected = make(kind)(torch.tensor([prompt(length)]), use_cache=True)
        found = prefill(hooked(make(kind)), prompt(length), 1, chunk)
        torch.testing.assert_close(found.logits, expected.logits[0, -1], atol=2e-4, rtol=1e-4)
        for layer, cached in zip(found.layers, expected.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.k_HTD, cached.keys[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ROPES)
def test_a_prompt_after_a_longer_one_is_the_same(kind):
    model = hooked(make(kind))
    for length in LENGTHS:
        first = prefill(model, prompt(length), 1)
        prefill(model, prompt(250), 1)
        assert torch.equal(prefill(model, prompt(length), 1).logits, first.logits)


def step(model, snapshot, token):
    """Logits after one more token."""
    found = []
    Rows(model, snapshot, [None], 1).feed(
        {0: [token]}, lambda logits_RV, *_: found.append(logits_RV[0].clone())
    )
    return found[0]


@pytest.mark.parametrize("kind", ROPES)
def test_a_snapshot_that_is_used_again_is_decoded_as_after_its_prefill(kind, tmp_path):
    """Whatever other texts the model saw since: a dynamic embedding remembers the longest."""
    model = hooked(make(kind))
    for length in (40, ORIGINAL - 1):
        snapshot = prefill(model, prompt(length), 1)
        save(tmp_path / "kept", snapshot, "key")
        expected = step(model, snapshot, 5)
        prefill(model, prompt(250), 1)
        other = step(model, snapshot, 5)
        assert torch.equal(step(model, load(tmp_path / "kept", model, "key"), 5), expected)
        prefill(model, prompt(250), 1)
        settle_rope(model, length)
        assert torch.equal(step(model, snapshot, 5), expected)
        if kind == "dynamic" and length == ORIGINAL - 1:
            # without it, the step is another one
            assert not torch.equal(other, expected)


@pytest.mark.parametrize("first_token", ["compressed", "dense"])
@pytest.mark.parametrize("kind", ROPES)
def test_answers_are_those_of_transformers_or_refused(kind, first_token):
    for length in (40, 59, 60, 61, 64, 65, 150):
        ids = prompt(length)
        with torch.inference_mode():
            inputs = torch.tensor([ids])
            expected = make(kind).generate(
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=NEW, eos_token_id=None
            )[0, length:].tolist()  # fmt: skip
        model, compressed = hooked(make(kind)), first_token == "compressed"
        snapshot = prefill(model, ids[: length - compressed], 1, 32)
        options = DecodeOptions(NEW, batch_rows=1, kl=False, first_token=first_token)
        # the last token of an answer is not fed
        last = length - compressed + NEW - (not compressed)
        changes = kind in ("longrope", "dynamic") and last > ORIGINAL
        if changes and not (kind == "longrope" and length - compressed > ORIGINAL):
            with pytest.raises(
                UserError, match=f"frequencies change .* {max(ORIGINAL, snapshot.length)} tokens"
            ) as error:
                decode_cells(model, snapshot, [], ids[-1], [], options)
            assert "\n" not in str(error.value)
        else:
            assert decode_cells(model, snapshot, [], ids[-1], [], options).dense.ids == expected


def generate(model, cache, ids, mask=None):
    inputs = torch.tensor(ids)
    mask = torch.ones_like(inputs) if mask is None else torch.tensor(mask)
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(inputs, attention_mask=mask, past_key_values=cache, **settings)[
        :, inputs.shape[1] :
    ].tolist()


@pytest.mark.filterwarnings("ignore:the model's attention")
@pytest.mark.parametrize(
    ("kind", "family"), [("longrope", "llama"), ("dynamic", "llama"), ("yarn", "llama"), ("longrope", "phi3")]
)
def test_the_drop_in_cache_refuses_a_change_too(kind, family):
    def cache(model):
        return kvbench.cache(model, "dense", max_new_tokens=NEW)

    for length in (40, 60, 61, 64, 65, 150):
        model, ids = make(kind, family=family), [prompt(length)]
        expected = generate(model, None, ids)
        # Phi-3's own generate drops the cache of a longer prompt
        dropped = family == "phi3" and length > ORIGINAL
        refused = dropped or (
            length + NEW - 1 > ORIGINAL and (kind == "dynamic" or (kind == "longrope" and length <= ORIGINAL))
        )
        if refused:
            with pytest.raises(UserError, match="frequencies change"):
                generate(model, cache(model), ids)
        else:
            assert generate(model, cache(model), ids) == expected
    if kind == "longrope":
        # the longest row would decide for the others
        model = make(kind, family=family)
        rows = [[0] * 60 + prompt(40), prompt(100)]
        mask = [[int(token != 0) for token in row] for row in rows]
        with pytest.raises(UserError, match="frequencies change"):
            generate(model, cache(model), rows, mask)


def test_a_change_is_seen_at_the_token():
    model = make("longrope")
    assert turning_rope(model, 1, ORIGINAL) is None and turning_rope(model, ORIGINAL + 1, MOST) is None
    assert turning_rope(model, ORIGINAL, ORIGINAL + 1) == "longrope"
    assert [rope_until(model, n) for n in (1, ORIGINAL, ORIGINAL + 1)] == [ORIGINAL, ORIGINAL, None]
    assert [rope_until(make("dynamic"), n) for n in (1, ORIGINAL)] == [ORIGINAL, ORIGINAL]
    assert all(rope_until(make(kind), 1) is None for kind in ROPES if kind not in ("longrope", "dynamic"))


@pytest.mark.parametrize(
    ("kind", "most", "entries", "limit"),
    [
        ("default", 256, {}, 256),
        # as model cards give it, on top of the pretrained length, and as configs with the stretched length
        ("yarn", 64, {}, 256),
        ("yarn", 80, {}, 256),
        ("yarn", 256, {}, 256),
        ("yarn", 64, {"factor": 1.5}, 96),
        ("linear", 64, {}, 64),
        ("llama3", 256, {"factor": 8.0, "original_max_position_embeddings": 16}, 256),
        ("longrope", 256, {}, 256),
        ("dynamic", 64, {}, 64),
    ],
)  # fmt: skip
def test_the_most_tokens_of_a_text(kind, most, entries, limit):
    assert position_limit(make(kind, most, **entries)) == limit
