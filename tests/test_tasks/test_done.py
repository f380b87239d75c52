"""What every family has: wording with a name, rows in the data set's form, one-line errors, a preview, a listing."""

import json
import random
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvbench_testing.made_up import write_rows

from kvbench import tasks
from kvbench.cli import listing
from kvbench.cli.tasks import _shown
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.rows import read

ENTRIES = {name: Groups().entry("task", name) for name in Groups().options("task")}
FAMILIES = {label: tasks.registry()[entry["family"]] for label, entry in ENTRIES.items()}
SETS = sorted(label for label, family in FAMILIES.items() if issubclass(family, DataSet))
PROSE = " ".join(f"Line {n} of a text that nobody asked about." for n in range(120))


def config_of(label, **values):
    family = FAMILIES[label]
    return family(**({"name": ENTRIES[label]["name"]} if "name" in ENTRIES[label] else {}), **values)


def rows_of(label, count=3):
    return [dict(row) for row in config_of(label, data="-").examples(count, 40)]


def file_of(folder, label, rows, suffix="jsonl"):
    file = folder / f"rows.{suffix}"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]"
    file.write_text(text, encoding="utf-8")
    return config_of(label, data=str(file))


def task_of(folder, label):
    """A task with all that it needs, made up."""
    family, entry = FAMILIES[label], dict(ENTRIES[label])
    if issubclass(family, DataSet):
        write_rows(folder, label)
        entry["data"] = str(folder)
    elif label == "lm_eval":
        pytest.importorskip("datasets", reason="the extra tasks")
        from kvbench.tasks.lm_eval_tasks import examples

        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, examples(3))))
        entry |= {"name": "gsm8k/gsm8k_cot", "data": str(folder / "rows.jsonl")}
    elif label == "jsonl":
        from kvbench.tasks.made_up import questions

        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, questions(3, 40))))
        entry["path"] = str(folder / "rows.jsonl")
    elif label == "perplexity":
        (folder / "text.txt").write_text(PROSE)
        entry |= {"path": str(folder / "text.txt"), "length": [300], "continuation": 60}
    elif label.startswith("ruler_qa"):
        (folder / "data.json").write_text(json.dumps(_questions(label[-1])))
        entry |= {"data": str(folder / "data.json"), "length": [1200]}
    return tasks.build(label, entry)


def _questions(name):
    if name == "2":
        return [
            {
                "question": f"Which {n}?",
                "answer": f"thing {n}",
                "context": [[f"Title {n}", ["One. ", f"Thing {n}."]]],
            }
            for n in range(90)
        ]
    asked = {"question": "What?", "answers": [{"text": "it"}], "is_impossible": False}
    return {
        "data": [
            {"paragraphs": [{"context": f"Fact {n} is it. " + "word " * 12, "qas": [asked]}]}
            for n in range(90)
        ]
    }


@pytest.mark.parametrize("label", sorted(ENTRIES))
def test_a_family_has_a_prompt_a_preview_and_scores(tmp_path, renderer, label):
    task = task_of(tmp_path, label)
    length = task.config.length[0]
    try:
        found = list(task.prompts(2, 0, length, renderer))
    except UserError as error:
        if "pip install 'kvbench[" not in str(error):
            raise
        pytest.skip(str(error))
    assert len(found) == 2 and found == list(task.prompts(2, 0, length, renderer))
    sample, prompt = found[0]
    text = _shown(task, length, 0, sample, prompt, False)
    for fact in (
        "tokens ",
        "context ",
        "ends at ",
        "metric ",
        "wording ",
        "gold ",
        task.metric,
        str(len(prompt.ids)),
    ):
        assert fact in text
    hidden = bool(sample.meta.get("hidden"))
    shown = sample.context[:40].strip() in text
    assert shown != hidden
    if sample.continuations:
        _, score, scores = task.judged([[-1.0]] * len(sample.continuations), sample)
        assert scores[task.metric] == score
    else:
        score, scores = task.scores(", ".join(sample.gold), sample)
        assert 0 <= score <= 1 and (not scores or scores[task.metric] == score)


@pytest.mark.parametrize("label", sorted(ENTRIES))
def test_a_family_has_its_row_of_the_listing(label):
    (entry,) = [entry for entry in listing._entries("tasks", Groups()) if entry["name"] == label]
    for fact in ("description", "source", "licence", "lengths", "scored", "needs"):
        assert entry[fact], fact
    family = FAMILIES[label]
    # the wording is the user's, or has a name in every table
    assert hasattr(family, "wording") or label in ("jsonl", "choices", "perplexity", "jailbreakv", "mrcr")


@pytest.mark.parametrize("label", SETS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    text=st.text(max_size=12),
    as_list=st.booleans(),
)
def test_order_duplicates_and_unicode_survive(tmp_path, label, order, text, as_list):
    made = rows_of(label)
    # lone surrogates are in no file
    text = text.encode("utf-8", "ignore").decode()
    for row in made:
        row["a note beside"] = f"{text}\u2028\x85北"
    rows = [made[n] for n in order]
    file = file_of(tmp_path, label, rows, "json" if as_list else "jsonl")
    assert list(read(file.data).rows) == rows
    assert [dict(row) for row in file.rows.rows] == rows


@pytest.mark.parametrize("label", SETS)
def test_a_wrong_row_is_one_line_with_file_row_and_field(tmp_path, label):
    fields = config_of(label, data="-").fields
    for field in fields:
        for change in ("missing", None, [], {}, float("nan")):
            rows = rows_of(label)
            if change == "missing":
                del rows[1][field]
            else:
                rows[1][field] = change
            try:
                _ = file_of(tmp_path, label, rows).rows
            except UserError as error:
                line = str(error)
                assert "\n" not in line and "rows.jsonl row 2: " in line and field in line, line
            else:
                # what a field may be besides text
                assert change != "missing" and fields[field][1](change)


@pytest.mark.parametrize("label", SETS)
def test_made_up_rows_are_the_same_bytes_every_time_and_fit_their_schema(tmp_path, label):
    first, again = (json.dumps(rows_of(label, 4), ensure_ascii=False).encode() for _ in range(2))
    assert first == again
    checked = file_of(tmp_path, label, rows_of(label, 4))
    assert len(checked.rows.rows) == 4
    other = file_of(tmp_path, label, rows_of(label, 3)).rows.digest
    assert checked.rows.digest != other


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_letter_of_any_row_is_other_data(tmp_path, seed):
    pick = random.Random(seed)
    label = pick.choice(SETS)
    rows = rows_of(label)
    before = file_of(tmp_path, label, rows).rows.digest
    rows[pick.randrange(3)]["a note beside"] = pick.choice(string.ascii_letters)
    assert file_of(tmp_path, label, rows).rows.digest != before
