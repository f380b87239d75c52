"""Chat templates: the same bytes at every date, in every time zone and locale; faults are one line."""

import datetime
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kvbench.config.errors import UserError
from kvbench.tasks import Renderer, Sample
from kvbench.tasks.chat import _CODES, DATE, TEMPLATE_ARGUMENTS, ChatTemplate

BODY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
DAY = datetime.datetime(2024, 7, 26)
MESSAGES = [{"role": "user", "content": 'Who, "é"?\n'}, {"role": "assistant", "content": "I."}]

# what templates of the field do: white space control, macros, namespaces, slices, loops with breaks, JSON, dates
DETERMINISTIC = [
    BODY,
    "{{ bos_token }}" + BODY + "{{ eos_token }}",
    "{{- bos_token }}\n  {%- for m in messages -%}\n{{ m['content'] | trim }}\n  {%- endfor %}\n\n" + BODY,
    "{% macro turn(m) %}<{{ m.role | upper }}>{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}" + BODY,
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}" + BODY,
    "{% for m in messages[::-1] %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}" + BODY,
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}" + BODY,
    "{{ {'é': [1, 2.5, none, true]} }}{{ dict(a=1) }}{{ range(3) | list }}{{ 'x' ~ 1 }}" + BODY,
    "{% if tools is none and documents is none %}no tools{% endif %}{% if tools %}T{% endif %}" + BODY,
    "{% if custom_tools is defined %}C{% endif %}{{ reasoning_effort or 'medium' }}{{ nothing }}" + BODY,
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}" + BODY,
    "{% generation %}{{ messages[1].content if messages | length > 1 }}{% endgeneration %}|" + BODY,
    "{% generation %}\n{% set x = 'inner' %}\n{{ x }}\n{% endgeneration %}\n{{ x }}" + BODY,
    "{% if date_string is not defined %}{% set date_string = 'none' %}{% endif %}{{ date_string }}" + BODY,
    "{{ messages[0].content.split('?')[0].strip() }}{{ messages | map(attribute='role') | join(',') }}" + BODY,
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ '%s-%d' % ('a', 3) }}" + BODY,
    "{%- set loop_messages = messages %}{{ loop_messages | last | attr('role') }}" + BODY,
    "{{ '-' * 3 }}{{ 2 * 'ab' }}{{ 2 ** 10 }}{{ 1.5 * 2 }}{{ 2 ** -1 }}{{ [1] * 2 }}{{ -2 * -3 }}{{ 'x' * -1 }}" + BODY,
    "{{ messages[0].items() | list }}{{ 'a,b'.split(',') }}{{ cycler('x', 'y').next() }}{{ joiner()() }}" + BODY,
]  # fmt: skip

FROM_OUTSIDE = {
    "{{ ['a', 'b', 'c'] | random }}": "random",
    "{{ range(10) | random }}": "random",
    "{{ lipsum(n=1) }}": "lipsum",
    "{{ now() }}": "now",
    "{{ datetime.now() }}": "datetime",
    "{{ time() }}": "time",
    "{{ strftime_now }}": "function",
    "{{ raise_exception }}": "function",
    "{{ messages[0].content.upper }}": "builtin_function_or_method",
    "{{ [messages.count] }}": "builtin_function_or_method",
    "{{ {'a': messages.count} }}": "builtin_function_or_method",
    "{{ namespace() }}": "Namespace",
    "{{ cycler('a') }}": "Cycler",
    "{% macro m() %}{% endmacro %}{{ m }}": "Macro",
    "{{ messages | map('upper') }}": "generator",
    "{{ strftime_now('%c') }}": "%c",
    "{{ strftime_now('%s') }}": "%s",
    "{{ strftime_now('%Z') }}": "%Z",
}
BROKEN = {
    "{% for m in messages %}": "line 1",
    "a\n{{ 'b' }\n": "line 2",
    "{{ messages | nothing }}": "nothing",
    "{{ nothing() }}": "nothing",
    "{{ nothing.more }}": "nothing",
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{{ range(10 ** 9) | list }}": "OverflowError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{% include 'other' %}": "loader",
    # also where constants are computed, when the template is read
    **dict.fromkeys(
        ["{{ 'x' * 10**10 }}", "{{ 10**10000000 }}", "{{ ([1] * 2000000) | length }}", "{{ 3000000 * 'ab' }}",
         "{{ (('a',) * 9999999) | length }}", "{{ 2 ** 3000000 }}", "{% set n = 3000000 %}{{ 2 ** n }}{{ 'x' * n }}"],
        "too large",
    ),
    "{{ messages.append({}) }}": "",
    "{{ [] | first | upper | nothing }}": "nothing",
    "{{ raise_exception('only\ntools') }}": "only tools",
    "{{ raise_exception() }}": "TypeError",
    "{{ raise_exception(messages) }}": "",
    "(" * 100 + "{{" + "(" * 50_000 + "}}": "",
}  # fmt: skip


def tokenizer_with(tokenizers, template) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers["llama3"].backend_tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    )
    found.chat_template = template
    return found


