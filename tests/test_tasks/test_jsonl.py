import json
import random
import re
from dataclasses import replace

import pytest

from kvbench import tasks
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.tasks import Renderer, Turn, patterns

LINE = {
    "context": "The old wall is near the gate.",
    "question": "What is near the gate?",
    "answers": ["wall"],
}
# a question of a conversation
ASKED = {"question": LINE["question"], "answers": LINE["answers"]}
BLANK = ["", " ", "\t\n", "\u00a0", "\u3000", "\u200b", "\ufeff\u200e", "\u00ad"]


@pytest.fixture
def task(tmp_path):
    """`task(*lines, **parameters)`: a jsonl task over a file of these objects or texts."""

    def make(*lines, **values):
        file = tmp_path / "q.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return tasks.build("mine", {"family": "jsonl", "path": str(file), **values})

    return make


def test_lines_become_samples_in_order(task, renderer):
    own = {
        **LINE,
        "question": "Größe?",
        "answers": "eins",
        "answer_prefix": " Es ist",
        "max_new_tokens": 7,
        "id": "x",
    }
    mine = task(LINE, "", own, max_new_tokens=30)
    one, two = mine.samples(20, 0, 0, renderer)
    assert (one.context, one.question) == (LINE["context"], "\n\nWhat is near the gate?")
    assert (one.answer_prefix, one.gold, one.max_new_tokens, one.meta) == ("", ("wall",), 30, {"line": 1})
    assert (two.question, two.answer_prefix, two.gold) == ("\n\nGröße?", " Es ist", ("eins",))
    assert (two.max_new_tokens, two.meta) == (7, {"line": 3, "id": "x"})
    assert mine.samples(1, 0, 0, renderer) == [one]
    assert mine.samples(2, 9, 0, renderer) == [one, two]
    assert not mine.config.seeded
    assert mine.wording is None
    assert renderer.render(one).text.endswith("near the gate?<|im_end|>\n<|im_start|>assistant\n")


