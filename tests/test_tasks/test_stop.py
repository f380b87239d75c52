"""Texts that end an answer, token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.tasks import Stop


def answer(stop: Stop, ids: list[int], tokenizer) -> tuple[int, str]:
    """Number of tokens until the answer ends, and its text."""
    ends = stop.ends(tokenizer)
    count = next((n for n in range(1, len(ids) + 1) if ends(ids[:n])), len(ids))
    return count, stop.cut(ids[:count], tokenizer)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_text_across_tokens_and_inside_one_ends_an_answer(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = ids_of(tokenizer, "It is 12. Question: why? More.")
    count, text = answer(Stop(("Question:",)), ids, tokenizer)
    assert text.strip() == "It is 12." and count < len(ids)
    assert tokenizer.decode(ids[:count]).endswith("Question:")
    # the tokenizer has a token of a full stop and a line break
    lines = ids_of(tokenizer, "The lamp.\nThe road.\n")
    count, text = answer(Stop(("\n",)), lines, tokenizer)
    assert text.strip() == "The lamp." and "\n" in tokenizer.decode(lines[:count])


def test_the_earliest_of_several_texts_ends_it(tokenizers):
    tokenizer = tokenizers["chatml"]
    ids = ids_of(tokenizer, "a b c d")
    assert Stop((" c", " b")).cut(ids, tokenizer) == "a"


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_line_breaks_at_the_start_do_not_end_a_first_line(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = ids_of(tokenizer, "\n\nParis\nLondon")
    count, text = answer(Stop(first_line=True), ids, tokenizer)
    assert text.lstrip("\n") == "Paris" and count < len(ids)
    # a plain line break as a stop text takes the empty line before it
    assert answer(Stop(("\n",)), ids, tokenizer)[1] == ""


def test_a_special_token_as_stop_text_is_seen_and_not_shown(tokenizers):
    tokenizer = tokenizers["llama3"]
    ids = [
        *ids_of(tokenizer, "done"),
        tokenizer.convert_tokens_to_ids("<|eot_id|>"),
        *ids_of(tokenizer, " x"),
    ]
    count, text = answer(Stop(("<|eot_id|>",)), ids, tokenizer)
    assert count == len(ids) - len(ids_of(tokenizer, " x")) and text == "done"
    # another model's token is ordinary text
    ids = ids_of(tokenizer, "done</s> x")
    assert answer(Stop(("</s>",)), ids, tokenizer)[1] == "done"


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="ab\n. é京", max_size=30),
    st.lists(st.text(alphabet="ab\n é京", min_size=1, max_size=3), max_size=2),
)
def test_stopping_early_gives_the_text_of_a_whole_answer_cut(tokenizers, text, strings):
    # of two stop texts, one within the other, the shorter one is complete first
    strings = [s for s in strings if not any(other != s and other in s for other in strings)]
    tokenizer, stop = tokenizers["chatml"], Stop(tuple(strings))
    ids = ids_of(tokenizer, text)
    assert answer(stop, ids, tokenizer)[1] == stop.cut(ids, tokenizer)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab\n. ", max_size=30))
def test_the_first_line_is_that_of_the_whole_answer(tokenizers, text):
    tokenizer = tokenizers["chatml"]
    ids = ids_of(tokenizer, text)
    found = answer(Stop(first_line=True), ids, tokenizer)[1]
    assert found.lstrip("\n") == text.lstrip("\n").split("\n")[0]
