import hashlib
import json

import pytest
from transformers import PreTrainedTokenizerFast

from kvbench.config.errors import UserError
from kvbench.tasks import Renderer, Sample

STYLES = ("chatml", "llama3", "mistral")
HEADS = {
    ("chatml", None): "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n",
    ("chatml", ""): "<|im_start|>user\n",
    ("chatml", "Hm."): "<|im_start|>system\nHm.<|im_end|>\n<|im_start|>user\n",
    ("llama3", None): "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024"
    "\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    ("llama3", ""): "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    (
        "llama3",
        "Hm.",
    ): "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024"
    "\n\nHm.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    ("mistral", None): "<s>[INST] ",
    ("mistral", ""): "<s>[INST] ",
    ("mistral", "Hm."): "<s>[INST] Hm.\n\n",
}
TAILS = {
    "chatml": "<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[/INST]",
}
SEAMS = [
    ("The old wall.", "\nWhich wall?"),
    ("The old wall ", " Which wall?"),
    ("The old wall", "  Which wall?"),
    ("The wall\n", "\nWhich wall?"),
    ("\n\n The wall 🙂", "🙂 which?"),
    ("caf", "é open"),
    ("The wall. The wall.", "The wall."),
]


def sample(context="The old wall.", question="\nWhich wall?", prefix=" The", gold=("old",)):
    return Sample(context, question, prefix, gold, max_new_tokens=8)


@pytest.mark.parametrize(("style", "system"), HEADS)
def test_the_prompt_is_head_message_tail_and_prefix(tokenizers, style, system):
    prompt = Renderer(tokenizers[style], system=system).render(sample())
    assert prompt.text == HEADS[style, system] + "The old wall.\nWhich wall?" + TAILS[style] + " The"
    assert tokenizers[style].decode(prompt.ids) == prompt.text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prefix", ["The", " The", ""])
def test_the_prefix_is_used_verbatim(tokenizers, style, prefix):
    prompt = Renderer(tokenizers[style]).render(sample(prefix=prefix))
    assert prompt.text.endswith(TAILS[style] + prefix)


@pytest.mark.parametrize("style", STYLES)
def test_one_begin_of_text_with_and_without_template(tokenizers, style):
    tokenizer = tokenizers[style]
    for chat in (True, False):
        for system in (None, "") if chat else (None,):
            ids = Renderer(tokenizer, chat, system).render(sample()).ids
            if style != "chatml":  # there it is also the mark of every turn
                assert ids.count(tokenizer.bos_token_id) == 1
                assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("context", "question"), SEAMS)
def test_context_end_is_the_last_whole_token_of_the_context(tokenizers, style, chat, context, question):
    tokenizer = tokenizers[style]
    prompt = Renderer(tokenizer, chat).render(sample(context, question))
    seen = context.lstrip() if chat and style == "llama3" else context
    # a Mistral tokenizer puts a space in front of a text
    bare = {"chatml": "", "llama3": "<|begin_of_text|>", "mistral": "<s> "}
    head = HEADS[style, None] if chat else bare[style]
    inside, beyond = (tokenizer.decode(prompt.ids[:n]) for n in (prompt.context_end, prompt.context_end + 1))
    assert (head + seen).startswith(inside)
    # the next token has something of the question
    assert "�" in beyond or not (head + seen).startswith(beyond)
    assert len(inside) > len(head)


def test_hash_covers_ids_context_end_and_gold(tokenizers):
    renderer = Renderer(tokenizers["chatml"])
    prompt = renderer.render(sample())
    whole = json.dumps([prompt.ids, prompt.context_end, ["old"]])
    assert prompt.hash == hashlib.sha256(whole.encode()).hexdigest()
    assert renderer.render(sample()).hash == prompt.hash
    others = [
        sample(gold=("new",)),
        sample(context="The old wall.\n", question="Which wall?"),
        sample(prefix=""),
    ]
    assert len({renderer.render(other).hash for other in others} | {prompt.hash}) == 4


def test_count_is_the_length_of_the_prompt(tokenizers):
    for style in STYLES:
        for chat in (True, False):
            renderer = Renderer(tokenizers[style], chat)
            assert renderer.count(sample()) == len(renderer.render(sample()).ids)


def test_style_names_what_decides_the_prompt(tokenizers):
    styles = [
        Renderer(tokenizers["chatml"]).style,
        Renderer(tokenizers["chatml"], system="").style,
        Renderer(tokenizers["chatml"], system="Hm.").style,
        Renderer(tokenizers["llama3"]).style,
        Renderer(tokenizers["chatml"], chat_template=False).style,
    ]
    assert len({json.dumps(style, sort_keys=True) for style in styles}) == 5
    assert Renderer(tokenizers["chatml"]).style == styles[0]


def test_what_cannot_be_rendered_is_refused(tokenizers, byte_renderer):
    bare = byte_renderer.tokenizer
    with pytest.raises(UserError, match=r"model\.chat_template: .* allowed: false"):
        Renderer(bare)
    with pytest.raises(UserError, match=r"model\.system: needs model\.chat_template=true"):
        Renderer(bare, chat_template=False, system="Hm.")
    strict = PreTrainedTokenizerFast(tokenizer_object=tokenizers["chatml"].backend_tokenizer)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    strict.chat_template = refusal + "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match=r"model\.system: .*no system"):
        Renderer(strict, system="Hm.")
    assert Renderer(strict, system="").render(sample()).text == "The old wall.\nWhich wall? The"
    strict.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(UserError, match=r"model\.chat_template: the template rewrites"):
        Renderer(strict)