def test_a_conversation_has_a_sample_per_turn(task, renderer):
    second = {
        "question": "How is it?",
        "answers": ["old", "aged"],
        "answer_prefix": " It is",
        "max_new_tokens": 7,
    }
    third = {"question": "And the gate?", "answers": "near"}
    talk = {"context": LINE["context"], "turns": [ASKED, second, third], "id": "t"}
    mine = task(LINE, talk, LINE)
    samples = mine.samples(20, 0, 0, renderer)
    assert len(samples) == 5 and samples[0].earlier == samples[4].earlier == ()
    one, two, three = samples[1:4]
    assert one == replace(samples[0], meta={"line": 2, "id": "t", "turn": 0})
    assert two.earlier == (Turn("\n\nWhat is near the gate?", "", "wall"),)
    assert three.earlier == (*two.earlier, Turn("\n\nHow is it?", " It is", "old"))
    assert (two.gold, two.max_new_tokens, two.meta["turn"]) == (("old", "aged"), 7, 1)
    assert mine.samples(3, 0, 0, renderer) == samples[:3]
    assert renderer.render(three).text.endswith(
        "<|im_start|>assistant\n It is old<|im_end|>\n"
        "<|im_start|>user\nAnd the gate?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_conversation_is_cut_for_its_last_turn(task, renderer):
    context = " ".join(f"word{i}" for i in range(500))
    talk = {"context": context, "turns": [ASKED, {"question": context[:900], "answers": ["a"]}]}
    first, last = task(talk, truncate="middle", length=[1500]).samples(2, 0, 1500, renderer)
    assert first.context == last.context != context
    assert renderer.count(first) < renderer.count(last) <= 1500 - 128


def test_a_changed_file_is_read_again(task, renderer):
    assert task(LINE).samples(1, 0, 0, renderer)[0].gold == ("wall",)
    assert task({**LINE, "answers": ["gates"]}).samples(1, 0, 0, renderer)[0].gold == ("gates",)


@pytest.mark.parametrize(
    ("scorer", "output", "score"),
    [
        ("substring_all", "the wall", 0.5),
        ("substring_any", "the wall", 1),
        ("exact", "The wall.", 1),
        ("f1", "old wall", 2 / 3),
        ("rouge_l", "old wall", 2 / 3),
        ("regex", "WALL", 0),
    ],
)
def test_scorers(task, renderer, scorer, output, score):
    mine = task({**LINE, "answers": ["wall", "gate"]}, scorer=scorer)
    assert mine.metric == scorer
    assert mine.score(output, mine.samples(1, 0, 0, renderer)[0]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": ', "line 3 is not JSON"),
        ('{"context": "\\ud800"}', "line 3 is not JSON"),
        ("[1, 2]", "line 3: not an object"),
        ({"context": "c", "question": "q"}, "line 3: answers is missing"),
        ({"question": "q", "answers": ["a"]}, "line 3: context is missing"),
        ({**LINE, "context": 3}, "line 3: context must be text"),
        ({**LINE, "answer_prefix": None}, "line 3: answer_prefix must be text"),
        ({**LINE, "answers": []}, "line 3: answers must be a list of texts, at least one"),
        ({**LINE, "answers": ["a", 1]}, "line 3: answers must be a list of texts"),
        ({**LINE, "answers": ""}, "line 3: answers must be"),
        ({**LINE, "max_new_tokens": 0}, "line 3: max_new_tokens must be a positive whole number"),
        ({**LINE, "max_new_tokens": True}, "line 3: max_new_tokens must be"),
        ({"context": "c", "turns": []}, "line 3: turns must be a list of {question, answers}, at least one"),
        ({"context": "c", "turns": [ASKED, "q"]}, "line 3: turn 2: not an object {question, answers}"),
        ({"context": "c", "turns": [{"question": "q"}]}, "line 3: turn 1: not an object"),
        ({"context": "c", "turns": [{**ASKED, "answers": []}]}, "line 3: turn 1: answers must be a list"),
        ({"turns": [ASKED]}, "line 3: context is missing"),
        # keys that nothing reads
        (
            {**LINE, "max_new_token": 9},
            "line 3: there is no key 'max_new_token' (did you mean max_new_tokens?)",
        ),
        (
            {**LINE, "Answers": ["a"]},
            "line 3: there is no key 'Answers' (did you mean answers?); allowed: context",
        ),
        ({"context": "c", "turns": [ASKED], "answers": ["a"]}, "line 3: there is no key 'answers'"),
        ({"context": "c", "turns": [LINE]}, "line 3: turn 1: there is no key 'context'"),
        (
            '{"context": "c", "question": "q", "answers": ["a"], "answers": ["b"]}',
            "line 3 is not JSON (the key 'answers'",
        ),
        # blank answers, which every output would contain
        *(({**LINE, "answers": ["a", blank]}, "line 3: answers must be a list of texts") for blank in BLANK),
        ({**LINE, "context": " ", "question": "\n"}, "line 3: context and question are both blank"),
        ({"context": "c", "turns": [ASKED, {**ASKED, "question": " "}]}, "line 3: turn 2: question is blank"),
        # values that no number or text is
        (
            {**LINE, "max_new_tokens": 10**400},
            "line 3: max_new_tokens must be a positive whole number, up to",
        ),
        ('{"max_new_tokens": NaN}', "line 3 is not JSON (NaN is not a JSON number)"),
        ('{"max_new_tokens": 1' + "0" * 5000 + "}", "line 3 is not JSON ("),
        ({**LINE, "id": {"a": 1}}, "line 3: id must be text or a whole number"),
        ({**LINE, "answers": {"a": 1}}, "line 3: answers must be a list of texts"),
        ("[" * 100_000, "line 3 is not JSON of a question (nested too deeply)"),
        (
            '{"context": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 3 is not JSON of a question (nested too",
        ),
        ('{"a": ' * 100_000, "line 3 is not JSON of a question (nested too deeply)"),
    ],
)
def test_mistakes_name_the_line(task, renderer, line, message):
    with pytest.raises(UserError, match=rf"^task\.mine\.path: .*q\.jsonl {re.escape(message)}") as error:
        task(LINE, "", line).samples(1, 0, 0, renderer)
    assert "\n" not in str(error.value)


