"""LongBench: wording, limits, rows and scores."""

import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import build
from kvbench.tasks.lm_eval_files import task_folder
from kvbench.tasks.longbench import _TASKS, LongBench, prompt
from kvbench.tasks.longbench_scores import SCORES

NAMES = list(LongBench.names)
CLASSES = ["Date", "Other date", "Person", "Description of a person"]


def task_of(tmp_path: Path, name: str, rows=None, **settings):
    config = LongBench(name=name, data="-")
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    file = data / f"{name}{'_e' if settings.get('extended') else ''}.jsonl"
    rows = config.examples(3, 120) if rows is None else rows
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return build(f"longbench_{name}", {"family": "longbench", "name": name, "data": str(data), **settings})


@pytest.mark.parametrize("name", NAMES)
def test_the_official_prompt_is_filled_and_nothing_else(tmp_path, renderer, name):
    if _TASKS[name].score in ("qa_f1_zh", "rouge_zh"):
        pytest.importorskip("jieba", reason="the extra tasks")
    task = task_of(tmp_path, name)
    row = task.config.rows.rows[1]
    sample = task.samples(None, 0, 0, renderer)[1]
    text = prompt(name).replace("{context}", row["context"]).replace("{input}", row["input"])
    assert sample.context + sample.question == text
    assert sample.context.endswith(row["context"])
    assert sample.gold == tuple(row["answers"]) and sample.max_new_tokens == _TASKS[name].tokens
    assert sample.plain == (name in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"))
    assert sample.stop.first_line == (name in ("trec", "triviaqa", "samsum", "lsht"))
    assert ("system" in renderer.render(sample).text) == (not sample.plain)


def test_a_prompt_that_is_not_the_official_one_is_refused(monkeypatch):
    changed = {"doc_to_text": "Article: {{context}}\nQuestion: {{question}}"}
    monkeypatch.setattr("kvbench.tasks.longbench.task_file", lambda path: changed)
    prompt.cache_clear()
    try:
        with pytest.raises(
            UserError, match=r"^wording: the installed lm-eval \(0\.4\..*longbench/qasper.yaml"
        ):
            prompt("qasper")
    finally:
        prompt.cache_clear()


def test_rows_of_the_copy_for_another_tool_are_refused(tmp_path, renderer):
    (row, *_) = LongBench(name="qasper", data="-").examples(1, 20)
    for other in (
        {**row, "answer_prefix": "Answer:"},
        {**row, "context": prompt("qasper").replace("{context}", row["context"])},
    ):
        with pytest.raises(
            UserError, match=r"task\.longbench_qasper\.data: .*qasper\.jsonl row 2: is of a copy"
        ):
            task_of(tmp_path, "qasper", [row, other]).samples(None, 0, 0, renderer)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"answers": []}, r"row 2: answers must be a list of texts, at least one, not \[\]"),
        ({"answers": "cat"}, "row 2: answers must be a list of texts, at least one, not 'cat'"),
        ({"length": "12"}, "row 2: length must be a whole number, not '12'"),
        ({"context": None}, "row 2: context must be text, not None"),
        ({"input": ...}, "row 2: there is no field input, but context, answers"),
    ],
)
def test_a_wrong_row_is_named_with_its_field(tmp_path, renderer, change, text):
    (row, *_) = LongBench(name="qasper", data="-").examples(1, 20)
    wrong = {key: value for key, value in {**row, **change}.items() if value is not ...}
    with pytest.raises(UserError, match=text):
        task_of(tmp_path, "qasper", [row, wrong]).samples(None, 0, 0, renderer)


def test_without_data_the_line_says_where_it_is_and_under_which_licence():
    with pytest.raises(UserError) as error:
        build("longbench_qasper", {"family": "longbench", "name": "qasper"})
    line = str(error.value)
    for part in (
        "task.longbench_qasper.data:",
        "zai-org/LongBench",
        "MIT",
        "qasper.jsonl",
        "answers",
        "download=true",
    ):
        assert part in line
    assert "\n" not in line


def test_longbench_e_has_13_tasks():
    assert sum(task.extended for task in _TASKS.values()) == 13
    with pytest.raises(UserError, match="LongBench-E has no narrativeqa, but qasper"):
        LongBench(name="narrativeqa", data="-", extended=True)


def test_other_data_are_another_task_and_another_folder_is_not(tmp_path, renderer):
    first = task_of(tmp_path, "trec")
    rows = [dict(row) for row in first.config.rows.rows]
    ids = []
    for folder, change in (("a", {}), ("b", {}), ("c", {"all_classes": ["Number", "Other"]})):
        (tmp_path / folder).mkdir()
        task = task_of(tmp_path / folder, "trec", [*rows[:-1], {**rows[-1], **change}])
        ids.append(task.identity())
    assert ids[0] == ids[1] != ids[2]


