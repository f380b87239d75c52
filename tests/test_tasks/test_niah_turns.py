"""Conversations: what their turns share, how they are rendered, what is refused."""

import re

import pytest

from kvbench import tasks
from kvbench.config.errors import UserError
from kvbench.tasks import Renderer, Sample, Turn

NEEDLE = re.compile(r"Among the secret numbers, the one for (\S.*?) is: (\S+)\.")
# what stands between an answer and the next answer's prefix, around the question
SEAMS = {
    "chatml": ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "llama3": (
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": ("</s>[INST] ", "[/INST]"),
}


def samples(renderer, n=8, length=1024, **values):
    task = tasks.build("t", {"family": "niah_turns", "max_new_tokens": 16, **values})
    return task.samples(n, 0, length, renderer)


def test_every_turn_asks_for_another_needle_of_the_same_haystack(renderer):
    found = samples(renderer)
    for first in (0, 4):
        turns = found[first : first + 4]
        needles = dict(NEEDLE.findall(turns[0].context))
        assert len(needles) == 4 and {turn.context for turn in turns} == {turns[0].context}
        queried = [re.search(r"give for (.*)\?", turn.question)[1] for turn in turns]
        assert sorted(queried) == sorted(needles)
        assert [turn.gold for turn in turns] == [(needles[key],) for key in queried]
        for number, turn in enumerate(turns):
            assert turn.meta["turn"] == number and turn.meta["conversation"] == first // 4
            assert turn.earlier == tuple(Turn(t.question, t.answer_prefix, t.gold[0]) for t in turns[:number])
    assert found[0].context != found[4].context


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_the_last_turn_has_the_length(renderer, length):
    last = samples(renderer, n=4, length=length)[-1]
    assert 0.9 * length <= renderer.count(last) + 16 <= length


@pytest.mark.parametrize("style", SEAMS)
@pytest.mark.parametrize("system", [None, "", "Hm."])
def test_a_turn_goes_on_where_the_one_before_ended(tokenizers, style, system):
    renderer = Renderer(tokenizers[style], system=system)
    turns = samples(renderer, n=3)
    prompts = [renderer.render(turn) for turn in turns]
    before, after = SEAMS[style]
    for number in (1, 2):
        earlier, now = turns[number - 1 : number + 1]
        added = prompts[number].text.removeprefix(prompts[number - 1].text)
        question = now.question.strip()
        assert added == f" {earlier.gold[0]}{before}{question}{after}{now.answer_prefix}"
        # the first prompt's tokens are those that a server has
        assert prompts[number].first_end == len(prompts[0].ids)
        assert prompts[number].ids[: prompts[number].first_end] == prompts[0].ids
        assert prompts[number].turn_start == len(prompts[number - 1].ids)
        assert prompts[number].context_end == prompts[0].context_end
    assert prompts[0].first_end is None and prompts[0].turn_start is None


def test_without_a_template_turns_are_text(tokenizers):
    renderer = Renderer(tokenizers["chatml"], chat_template=False)
    one, two = samples(renderer, n=2)
    text = renderer.render(two).text
    assert text == f"{renderer.render(one).text} {one.gold[0]}{two.question}{two.answer_prefix}"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizers):
    strict = type(tokenizers["chatml"])(tokenizer_object=tokenizers["chatml"].backend_tokenizer)
    strict.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    renderer = Renderer(strict)
    queried = Sample("The wall.", "\nWhich?", "", ("old",), 4, earlier=(Turn("\nWhere?", "", "here"),))
    with pytest.raises(UserError, match=r"model\.chat_template: the template rewrites earlier turns"):
        renderer.render(queried)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"turns": 5}, r"turns: 5 is not allowed, give 1 to keys \(4\)"),
        ({"turns": 0}, r"turns: 0 is not allowed"),
        ({"values": 2}, r"values: 2 is not allowed, every turn asks for one value"),
        ({"queries": 2}, r"queries: 2 is not allowed, every turn asks for one value"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(UserError, match=rf"task\.t\.{message}"):
        tasks.build("t", {"family": "niah_turns", **values})
