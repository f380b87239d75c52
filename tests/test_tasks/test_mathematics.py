"""MATH-500 and AIME: prompts, repeats and scores."""

import json

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import build
from kvbench.tasks.mathematics import Mathematics, verified


def task_of(tmp_path, name="aime24", rows=None, **settings):
    rows = Mathematics(name=name, data="-").examples(3, 1) if rows is None else rows
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {"family": "math", "name": name, "data": str(file), "max_new_tokens": 64, **settings}
    return build("math", values)


def test_repeats_of_a_document_are_neighbours_with_random_numbers_of_their_own(tmp_path, renderer):
    pytest.importorskip("math_verify", reason="the extra tasks")
    task = task_of(tmp_path, repeats=2, temperature=0.6, top_p=0.9)
    found = list(task.prompts(None, 7, 0, renderer))
    assert [(s.meta["document"], s.meta["repeat"], s.repeat) for s, _ in found] == [
        (0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 1),
    ]  # fmt: skip
    keys = [s.sampling.key for s, _ in found]
    assert keys == ["7/0/0", "7/0/1", "7/1/0", "7/1/1", "7/2/0", "7/2/1"]
    assert len({prompt.hash for _, prompt in found}) == 6
    assert all(s.shared for s, _ in found)
    assert task.config.aggregate == {"math_verify": "pass@k"} and task.config.seeded
    greedy = task_of(tmp_path)
    assert all(s.sampling is None for s in greedy.samples(None, 7, 0, renderer)) and not greedy.config.seeded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 2}, r"^task\.math\.repeats: 2 answers at temperature 0 are all the same"),
        ({"repeats": 0}, r"^task\.math\.repeats: 0 is not allowed"),
        ({"temperature": -1}, r"^task\.math\.temperature: -1"),
        ({"top_p": 0}, r"^task\.math\.top_p: 0"),
    ],
)
def test_settings_that_are_not_allowed(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        task_of(tmp_path, **settings)


def test_rows_in_each_schema_and_answers_as_numbers(tmp_path, renderer):
    pytest.importorskip("math_verify", reason="the extra tasks")
    for name in Mathematics.names:
        (sample, *_) = task_of(tmp_path, name).samples(None, 0, 0, renderer)
        assert sample.context in renderer.render(sample).text and not sample.context_known
    (row, *_) = Mathematics(name="aime24", data="-").examples(1, 1)
    (sample,) = task_of(tmp_path, rows=[{**row, "Answer": 204}]).samples(None, 0, 0, renderer)
    assert sample.gold == ("204",)
    with pytest.raises(UserError, match="row 1: Answer must be text or a whole number, not None"):
        task_of(tmp_path, rows=[{**row, "Answer": None}]).samples(None, 0, 0, renderer)


@pytest.mark.parametrize(
    ("output", "gold", "expected"),
    [
        (r"\boxed{0.5}", r"\frac12", 1), (r"so \boxed{\frac12}", "1/2", 1), ("The final answer is 204", "204", 1),
        ("$204$ or maybe $205$", "204", 0), (r"\boxed{0.1}", r"10\%", 0), (r"\boxed{2,1}", r"\{1,2\}", 1),
        (r"\boxed{(1,2]}", "(1,2]", 1), ("", "204", 0), (r"\boxed{205}", "204", 0),
    ],
)  # fmt: skip
def test_answers_are_judged_by_math_verify(output, gold, expected):
    pytest.importorskip("math_verify", reason="the extra tasks")
    assert verified(output, gold) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (r"so $x=1$ and $\boxed{204}$", 1), ("The answer is 204", 0), (r"\boxed{0204}", 0), ("$204$", 1),
    ],
)  # fmt: skip
def test_lm_evals_rule_stands_beside_it_for_aime(tmp_path, renderer, output, expected):
    pytest.importorskip("math_verify", reason="the extra tasks")
    (row, *_) = Mathematics(name="aime24", data="-").examples(1, 1)
    task = task_of(tmp_path, rows=[{**row, "Answer": "204"}])
    (sample,) = task.samples(None, 0, 0, renderer)
    headline, found = task.scores(output, sample)
    assert found["lm_eval"] == expected and found["math_verify"] == headline