@pytest.mark.parametrize("template", DETERMINISTIC)
@pytest.mark.parametrize("generate", [True, False])
def test_templates_render_as_in_transformers(tokenizers, template, generate):
    tokenizer = tokenizer_with(tokenizers, template)
    for count in (1, 2):
        expected = tokenizer.apply_chat_template(
            MESSAGES[:count], tokenize=False, add_generation_prompt=generate, **TEMPLATE_ARGUMENTS
        )
        assert ChatTemplate(tokenizer).render(MESSAGES[:count], generate, None) == expected


@pytest.mark.parametrize("style", ["chatml", "llama3", "mistral"])
def test_templates_of_the_families_render_as_in_transformers(tokenizers, style):
    template = ChatTemplate(tokenizers[style])
    expected = tokenizers[style].apply_chat_template(MESSAGES, tokenize=False, **TEMPLATE_ARGUMENTS)
    assert template.render(MESSAGES, False, None) == expected


def test_todays_date_is_the_fixed_one(tokenizers):
    tokenizer = tokenizer_with(tokenizers, "{{ strftime_now('%d %b %Y') }}|{{ date_string }}|" + BODY)
    assert ChatTemplate(tokenizer).render(MESSAGES, False, None).split("|")[:2] == [DATE, DATE]
    assert TEMPLATE_ARGUMENTS.items() <= Renderer(tokenizer).style.items()


CODES = [f"%{flag}{c}" for c, text in _CODES.items() for flag in ("", "-" * text.isdecimal())]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*CODES, "é", " ", "T", "\n"])))
def test_dates_are_those_of_strftime(parts):
    form = "".join(part for part in parts if part != "%-%")
    template = ChatTemplate(
        SimpleNamespace(get_chat_template=lambda: "{{ strftime_now(messages) }}", special_tokens_map={})
    )
    assert template.render(form, False, None) == DAY.strftime(form)  # type: ignore[arg-type]


RENDER = """
import json, locale, sys
from types import SimpleNamespace
from kvbench.tasks.chat import ChatTemplate
wanted = sys.argv[1]
if wanted:
    locale.setlocale(locale.LC_ALL, wanted)
for text in json.load(sys.stdin):
    tokenizer = SimpleNamespace(get_chat_template=lambda: text, special_tokens_map={"bos_token": "<s>"})
    print(json.dumps(ChatTemplate(tokenizer).render([{"role": "user", "content": "a"}], True, None)))
"""


def test_time_zone_locale_and_hash_seed_do_not_matter():
    templates = [*DETERMINISTIC[:10], "{{ strftime_now('%A %d %B %Y %H:%M:%S') }}"]

    def rendered(zone: str, wanted: str, seed: str) -> bytes:
        env = {**os.environ, "TZ": zone, "LC_ALL": wanted or "C", "PYTHONHASHSEED": seed}
        command, given_to = [sys.executable, "-c", RENDER, wanted], json.dumps(templates).encode()
        return subprocess.run(command, input=given_to, env=env, capture_output=True, check=True).stdout

    first = rendered("UTC", "", "0")
    assert first.count(b"\n") == len(templates)
    assert rendered("Pacific/Kiritimati", "C.UTF-8", "1") == first


@pytest.mark.parametrize("template", FROM_OUTSIDE)
def test_what_reads_from_outside_is_refused(tokenizers, template):
    with pytest.raises(UserError, match=r"model\.chat_template: ") as error:
        Renderer(tokenizer_with(tokenizers, template + BODY))
    assert FROM_OUTSIDE[template] in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_template_is_one_line(tokenizers, template):
    with pytest.raises(UserError, match=r"model\.chat_template: ") as error:
        Renderer(tokenizer_with(tokenizers, template + BODY))
    text = str(error.value)
    assert BROKEN[template] in text and "\n" not in text and len(text) < 500, text


@pytest.mark.parametrize("templates", [{"rag": BODY}, {}, 7, ["x"]])
def test_templates_without_a_default(tokenizers, templates):
    tokenizer = tokenizer_with(tokenizers, BODY)
    tokenizer.chat_template = templates
    with pytest.raises(UserError, match=r"model\.chat_template"):
        Renderer(tokenizer)


def test_the_default_of_several_templates_is_taken(tokenizers):
    tokenizer = tokenizer_with(tokenizers, {"default": BODY, "tool_use": "{{ tools }}"})
    assert Renderer(tokenizer).render(Sample("A.", " B?", "", (), 1)).text == "[user]A. B?[a]"


def test_templates_that_refuse_roles(tokenizers):
    alternate = (
        "{% if messages | length > 1 %}{{ raise_exception('roles must alternate') }}{% endif %}" + BODY
    )
    tokenizer = tokenizer_with(tokenizers, alternate)
    with pytest.raises(UserError, match=r"model\.system: .*roles must alternate"):
        Renderer(tokenizer, system="Hm.")
    with pytest.raises(UserError, match=r"model\.chat_template: .*roles must alternate"):
        Renderer(tokenizer, system="")
    forgetful = "{{ messages[0].content }}{% if messages | length > 2 %}{{ messages[2].content }}{% endif %}"
    from kvbench.tasks import Turn

    talk = Sample("A.", " C?", "", (), 1, earlier=(Turn(" B?", "", "Yes."),))
    with pytest.raises(UserError, match="rewrites earlier turns"):
        Renderer(tokenizer_with(tokenizers, forgetful)).render(talk)
