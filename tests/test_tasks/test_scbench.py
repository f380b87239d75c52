"""SCBench: sentences of a clone, conversations and single requests, cuts, and both kinds of scores."""

import json
import random
from importlib.util import find_spec

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import build, scbench_scores
from kvbench.tasks.scbench import SCBench
from kvbench.tasks.scbench_names import NAMES

ALL = list(NAMES)
OFTEN = [name for name in ALL if "repoqa" not in name and "summary" not in name]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with the official names and made-up sentences."""
    folder = tmp_path_factory.mktemp("clone")
    asked = {
        "choice_eng": "Q {question} {OPTION_A}|{OPTION_B}|{OPTION_C}|{OPTION_D} pick",
        "qa_eng": "Q {question}", "mf": "{prefix} {input}",
    }  # fmt: skip
    first, alone, following = {}, {}, {}
    for name in NAMES:
        question = asked.get(name, "{input}")
        first[f"scbench_{name}"] = f"Head of {name}. {{context}} Then {question}"
        alone[f"scbench_{name}"] = (
            (f"Alone {name}. {{context}}", question) if name == "qa_eng" else "Alone {context}"
        )
        following[f"scbench_{name}"] = f"Later {question}"
    (folder / "scbench").mkdir()
    (folder / "scbench" / "eval_utils.py").write_text(
        f"import torch_is_not_imported\nmultiturn_templates = {first!r}\nmultiturn_templates_scdq = {alone!r}\n"
        f"multiturn_follow_up_templates_in_chat_tempate = {following!r}\n"
    )
    return str(folder)


def task_of(tmp_path, name, rows=None, **settings):
    rows = SCBench(name=name, data="-").examples(2, 60) if rows is None else rows
    file = tmp_path / f"scbench_{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return build("scb", {"family": "scbench", "name": name, "data": str(tmp_path), **settings})


def needs(name):
    for package in (
        ("tree_sitter_languages",) if "repoqa" in name else ("rouge_score",) if "summary" in name else ()
    ):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")


@pytest.mark.parametrize("name", ALL)
def test_a_conversation_is_that_of_the_chat_template_with_gold_answers(tmp_path, renderer, clone, name):
    task = task_of(tmp_path, name, repo=clone)
    # prompts need no package of the scorers
    samples = [task.sample(n, 0, 0, renderer) for n in range(6)]
    assert [(s.meta["conversation"], s.meta["turn"]) for s in samples] == [
        (c, t) for c in (0, 1) for t in (0, 1, 2)
    ]
    row = task.config.rows.rows[1]
    messages = []
    for turn, sample in enumerate(samples[3:]):
        asked = row["multi_turns"][turn]
        if turn == 0:
            message = sample.context + sample.question
            assert message.startswith(f"Head of {name}. {row['context']}") and sample.context.endswith(
                str(row["context"])
            )
        else:
            message = sample.question
        assert asked["input"] in message
        messages.append({"role": "user", "content": message})
        text = renderer.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert renderer.render(sample).text == text
        messages.append({"role": "assistant", "content": str(asked["answer"])})
    assert task.wording.startswith("scbench (") and task_of(tmp_path, name).wording == "own"
    tokens = {
        "mf": {5}, "vt": {30}, "many_shot": {10}, "kv": {150}, "prefix_suffix": {150}, "repoqa": {1024},
        "summary": {200}, "summary_with_needles": {800, 15}, "repoqa_and_kv": {1024, 80},
    }  # fmt: skip
    assert {s.max_new_tokens for s in samples} == tokens.get(name, {40})


@pytest.mark.parametrize("name", ALL)
def test_single_requests_share_the_compressed_tokens(tmp_path, renderer, clone, name):
    for repo in (clone, None):
        task = task_of(tmp_path, name, repo=repo, mode="multi_request")
        prompts = [renderer.render(task.sample(n, 0, 0, renderer)) for n in range(3)]
        ends = {tuple(prompt.ids[: prompt.context_end]) for prompt in prompts}
        assert len(ends) == 1 and len({prompt.hash for prompt in prompts}) == 3
        # in mf the first question stands before the numbers, officially
        late = task.config.rows.rows[0]["multi_turns"][2]["input"]
        assert all(late not in renderer.tokenizer.decode(list(ids)) for ids in ends)


def test_quirks_are_the_three_of_the_official_code_and_nothing_else(tmp_path, renderer, clone):
    for name in OFTEN:
        plain, quirky = (
            [
                renderer.render(s).text
                for s in task_of(tmp_path, name, repo=clone, quirks=quirks).samples(3, 0, 0, renderer)
            ]
            for quirks in (False, True)
        )
        assert (plain != quirky) == (name in ("mf", "choice_eng")), name
        assert plain[0] == quirky[0]
    quirky = task_of(tmp_path, "mf", repo=clone, quirks=True).samples(3, 0, 0, renderer)
    assert [s.question for s in quirky[1:]] == [
        "Later What is the first number? The largest number is", "Later What is the first number? The first number is"
    ]  # fmt: skip
    assert "What is the smallest number? The smallest" in quirky[0].question
    needs("summary")
    found = [
        [s.answer_prefix for s in task_of(tmp_path, "summary", quirks=quirks).samples(3, 0, 0, renderer)]
        for quirks in (False, True)
    ]
    assert found == [["", "", ""], ["", "This paper", "This paper"]]


def test_official_sentences_are_told_by_their_hash_and_other_files_refused(tmp_path, renderer, clone):
    with pytest.raises(UserError, match=r"^task\.scb\.repo: .* has no scbench/eval_utils\.py"):
        _ = task_of(tmp_path, "kv", repo=str(tmp_path)).samples(1, 0, 0, renderer)
    (tmp_path / "scbench").mkdir()
    (tmp_path / "scbench" / "eval_utils.py").write_text("multiturn_templates = {}")
    with pytest.raises(
        UserError, match=r"repo: .*eval_utils\.py has not the sentences .*leave repo out for wording=own"
    ):
        _ = task_of(tmp_path, "kv", repo=str(tmp_path)).samples(1, 0, 0, renderer)


@pytest.mark.parametrize("most", [None, 400])
def test_prompts_that_are_too_long_lose_the_middle_of_the_context(tmp_path, renderer, most):
    rows = SCBench(name="kv", data="-").examples(1, 1500)
    whole = task_of(tmp_path, "kv", rows, max_new_tokens=8).samples(None, 0, 0, renderer)
    from kvbench.tasks import Renderer

    small = Renderer(renderer.tokenizer, limit=600)
    found = task_of(tmp_path, "kv", rows, max_new_tokens=8, max_length=most).samples(None, 0, 0, small)
    for before, after in zip(whole, found, strict=True):
        context = rows[0]["context"]
        head, tail = after.context[:200], after.context[-200:]
        assert (
            before.context.startswith(head)
            and before.context.endswith(tail)
            and len(after.context) < len(context)
        )
        assert after.question == before.question and after.meta["cut_tokens"] > 0 and after.context_known
        tokens = len(small.render(after).ids)
        assert tokens + 8 <= 600
        if most is not None and not after.earlier:
            assert most - 24 - 4 <= tokens <= most - 24 + 2


def turns(**turn):
    return {"multi_turns": [{"input": "?", "answer": "x", **turn}]}


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("kv", {"multi_turns": []}, "multi_turns must be a list of {input, answer}, at least one"),
        ("kv", {"context": 3}, "context must be text"),
        ("mf", {"context": "1 2"}, "context must be a list of numbers"),
        ("mf", turns(input="Which?", answer=1), "multi_turns 1: input has no sentence"),
        ("choice_eng", turns(options=list("abcd")), "multi_turns 1: options must be four"),
        ("summary_with_needles", turns(), "multi_turns 1: task must be scbench_summary or scbench_passkey"),
        ("repoqa", {"lang": None}, "multi_turns 1: a function needs lang and repo"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, renderer, name, change, text):
    needs(name)
    (row, *_) = SCBench(name=name, data="-").examples(1, 30)
    with pytest.raises(UserError, match=rf"data: .*row 1: {text}"):
        task_of(tmp_path, name, [{**row, **change}]).samples(None, 0, 0, renderer)


def score(tmp_path, renderer, name, output, label, **turn):
    (row, *_) = SCBench(name=name, data="-").examples(1, 30)
    asked = {**row["multi_turns"][0], "answer": label, **turn}
    task = task_of(tmp_path, name, [{**row, "multi_turns": [asked]}])
    (sample,) = task.samples(None, 0, 0, renderer)
    headline, found = task.scores(output, sample)
    assert headline == found["fixed"]
    return found["fixed"], found["official"]


GOLDEN = [
    ("kv", "the value is 12ab-34", "12ab-34", 1), ("kv", "12AB-34", "12ab-34", 0),
    ("mf", "The answer is -7", 7, 1), ("mf", "3.9", 3, 1), ("mf", "10 or 7", 7, 0), ("mf", "none", 7, 0),
    ("qa_eng", "It was bob smith.", "Bob Smith", 1), ("qa_eng", "Smith, Bob", "Bob Smith", 0),
    ("vt", "X1, x2", ["X1", "X2", "X3"], 0.67),
]  # fmt: skip


@pytest.mark.parametrize(("name", "output", "label", "expected"), GOLDEN)
def test_scores_are_the_official_ones(tmp_path, renderer, name, output, label, expected):
    assert score(tmp_path, renderer, name, output, label) == (expected, expected)


@pytest.mark.parametrize(
    ("output", "options", "label", "expected"),
    [
        ("B. Bob", ["Ann", "Bob", "x", "y"], "Bob", 1), ("A", ["Ann", "Bob", "x", "y"], "Bob", 0),
        ("Because Bob", ["Ann", "Bob", "x", "y"], "Bob", 1), ("the answer is: C", ["Ann", "Bob", "x", "y"], "Bob", 0),
        ("Bob", ["Ann", "Bob", "x", "y"], "Bob", 1), ("", ["Ann", "Bob", "x", "y"], "Bob", 0),
    ],
)  # fmt: skip
def test_choices_are_read_as_officially(tmp_path, renderer, output, options, label, expected):
    assert score(tmp_path, renderer, "choice_eng", output, label, options=options) == (expected, expected)


def test_texts_that_the_official_code_walks_by_character(tmp_path, renderer):
    assert score(tmp_path, renderer, "qa_chn", "是北京大学", "北京大学") == pytest.approx(
        (8 / 9, 1 / 3), abs=1e-9
    )
    assert score(tmp_path, renderer, "many_shot", "zebra", "(A)") == (0, 1)
    assert score(tmp_path, renderer, "many_shot", "so (a)", "(A)") == (1, 1)


def test_a_label_of_text_in_mf_is_an_error_as_officially():
    with pytest.raises(TypeError):
        scbench_scores.first_number("7", "7")


def test_numbers_in_articles_and_summaries(tmp_path, renderer):
    assert (
        scbench_scores.digits("pass 00123 or 4", "00123") == 1
        and scbench_scores.digits("pass 123", "00123") == 0
    )
    needs("summary")
    assert scbench_scores.rouge_lsum("a b c", "a b c d") == pytest.approx(0.857, abs=1e-3)
    assert scbench_scores.rouge_lsum("c d\na b", "a b\nc d") == pytest.approx(1)
    task = task_of(tmp_path, "summary_with_needles")
    samples = task.samples(3, 0, 0, renderer)
    assert [s.max_new_tokens for s in samples] == [800, 15, 800]
    assert set(task.scores("x", samples[1])[1]) == {"fixed", "official", "passkey"}
    assert set(task.scores("x", samples[0])[1]) == {"fixed", "official", "summary"}


def test_a_function_is_the_asked_one_if_no_other_is_more_similar(tmp_path, renderer):
    needs("repoqa")
    task = task_of(tmp_path, "repoqa")
    first, second, *_ = task.samples(None, 0, 0, renderer)
    code = f"Here:\n```python\n# a remark\n{first.gold[0]}\ndef other(): pass\n```"
    assert (task.score(code, first), task.score(code, second), task.score("no idea", first)) == (1, 0, 0)
    add = "def add(a, b):\n    return a + b"
    assert scbench_scores.bleu(add, add) == 1
    assert scbench_scores.bleu("def sub(a, b):\n    return a - b", add) == pytest.approx(0.219, abs=1e-3)


def test_scores_need_their_packages_before_anything_runs(tmp_path, renderer, monkeypatch):
    monkeypatch.setattr("kvbench.tasks.rows.find_spec", lambda package: None)
    for name, extra in (("repoqa", "repoqa"), ("summary", "tasks")):
        with pytest.raises(
            UserError, match=rf"task\.scb\.scbench_{name}: its scorer needs .*kvbench\[{extra}\]"
        ):
            task_of(tmp_path, name).samples(1, 0, 0, renderer)


def test_random_outputs_of_choices_never_fail():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(
            rng.choices(["A", "B", "Bob", " ", "answer is", ":", "option is ", ".", "b", "\n"], k=6)
        )
        assert scbench_scores.choice(text, ["Bob", "B"]) in (0, 1)
