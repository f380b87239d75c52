"""Tasks of lm-eval in kvbench's engine: prompts, scores, and what is refused."""

import json
import socket
from importlib.util import find_spec

import pytest

from kvbench import experiments, report
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.runs.progress import Progress
from kvbench.tasks import build, lm_eval_tasks
from kvbench.tasks.lm_eval_tasks import _PACKAGES, examples

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in (*_PACKAGES, "lm_eval")), reason="the extra tasks"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def task_of(tmp_path, name, rows=None, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, examples(3) if rows is None else rows)), encoding="utf-8")
    return build("lm_eval", {"family": "lm_eval", "name": name, "data": str(file), **settings})


def test_the_prompt_is_lm_evals_and_a_sample_does_not_depend_on_others(tmp_path, renderer):
    task = task_of(tmp_path, "gsm8k/gsm8k_cot")
    first, second, _ = task.samples(None, 0, 0, renderer)
    row = examples(3)[1]
    assert second.question == f"Q: {row['question']}\nA:" and second.context.startswith(
        "Q: There are 15 trees"
    )
    assert first.context == second.context and second.gold == (row["answer"].split("#### ")[1],)
    assert (second.max_new_tokens, second.stop.strings) == (256, ("Q:", "</s>", "<|im_end|>"))
    again = task_of(tmp_path, "gsm8k/gsm8k_cot").samples(2, 0, 0, renderer)
    assert again == [first, second]
    shots = [task_of(tmp_path, "gsm8k/gsm8k", num_fewshot=1, fewshot_seed=seed) for seed in (1, 1, 2)]
    texts = [[sample.context for sample in shot.samples(None, 0, 0, renderer)] for shot in shots]
    assert texts[0] == texts[1] and len({text for shot in texts for text in shot}) > 1


def test_scores_are_lm_evals_by_filter(tmp_path, renderer):
    rows = [{"question": "?", "answer": "#### 1,200"}]
    task = task_of(tmp_path, "gsm8k/gsm8k_cot", rows)
    (sample,) = task.samples(None, 0, 0, renderer)
    keys = ("exact_match,strict-match", "exact_match,flexible-extract")
    assert task.metric == keys[0]
    for output, expected in {
        "The answer is 1,200.": (1, 1), "The answer is $1200": (0, 1), "The answer is 1200.0.": (0, 0),
        "The answer is 1200. Or 7": (1, 0), "": (0, 0),
    }.items():  # fmt: skip
        headline, found = task.scores(output, sample)
        assert (tuple(found[key] for key in keys), headline) == (expected, expected[0])
    assert task_of(tmp_path, "gsm8k/gsm8k_cot", rows, headline=keys[1]).metric == keys[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_task_at_all", "name: lm-eval .* has no task no_such_task_at_all"),
        ("longbench/longbench_qasper", "is not the benchmark of that name; take longbench_qasper"),
        ("ruler/ruler_qa_squad", "take ruler_niah_single_1"),
        ("hellaswag/hellaswag", "name: hellaswag|data: .* does not fit lm-eval's hellaswag"),
        (
            "gsm8k/gsm8k_cot",
            r"does not fit lm-eval's gsm8k_cot .*'question' is undefined.*its rows have text, number",
        ),
    ],
)
def test_what_cannot_run_is_one_line(tmp_path, renderer, name, message):
    with pytest.raises(UserError, match=message) as error:
        task_of(tmp_path, name, [{"text": "a", "number": 1}]).samples(None, 0, 0, renderer)
    assert "\n" not in str(error.value)


def test_likelihoods_and_downloads_are_refused(tmp_path, renderer, monkeypatch):
    rows = [{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}]
    with pytest.raises(UserError, match="name: piqa is scored by multiple_choice"):
        task_of(tmp_path, "piqa/piqa", rows).samples(None, 0, 0, renderer)
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match="name: ifeval needs nltk's punkt_tab on disk"):
        task_of(tmp_path, "ifeval/ifeval").samples(None, 0, 0, renderer)


@pytest.mark.parametrize(
    "name",
    ["humaneval/humaneval", "humaneval/humaneval_plus", "mbpp/mbpp", "longproc/longproc_pseudo_to_code_2k"],
)
def test_code_of_a_model_is_not_run(tmp_path, renderer, name):
    with pytest.raises(
        UserError, match=rf"name: {name.partition('/')[2]} runs code that the model writes; unsafe_code"
    ):
        task_of(tmp_path, name).samples(1, 0, 0, renderer)
    assert not lm_eval_tasks._unsafe(lm_eval_tasks._file("gsm8k/gsm8k_cot"))


def test_a_group_is_not_a_task(tmp_path, renderer):
    with pytest.raises(UserError, match="name: bbh_cot_fewshot is a group of lm-eval; give one of its tasks"):
        task_of(tmp_path, "bbh_cot_fewshot").samples(1, 0, 0, renderer)


def test_sums_over_all_rows_are_refused_and_lists_are_summed_by_parts(tmp_path, renderer, monkeypatch):
    task = task_of(tmp_path, "gsm8k/gsm8k_cot")
    assert task.config.aggregate == {}
    kind = type(lm_eval_tasks._load(task.config))

    def agg_inst_level_acc(items):
        return 0.0

    def bleu(items):
        return 0.0

    monkeypatch.setattr(kind, "aggregation", lambda self: {"exact_match": agg_inst_level_acc})
    other = task_of(tmp_path, "gsm8k/gsm8k_cot")
    assert set(other.config.aggregate.values()) == {"instances"} and len(other.config.aggregate) == 2
    monkeypatch.setattr(kind, "aggregation", lambda self: {"bleu": bleu})
    with pytest.raises(UserError, match="name: gsm8k_cot sums up bleu by bleu over all rows"):
        task_of(tmp_path, "gsm8k/gsm8k_cot").samples(1, 0, 0, renderer)


def test_fields_may_have_other_names_and_other_rows_are_another_task(tmp_path, renderer):
    rows = [{"asked": row["question"], "answer": row["answer"]} for row in examples(2)]
    task = task_of(tmp_path, "gsm8k/gsm8k_cot", rows, rename={"asked": "question"})
    assert rows[0]["asked"] in task.samples(1, 0, 0, renderer)[0].question
    ids = [task.identity(), task_of(tmp_path, "gsm8k/gsm8k_cot").identity()]
    assert ids[0]["data"] != ids[1]["data"]


def test_a_task_runs_in_the_engine_under_both_protocols(tmp_path, tiny_model_dir):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, examples(2))), encoding="utf-8")
    overrides = [
        "experiment=jsonl", "task=[lm_eval]", "task.name=gsm8k/gsm8k_cot", f"task.data={file}", "task.num_fewshot=2",
        "task.fewshot=shared", "task.max_new_tokens=3", "protocol=[query_aware,query_agnostic]",
        "method=[dense,snapkv,chunkkv,rocketkv]", "budget.tokens=[64]", f"model.path={tiny_model_dir()}",
        "model.name=tiny", "model.dtype=float32", "report=false", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    experiments.run(compose(overrides), Progress)
    records = report.load(tmp_path / "run").records
    assert len(records) == 2 * 2 * 4
    assert all(
        set(record["scores"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
        for record in records
    )
    assert {record["wording"] for record in records} == {"lm-eval 0.4.13"}
