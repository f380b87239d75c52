"""GSM8K with examples: prompt, training rows, and the two official matches."""

import json
import random

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import build, gsm8k

ROW = {"question": "How many?", "answer": "It is 3 + 4 = <<3+4=7>>7 apples.\n#### 7"}
TRAIN = [
    {"question": f"Question {n}?", "answer": f"First {n} = <<{n}={n}>>{n}.\n  Then <<1>>1.\n#### 1,{n:03}"}
    for n in range(60)
]


def task_of(tmp_path, **settings):
    for name, rows in (("test", [ROW, {**ROW, "question": "And now?"}]), ("train", TRAIN)):
        lines = (json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return build("gsm", {"family": "gsm8k_shots", "data": str(tmp_path), **settings})


def test_eight_shots_are_lm_evals_text_in_lm_evals_form(tmp_path, renderer):
    first, second = task_of(tmp_path).samples(None, 0, 0, renderer)
    examples = gsm8k.first_examples()
    shots = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in examples)
    assert len(examples) == 8 and all("The answer is " in answer for _, answer in examples)
    assert first.context + first.question == shots + "Q: How many?\nA:"
    assert first.context == second.context == shots and first.shared
    assert (first.gold, first.max_new_tokens) == (("7",), 256)
    assert first.stop.strings == ("Q:", "</s>", "<|im_end|>")


def test_fifty_shots_are_the_eight_and_the_first_training_rows(tmp_path, renderer):
    task = task_of(tmp_path, shots=50, train=str(tmp_path / "train.jsonl"), max_new_tokens=64)
    (sample, _) = task.samples(None, 0, 0, renderer)
    questions = [line.removeprefix("Q: ") for line in sample.context.splitlines() if line.startswith("Q: ")]
    assert questions == [q for q, _ in gsm8k.first_examples()] + [row["question"] for row in TRAIN[:42]]
    assert "Question 3?\nA: First 3 = 3. Then 1. The answer is 1,003.\n\n" in sample.context
    assert "<<" not in sample.context


def test_a_draw_depends_on_its_seed_alone_and_other_training_rows_are_another_task(tmp_path, renderer):
    folder = str(tmp_path)
    one, same, other = (
        task_of(tmp_path, shots=12, train=folder, draw=seed).samples(1, 0, 0, renderer)[0].context
        for seed in (3, 3, 4)
    )
    assert one == same != other
    ids = [task_of(tmp_path, shots=12, train=folder).identity()]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text(
        json.dumps(TRAIN[0]) * 1 + "\n" + "\n".join(map(json.dumps, TRAIN[:9]))
    )
    ids.append(task_of(tmp_path, shots=12, train=str(tmp_path / "other")).identity())
    assert ids[0]["data"] != ids[1]["data"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 50}, r"^task\.gsm\.train: 50 shots need training rows of GSM8K, openai/gsm8k"),
        ({"shots": 8, "train": "x"}, r"^task\.gsm\.train: training rows and their draw are for more than 8"),
        ({"shots": -1}, r"^task\.gsm\.shots: -1 is not allowed"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        task_of(tmp_path, **settings)


def test_training_rows_that_do_not_suffice_or_are_wrong_are_one_line(tmp_path, renderer):
    with pytest.raises(UserError, match=r"train: .*train\.jsonl has 60 rows, 100 shots need 92"):
        task_of(tmp_path, shots=100, train=str(tmp_path / "train.jsonl")).samples(1, 0, 0, renderer)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"question": "?", "answer": "7"}))
    with pytest.raises(UserError, match=r"train: .*bad\.jsonl row 1: answer has no '#### '"):
        task_of(tmp_path, shots=9, train=str(tmp_path / "bad.jsonl")).samples(1, 0, 0, renderer)


def test_wording_that_changed_is_refused(monkeypatch):
    monkeypatch.setattr("kvbench.tasks.gsm8k.task_file", lambda path: {"doc_to_text": "Q: {{question}}"})
    gsm8k.first_examples.cache_clear()
    with pytest.raises(UserError, match=r"wording: the installed lm-eval .*gsm8k-cot\.yaml"):
        gsm8k.first_examples()


@pytest.mark.parametrize(
    ("output", "strict", "flexible"),
    [
        ("The answer is 1,200.", 1, 1), ("The answer is $1200", 0, 1), ("so 1200 dollars", 0, 1),
        ("The answer is 1200.0.", 0, 0), ("The answer is 1200. Or 7", 1, 0), ("", 0, 0),
    ],
)  # fmt: skip
def test_scores_are_the_official_ones(output, strict, flexible):
    assert (gsm8k.strict(output, "1,200"), gsm8k.flexible(output, "1,200")) == (strict, flexible)


def test_random_texts_score_as_by_lm_evals_filters_and_metric():
    pytest.importorskip("sacrebleu", reason="the extra tasks")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    from kvbench.tasks.lm_eval_files import task_file

    entry, rng = task_file("gsm8k/gsm8k-cot.yaml"), random.Random(0)
    (metric,) = entry["metric_list"]
    options = {key: metric[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    pieces = [
        "The answer is ",
        "the answer is ",
        "1",
        "12",
        "7",
        ",",
        ".",
        "$",
        "-",
        " ",
        "\n",
        "#### ",
        "x",
        ".",
    ]
    ours = {"strict-match": gsm8k.strict, "flexible-extract": gsm8k.flexible}
    for rule in entry["filter_list"]:
        settings = {key: value for key, value in rule["filter"][0].items() if key != "function"}
        found = RegexFilter(**settings)
        for _ in range(1500):
            output, gold = ("".join(rng.choices(pieces, k=rng.randrange(7))) for _ in range(2))
            ((text,),) = found.apply([[output]], [{}])
            official = exact_match_hf_evaluate(predictions=[text], references=[gold], **options)[
                "exact_match"
            ]
            if text != "[invalid]":
                assert ours[rule["name"]](output, gold) == official, (output, gold)
