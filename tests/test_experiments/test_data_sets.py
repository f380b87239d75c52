"""Published data sets end to end on made-up rows: loader, prompt, run, score, metrics, page."""

from importlib.util import find_spec

import pytest
from kvbench_testing.made_up import write_rows

from kvbench import experiments, report
from kvbench.config.compose import compose
from kvbench.experiments.accuracy import run as accuracy
from kvbench.runs.progress import Progress

#: by task: more settings, whether there is a context without a question, prefills of two samples (query_aware,
#: query_agnostic), and a package that it needs
RUNS: dict[str, tuple[list[str], bool, tuple[int, int], str]] = {
    "longbench_qasper": ([], True, (2, 2), "lm_eval"),
    "longbench_trec": (["max_length=300"], True, (2, 2), "lm_eval"),
    "longbench_lcc": (["extended=true"], True, (2, 2), "lm_eval"),
    # questions about one context, and answers to one question, share a prefill
    "gsm8k_shots": (["shots=2"], True, (2, 1), "lm_eval"),
    "math_500": (["repeats=2", "temperature=2.0"], False, (1, 0), "math_verify"),
    "math_aime24": ([], False, (2, 0), "math_verify"),
    # the second turn finds the first one's prefill; what filters in every turn has its own
    "scbench_kv": ([], False, (2, 0), "kvbench"),
    "jailbreakv": ([], False, (2, 0), "kvbench"),
    "longbench2": ([], True, (2, 2), "kvbench"),
    "mrcr": ([], False, (2, 0), "kvbench"),
    "choices": ([], True, (2, 2), "kvbench"),
    "scbench_mf": (["mode=multi_request"], True, (2, 1), "kvbench"),
}
METHODS = ["dense", "snapkv", "chunkkv", "rocketkv", "rocketkv_mt"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_dir):
    """One run of all tasks for each protocol, and the prefills by protocol and task."""
    folder, made = tmp_path_factory.mktemp("rows"), []
    part = accuracy.prefill_part
    found = {}
    for protocol in ("query_aware", "query_agnostic"):
        chosen = [
            option
            for option, (_, context, _, package) in RUNS.items()
            if find_spec(package) is not None and (context or protocol == "query_aware")
        ]
        settings = [f"task.{option}.{setting}" for option in chosen for setting in RUNS[option][0]]
        for option in chosen:
            write_rows(folder, option, RUNS[option][0])
        overrides = [
            "experiment=jsonl", f"task=[{','.join(chosen)}]", f"task.data={folder}", "task.max_new_tokens=4",
            *settings, f"protocol=[{protocol}]", f"method=[{','.join(METHODS)}]", "budget.tokens=[64]",
            "decode.block_rows=7", f"model.path={tiny_model_dir()}", "model.name=tiny", "model.dtype=float32",
            f"run_dir={folder / protocol}", "limit=2", "report=false",
        ]  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                accuracy,
                "prefill_part",
                lambda at, *args, protocol=protocol: (
                    made.append((protocol, at.group.task.label)) or part(at, *args)
                ),
            )
            experiments.run(compose(overrides), Progress)
            again = len(made)
            experiments.run(compose(overrides), Progress)
        assert len(made) == again, "the same command finds everything done"
        found[protocol] = report.load(folder / protocol)
    return found, made


@pytest.mark.parametrize("option", RUNS)
@pytest.mark.parametrize("protocol", ["query_aware", "query_agnostic"])
def test_a_data_set_runs_from_rows_to_metrics(runs, option, protocol):
    _, context, prefills, package = RUNS[option]
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    found, made = runs
    records = [record for record in found[protocol].records if record["task"] == option]
    if protocol == "query_agnostic" and not context:
        assert not records
        return
    assert len(records) == 2 * len(METHODS)
    assert made.count((protocol, option)) == prefills[protocol == "query_agnostic"]
    for record in records:
        assert record["scores"][record["metric"]] == record["score"]
        assert record["data"].endswith(".jsonl")
        cut = record["compressed_tokens"] < record["prompt_tokens"] - 1
        later = option == "scbench_kv" and record["sample"] > 0 and record["method"] != "rocketkv_mt"
        assert cut == (protocol == "query_agnostic" or later)
    assert {record["kept_tokens"] for record in records if record["method"] == "snapkv"} == {64}
    metrics = found[protocol].metrics()
    assert set(metrics[metrics["task"].str.startswith(option)]["method"]) == set(METHODS)


def test_the_page_has_the_metrics(tmp_path, tiny_model_dir):
    write_rows(tmp_path, "gsm8k_shots", [])
    overrides = [
        "experiment=jsonl", "task=[gsm8k_shots]", f"task.data={tmp_path}", "task.max_new_tokens=2", "task.shots=1",
        "method=[snapkv]", "budget.tokens=[64]", f"model.path={tiny_model_dir()}", "model.name=tiny",
        "model.dtype=float32", f"run_dir={tmp_path / 'run'}", "limit=1", "kl=false",
    ]  # fmt: skip
    experiments.run(compose(overrides), Progress)
    assert (tmp_path / "run" / "metrics.csv").is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Further metrics" in page and "strict" in page


def test_drawn_answers_are_paired_and_a_kept_prefill_changes_no_number(tmp_path, tiny_model_dir, monkeypatch):
    pytest.importorskip("math_verify", reason="the extra tasks")
    write_rows(tmp_path, "math_500", [])
    found = []
    for name in ("kept", "anew"):
        if name == "anew":
            monkeypatch.setattr(accuracy.Prefills, "get", lambda self, ids, methods, shared, make: make())
        overrides = [
            "experiment=jsonl", "task=[math_500]", f"task.data={tmp_path}", "task.max_new_tokens=6",
            "task.repeats=3", "task.temperature=1.5", "task.top_p=0.95", "method=[dense,snapkv,rocketkv]",
            # the first one covers every prompt
            "budget.tokens=[3000,32]", "decode.block_rows=7", f"model.path={tiny_model_dir()}",
            "model.name=tiny", "model.dtype=float32", f"run_dir={tmp_path / name}", "limit=4",
            "report=false",
        ]  # fmt: skip
        experiments.run(compose(overrides), Progress)
        rows = report.load(tmp_path / name).records
        keys = ("sample", "method", "budget_requested")
        found.append({tuple(row[key] for key in keys): row for row in rows})
    kept, anew = found
    for key, row in kept.items():
        assert (row["output_ids"], row["kl_to_dense"]) == (anew[key]["output_ids"], anew[key]["kl_to_dense"])
        assert row["sampling"] == {"temperature": 1.5, "top_p": 0.95, "key": f"0/{key[0] // 3}/{key[0] % 3}"}
    answers = [tuple(kept[sample, "dense", ""]["output_ids"]) for sample in range(4)]
    # repeats are other draws; what covers the prompt draws as dense does
    assert len(set(answers)) == 4
    for sample, answer in enumerate(answers):
        assert tuple(kept[sample, "snapkv", "3000"]["output_ids"]) == answer
    assert any(tuple(kept[sample, "snapkv", "32"]["output_ids"]) != answers[sample] for sample in range(4))
    table = report.load(tmp_path / "kept").metrics()
    assert {"math_verify, pass@1", "math_verify, avg@1"} <= set(table["metric"])
    summary = report.load(tmp_path / "kept").summary()
    # repeats of a problem are one unit
    assert set(summary["n"]) == {2} and set(summary["n_cells"]) == {4}