GOLDEN = [
    ("qasper", "The answer is a cat.", "cat", 50), ("qasper", "", "unanswerable", 0),
    ("narrativeqa", "the the", "a", 0), ("2wikimqa", "well-known", "well known", 0),
    ("passage_count", "There are 12 of 30", "12", 50), ("passage_count", "twelve", "12", 0),
    ("passage_retrieval_en", "Paragraph 15, not 5", "Paragraph 5", 50),
    ("lcc", "# comment\nreturn x", "return x", 100), ("lcc", "\n\n   \nreturn x", "return x", 18),
    ("lcc", "```python\nx = 1\n```", "x = 1", 100),
    ("lcc", "    return self.value", "    return self.values", 98), ("lcc", "abcd", "dcba", 25),
    ("lcc", "ac=ab", "ab=ac", 40),
    ("gov_report", "the cat sat on the mat", "the cat sat on a mat", 90.91), ("gov_report", "b a", "a b", 50),
    ("gov_report", "a b. c d", "c d. a b", 100), ("gov_report", "a a a b", "a b b", 100),
    ("gov_report", "...", "a", 0), ("gov_report", "a . . b", "a. b", 80),
    ("samsum", "\nAmy is ill.\nBob: hi", "Amy is ill.", 100),
    ("triviaqa", "\n\nParis\nLondon", "Paris", 100), ("triviaqa", "\n \nParis", "Paris", 0),
]  # fmt: skip
CHINESE = [
    ("dureader", "北京大学在北京", "北京大学", 50), ("multifieldqa_zh", "北京大学。", "北京大学", 100),
    ("multifieldqa_zh", "在北京大学", "北京大学", 66.67), ("vcsum", "会议讨论了预算", "会议讨论预算", 85.71),
]  # fmt: skip


def score(tmp_path, renderer, name: str, output: str, answers: list[str], classes=None) -> float:
    (row, *_) = LongBench(name=name, data="-").examples(1, 20)
    task = task_of(
        tmp_path, name, [{**row, "answers": answers, "all_classes": classes or row["all_classes"]}]
    )
    (sample,) = task.samples(None, 0, 0, renderer)
    headline, found = task.scores(output, sample)
    assert found == {task.metric: headline}
    return 100 * headline


@pytest.mark.parametrize(("name", "output", "answer", "expected"), GOLDEN)
def test_scores_are_the_official_ones(tmp_path, renderer, name, output, answer, expected):
    assert score(tmp_path, renderer, name, output, [answer]) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("name", "output", "answer", "expected"), CHINESE)
def test_chinese_scores_are_the_official_ones(tmp_path, renderer, name, output, answer, expected):
    pytest.importorskip("jieba", reason="the extra tasks")
    assert score(tmp_path, renderer, name, output, [answer]) == pytest.approx(expected, abs=0.005)


def test_the_best_of_several_answers_counts(tmp_path, renderer):
    assert score(tmp_path, renderer, "hotpotqa", "Ann Lee and Bob", ["Bob", "Ann Lee"]) == pytest.approx(
        66.67, abs=0.01
    )


@pytest.mark.parametrize(
    ("classes", "output", "answer", "expected"),
    [
        (CLASSES, "Other date", "Other date", 100), (CLASSES, "Other date", "Date", 0),
        (CLASSES, "Person or Date", "Date", 50), (CLASSES, "date", "Date", 0),
        (["a", "ab", "abc", "d"], "abcd", "abc", 33.33), (["a", "ab", "abc", "d"], "abcd", "d", 25),
    ],
)  # fmt: skip
def test_classes_are_counted_as_the_official_loop_does(tmp_path, renderer, classes, output, answer, expected):
    found = score(tmp_path, renderer, "trec", output, [answer], classes)
    assert found == pytest.approx(expected, abs=0.005)


def official(monkeypatch):
    """lm-eval's port of LongBench's metrics, with a stand-in for the GPL package that it imports."""
    for package in ("rouge", "jieba"):
        pytest.importorskip(package, reason="the extra tasks")
    stub = types.ModuleType("fuzzywuzzy")
    stub.fuzz = types.SimpleNamespace(ratio=None)
    monkeypatch.setitem(sys.modules, "fuzzywuzzy", stub)
    spec = importlib.util.spec_from_file_location(
        "longbench_metrics", task_folder() / "longbench" / "metrics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_texts_score_as_by_the_official_code(monkeypatch):
    module, rng = official(monkeypatch), random.Random(0)
    pieces = "a|the|an|cat|Cat|cat's|12|3|-|. |.| |\n|é|北京|大学|。|，|》|．|Paragraph 3|段落3".split("|")
    pairs = {
        "qa_f1": module.qa_f1_score, "qa_f1_zh": module.qa_f1_zh_score, "rouge": module.rouge_score,
        "rouge_zh": module.rouge_zh_score, "count": module.count_score,
    }  # fmt: skip
    different = []
    for _ in range(600):
        ours, theirs = ("".join(rng.choices(pieces, k=rng.randrange(1, 12))) for _ in range(2))
        for name, function in pairs.items():
            if abs(SCORES[name](ours, theirs) - function(ours, theirs)) > 1e-12:
                different.append((name, ours, theirs))
        marked = f"{theirs} Paragraph 3 段落4"
        assert SCORES["retrieval"](ours, marked) == module.retrieval_score(ours, marked)
        assert SCORES["retrieval_zh"](ours, marked) == module.retrieval_zh_score(ours, marked)
        classes = rng.sample(["a", "ab", "abc", "b", "bc", "c", "d"], 5)
        text, answer = "".join(rng.choices("abcd", k=5)), rng.choice(classes)
        found = module.classification_score(text, answer, all_classes=classes)
        assert SCORES["classification"](text, answer, classes) == found
    assert not different


def test_a_long_common_subsequence_is_scored_where_the_package_recurses_too_deep():
    text = " ".join(f"w{n}" for n in range(1500))
    assert SCORES["rouge"](text, text) == pytest.approx(1)
