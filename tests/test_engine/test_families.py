"""The families of transformers in the drop-in cache: each gives its own logits, or one line."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from kvbench_testing import families

import kvbench
from kvbench.config.errors import UserError

#: works: the drop-in cache gives the logits of transformers. not_made: these sizes or packages do not make one
KNOWN = json.loads((Path(__file__).parent / "families.json").read_text())
NEW = 6


def answer(model, ids, cache=None):
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, output_logits=True,
            return_dict_in_generate=True, **settings,
        )  # fmt: skip
    return found.sequences, torch.stack(found.logits)


def made(family):
    """A tiny model with its own answer, or None."""
    ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(2))
    try:
        model = families.tiny(family)
        return model, ids, answer(model, ids)
    except Exception:  # of transformers' own code, in many ways
        return None


def dense(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kvbench.cache(model, "dense", max_new_tokens=NEW)


def test_the_list_is_of_families_of_transformers():
    assert {*KNOWN["works"], *KNOWN["not_made"]} <= {*families.names()}
    assert len(KNOWN["works"]) >= 85 and not {*KNOWN["works"]} & {*KNOWN["not_made"]}


def check(family):
    found = made(family)
    assert (found is None) == (family in KNOWN["not_made"])
    if found is None:
        return
    model, ids, (sequences, logits) = found
    before = model.config._attn_implementation
    if family in KNOWN["works"]:
        own, ours = answer(model, ids, dense(model))
        assert torch.equal(own, sequences)
        torch.testing.assert_close(ours, logits, atol=1e-3, rtol=1e-3)
        return
    with pytest.raises(UserError, match="model: ") as error:
        answer(model, ids, dense(model))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert model.config._attn_implementation == before
    # the model still runs as it did
    assert torch.equal(answer(model, ids)[0], sequences)


#: of every kind of refusal one, and the plainest that work
QUICK = [
    "bart",
    "bert",
    "bloom",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "mamba",
    "qwen2_moe",
    "rwkv",
    "xlnet",
]


@pytest.mark.parametrize("family", QUICK)
def test_a_family_gives_its_own_logits_or_one_line(family):
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*families.names()} - {*QUICK}))
def test_every_family_gives_its_own_logits_or_one_line(family):
    check(family)
