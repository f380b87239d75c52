"""The middle of a whole prompt cut out, and prompts without the chat template."""

from dataclasses import replace

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import Renderer, Sample, Turn
from kvbench.tasks.truncate import cut_middle, fit_middle

SAMPLE = Sample("The lamp is bright. " * 60, "\nQuestion: what is bright?\nAnswer:", "", ("the lamp",), 8)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@pytest.mark.parametrize("length", [40, 41])
def test_a_cut_prompt_is_its_first_and_its_last_half(tokenizers, name, length):
    tokenizer, renderer = tokenizers[name], Renderer(tokenizers[name])
    ids = tokenizer(SAMPLE.context + SAMPLE.question)["input_ids"]
    cut = cut_middle(SAMPLE, length, renderer)
    half = length // 2
    ends = [tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:])]
    assert cut.context + cut.question == "".join(ends)
    assert cut.meta["cut_tokens"] == len(ids) - 2 * half > 0
    assert cut.context_known and cut.question == SAMPLE.question
    # begin-of-text stands once, in front of the template
    prompt = renderer.render(cut)
    if tokenizer.bos_token_id is not None and name != "chatml":
        assert prompt.ids.count(tokenizer.bos_token_id) == 1 and prompt.ids[0] == tokenizer.bos_token_id


def test_a_prompt_of_just_the_length_stays(renderer):
    ids = renderer.tokenizer(SAMPLE.context + SAMPLE.question)["input_ids"]
    assert cut_middle(SAMPLE, len(ids), renderer) == SAMPLE
    assert cut_middle(SAMPLE, len(ids) - 1, renderer) != SAMPLE


def test_where_the_question_was_cut_too_the_end_of_the_context_is_not_known(renderer):
    cut = cut_middle(SAMPLE, 8, renderer)
    assert not cut.context_known and cut.question == ""


def test_without_a_length_the_models_limit_decides(tokenizers):
    renderer = Renderer(tokenizers["llama3"], limit=100)
    cut = fit_middle(SAMPLE, None, renderer, "row 1")
    assert 90 < renderer.count(cut) + SAMPLE.max_new_tokens <= 100
    short = replace(SAMPLE, context="The lamp.")
    assert fit_middle(short, None, renderer, "row 1") == short
    with pytest.raises(UserError, match=r"max_length: 200 is too much, row 1 has .* the model takes 100"):
        fit_middle(SAMPLE, 200, renderer, "row 1")
    with pytest.raises(UserError, match="max_new_tokens: 99 leave no room for row 1"):
        fit_middle(replace(SAMPLE, max_new_tokens=99), None, renderer, "row 1")


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral"])
def test_a_plain_sample_has_no_template_and_begins_with_begin_of_text(tokenizers, name):
    tokenizer = tokenizers[name]
    plain = Renderer(tokenizer).render(replace(SAMPLE, plain=True))
    assert plain.ids == tokenizer(SAMPLE.context + SAMPLE.question)["input_ids"]
    assert plain.text == SAMPLE.context + SAMPLE.question and plain.plain
    assert Renderer(tokenizer).render(SAMPLE).hash != plain.hash
    assert Renderer(tokenizer).spans(plain) == Renderer(tokenizer, chat_template=False).spans(plain)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_conversation_without_joiner_is_the_templates_text_of_all_messages(tokenizers, name):
    tokenizer = tokenizers[name]
    turn = Turn("\nWhich lamp?", "", "The red one.", joiner="")
    sample = Sample("A text.", "And which road?", "", ("-",), 4, earlier=(turn,))
    messages = [
        {"role": "user", "content": "A text.\nWhich lamp?"},
        {"role": "assistant", "content": "The red one."},
        {"role": "user", "content": "And which road?"},
    ]
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    assert Renderer(tokenizer).render(sample).text == expected
    glued = Renderer(tokenizer).render(replace(sample, earlier=(replace(turn, joiner=" "),)))
    assert glued.text != expected