def test_regular_expressions_are_checked_where_they_are_used(task, renderer):
    bad = {**LINE, "answers": ["fine", "(open"]}
    with pytest.raises(UserError, match=r"line 2: answers: '\(open' is not a regular expression"):
        task(LINE, bad, scorer="regex").samples(1, 0, 0, renderer)
    assert len(task(LINE, bad).samples(2, 0, 0, renderer)) == 2
    with pytest.raises(UserError, match="line 1: turns need answers as text, not patterns"):
        task({"context": "c", "turns": [ASKED]}, scorer="regex").samples(1, 0, 0, renderer)


@pytest.mark.parametrize(
    "pattern", ["(" * 100_000, "a{99999999999}", "[z-a]", "(?P<n>a)(?P<n>b)", r"(a)\2", "*a"]
)
def test_patterns_that_cannot_be_compiled_are_refused(task, renderer, pattern):
    with pytest.raises(UserError, match=r"line 1: answers: .* is not a regular expression") as error:
        task({**LINE, "answers": [pattern]}, scorer="regex").samples(1, 0, 0, renderer)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_pattern_that_takes_too_long_is_named(task, renderer, monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT_S", 0.5)
    mine = task(LINE, {**LINE, "answers": [r"(?=a)(a+)+$"]}, scorer="regex")
    sample = mine.samples(2, 0, 0, renderer)[1]
    with pytest.raises(
        patterns.ScoreError, match=r"^task\.mine\.path: .*q\.jsonl line 2: answers: the pattern '\(\?=a"
    ):
        mine.score("a" * 40 + "!", sample)


def test_every_line_counts(task, renderer):
    """A line that the file has three times is three samples, whose prompts differ in their hash alone."""
    other = {**LINE, "question": "What else?"}
    mine = task(LINE, other, LINE, other, LINE, samples=None)
    made = list(mine.prompts(mine.wanted(None), 0, 0, renderer))
    assert [sample.meta["line"] for sample, _ in made] == [1, 2, 3, 4, 5]
    assert [sample.repeat for sample, _ in made] == [0, 0, 1, 1, 2]
    hashes = [prompt.hash for _, prompt in made]
    assert len(set(hashes)) == 5
    assert [renderer.render(sample).hash for sample, _ in made] == hashes
    # the first has the hash that it has in a file without repeats
    (_, alone), (_, second) = task(LINE, other).prompts(None, 0, 0, renderer)
    assert (alone.hash, second.hash) == (hashes[0], hashes[1])
    assert {tuple(prompt.ids) for _, prompt in made} == {tuple(alone.ids), tuple(second.ids)}


def test_all_lines_are_taken_unless_samples_says_how_many(task, renderer):
    lines = [{**LINE, "question": f"What is at place {i}?"} for i in range(31)]
    assert Groups().entry("task", "jsonl")["samples"] is None
    for settings, limit, n in (
        ({}, None, 31),
        ({"samples": 7}, None, 7),
        ({"samples": 7}, 3, 3),
        ({}, 30, 30),
    ):
        mine = task(*lines, **settings)
        assert len(mine.samples(mine.wanted(limit), 0, 0, renderer)) == n


def test_a_maximum_length_is_part_of_the_identity(task):
    """Short prompts are the same under every maximum, and each row of the table has its own."""
    mine = task(LINE, length=[0, 300, 400])
    assert mine.identity() == mine.identity(0)
    assert len({str(mine.identity(length)) for length in mine.config.length}) == 3
    with pytest.raises(UserError, match=r"task\.mine\.length: \[0, 0\] is not allowed, give each only once"):
        task(LINE, length=[0, 0])


@pytest.mark.parametrize("scorer", ["exact", "f1", "rouge_l", "regex"])
def test_a_mended_scorer_has_its_version(task, scorer):
    assert task(LINE).version == task(LINE).identity()["version"] == 1
    assert task(LINE, scorer=scorer).version == task(LINE, scorer=scorer).identity()["version"] == 2


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}", b"{\xff}", '{"context": "é"}'.encode("utf-16")])
def test_other_encodings_are_refused(task, renderer, tmp_path, content):
    mine = task(LINE)
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"^task\.mine\.path: .*q\.jsonl cannot be read as UTF-8 text"):
        mine.samples(1, 0, 0, renderer)


