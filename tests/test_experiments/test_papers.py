"""The papers' experiments on published data sets, each as a rehearsal on made-up rows."""

from importlib.util import find_spec

import pytest
from kvbench_testing.made_up import write_rows

from kvbench import experiments, report
from kvbench.config.compose import compose
from kvbench.runs.config import load
from kvbench.runs.progress import Progress

#: the experiment, more settings, and its averages and further metrics
PAPERS = {
    "rocketkv_longbench": ([], {"average readme, English", "average rocketkv", "average leaves"}),
    "rocketkv_table2": (
        ["task.passkey.length=[100]"],
        {"average readme, English", "average rocketkv", "partial_match"},
    ),
    "rocketkv_scbench": ([], {"average turn 1", "average later turns"}),
    "chunkkv_longbench": ([], {"average leaves"}),
    "rocketkv_needle": (["task.length=[100]"], {"exact_match", "partial_match"}),
    "chunkkv_needle": (["task.length=[400]", "task.wording=own"], set()),
    "chunkkv_gsm8k": ([], {"flexible", "strict"}),
    "chunkkv_gsm8k_50": (["task.shots=10", "task.train=TRAIN"], {"flexible", "strict"}),
    "chunkkv_jailbreakv": ([], {"refusal_keywords", "degenerate"}),
}
NEEDS = {"scbench_repoqa": "tree_sitter_languages", "scbench_summary": "rouge_score"}


# a LongBench of one sample has sixteen prompts
LONG = {"rocketkv_longbench", "rocketkv_table2", "chunkkv_longbench"}
# their prompts are generated
GENERATED = {"rocketkv_needle", "chunkkv_needle"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in PAPERS]
)
def test_an_experiment_runs_on_made_up_rows(tmp_path, tiny_model_dir, name):
    pytest.importorskip("lm_eval")
    more, wanted = PAPERS[name]
    files = name not in GENERATED
    start = [f"experiment={name}", f"run_dir={tmp_path / 'run'}"]
    labels = list(load([*start, *(["task.download=true"] if files else [])]).task)
    chosen = [
        label
        for label in labels
        if all(find_spec(package) for start, package in NEEDS.items() if label.startswith(start))
    ]
    if len(chosen) == len(labels) and name == "rocketkv_scbench":
        wanted = wanted | {"average mean12", "average rocketkv11"}
    for label in chosen:
        if label not in ("needle_grid", "passkey"):
            write_rows(tmp_path, label)
    limit = 2 if "scbench" in name else 1
    overrides = [
        *start, f"task=[{','.join(chosen)}]", *([f"task.data={tmp_path}"] if files else []), "task.max_new_tokens=1",
        f"model.path={tiny_model_dir(layers=1)}", "model.name=tiny", "model.dtype=float32", "report=false",
        "kl=false", f"limit={limit}", *(text.replace("TRAIN", str(tmp_path / "test.jsonl")) for text in more),
    ]  # fmt: skip
    experiments.run(compose(overrides), Progress)
    run = report.load(tmp_path / "run")
    methods = {record["method"] for record in run.records}
    assert "dense" in methods and len(methods) > 4
    assert {record["task"] for record in run.records} == set(chosen) and not run.failures
    assert wanted <= set(run.metrics()["metric"])