def test_byte_order_marks_line_ends_and_blank_lines_are_nothing(task, renderer, tmp_path):
    mine = task(LINE, LINE)
    expected = [sample.meta["line"] for sample in mine.samples(None, 0, 0, renderer)]
    line = json.dumps(LINE).encode()
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert [sample.meta["line"] for sample in mine.samples(None, 0, 0, renderer)] == expected == [1, 2]
    (tmp_path / "q.jsonl").write_bytes(b"\n \t\r\n" + line + b"\n\n" + line + b"\r\n\r\n")
    assert [sample.meta["line"] for sample in mine.samples(None, 0, 0, renderer)] == [3, 5]


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/q.jsonl", "."])
def test_paths_that_are_no_files_are_refused(renderer, path):
    mine = tasks.build("mine", {"family": "jsonl", "path": path})
    with pytest.raises(UserError, match=r"^task\.mine\.path: ") as error:
        mine.samples(1, 0, 0, renderer)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_used_are_refused(task, renderer, tmp_path):
    missing = tasks.build("mine", {"family": "jsonl", "path": str(tmp_path / "no.jsonl")})
    with pytest.raises(UserError, match=r"task\.mine\.path: .*no\.jsonl cannot be read"):
        missing.samples(1, 0, 0, renderer)
    with pytest.raises(UserError, match="has no lines"):
        task("", "").samples(1, 0, 0, renderer)


def test_long_documents_are_an_error_unless_they_may_be_cut(task, tokenizers):
    words = " ".join(f"word{i}" for i in range(2000))
    long = {**LINE, "context": f"BEGIN {words} END"}
    renderer = Renderer(tokenizers["chatml"], limit=1000)
    with pytest.raises(
        UserError, match=r"path: .* line 2 has \d+ tokens and 128 for the answer, 1000 are allowed"
    ):
        task(LINE, long).samples(2, 0, 0, renderer)
    short, cut = task(LINE, long, truncate="middle").samples(2, 0, 0, renderer)
    assert "cut_tokens" not in short.meta
    assert cut.context.startswith("BEGIN word0 word1")
    assert cut.context.endswith("word1999 END")
    assert 980 <= renderer.count(cut) + 128 <= 1000
    whole = len(renderer.offsets(long["context"]))
    assert cut.meta["cut_tokens"] == pytest.approx(whole - len(renderer.offsets(cut.context)), abs=2)
    half = cut.context.index("word1999") / 2
    assert abs(next(i for i in range(1999) if f"word{i} " not in cut.context) - 1000) > 500
    assert half > 0
    assert "answer_cut" not in cut.meta
    # the only place that states the answer is cut out
    middle = {**LINE, "context": f"{words[:9000]} the wall {words[9000:]}"}
    (lost,) = task(middle, truncate="middle").samples(1, 0, 0, renderer)
    assert lost.meta["answer_cut"] is True
    with pytest.raises(UserError, match="line 1 is too long even without its context"):
        task({**LINE, "question": words}, truncate="middle").samples(1, 0, 0, renderer)


def test_length_is_the_most_that_is_allowed(task, renderer):
    long = {**LINE, "context": "The old wall. " * 500}
    mine = task(long, truncate="middle", length=[300, 600])
    for length in mine.config.length:
        (sample,) = mine.samples(1, 0, length, renderer)
        assert 0.95 * length <= renderer.count(sample) + sample.max_new_tokens <= length
    (whole,) = mine.samples(1, 0, 0, renderer)
    assert whole.context == long["context"]


def test_a_cut_context_is_its_start_and_its_end(task, renderer):
    """No character comes twice, also where a character has several tokens."""
    context = "".join(random.Random(0).choices("😀é的👨‍👩a ", k=400))
    whole = renderer.count(task({**LINE, "context": context}).samples(1, 0, 0, renderer)[0])
    for length in range(whole - 60, whole + 128, 7):
        (cut,) = task({**LINE, "context": context}, truncate="middle").samples(1, 0, length, renderer)
        n = len(cut.context)
        assert any(cut.context == context[:k] + context[len(context) - n + k :] for k in range(n + 1))
        assert renderer.count(cut) + 128 <= length
