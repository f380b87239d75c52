"""Texts that are judged instead of generated: options and perplexity, from rows to tables."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvbench import experiments, report
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.config.scales import lower_is_better
from kvbench.models.quiet import quiet
from kvbench.runs.progress import Progress
from kvbench.tasks import Renderer, build
from kvbench.tasks.choices import Choices


def run(folder, tiny_model_dir, *overrides):
    fixed = [
        "experiment=jsonl", f"model.path={tiny_model_dir()}", "model.name=tiny", "model.dtype=float32",
        "report=false", f"run_dir={folder}",
    ]  # fmt: skip
    experiments.run(compose([*fixed, *overrides]), Progress)
    return report.load(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    rows = Choices(data="-").examples(12, 60)
    file.write_text("\n".join(row["context"] for row in rows) + " é 北京\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def perplexity(tmp_path_factory, tiny_model_dir, text):
    folder = tmp_path_factory.mktemp("perplexity") / "run"
    # the last budget covers a window
    return run(
        folder, tiny_model_dir, "task=[perplexity]", f"task.path={text}", "task.length=[300]", "task.samples=5",
        "task.continuation=40", "method=[snapkv,chunkkv,rocketkv,tova,streaming_llm]", "budget.tokens=[16,400]",
    )  # fmt: skip


def forward(tiny_model_dir, ids):
    """Log probabilities of each token but the first, by an ordinary forward pass."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(), dtype=torch.float32).eval()
    with torch.inference_mode():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()


def renderer_of(tiny_model_dir):
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(tiny_model_dir()))


def test_dense_rows_are_the_log_likelihood_of_an_ordinary_forward(perplexity, tiny_model_dir, text):
    renderer = renderer_of(tiny_model_dir)
    task = build(
        "perplexity", {"family": "perplexity", "path": str(text), "length": [300], "continuation": 40}
    )
    samples = task.samples(5, 0, 300, renderer)
    for record in perplexity.records:
        if record["method"] != "dense":
            continue
        prompt = renderer.render(samples[record["sample"]])
        (judged,) = samples[record["sample"]].continuations
        ids = prompt.ids + renderer.continuation(prompt, judged)
        expected = forward(tiny_model_dir, ids)[-40:]
        assert record["scores"]["nll"] == pytest.approx(-math.fsum(expected), abs=1e-4)
        assert record["scores"]["tokens"] == 40 == record["max_new_tokens"]
        assert record["score"] == pytest.approx(-math.fsum(expected) / 40, abs=1e-4 / 40)
        assert record["scores"]["nats per token, positions 0 to 31"] == pytest.approx(
            -math.fsum(expected[:32]) / 32
        )
        assert (record["stop"], record["output_ids"], record["kl_to_dense"]) == ("forced", [], None)


def test_a_compressed_cache_judges_otherwise_and_a_covering_one_as_dense(perplexity):
    dense = {record["sample"]: record for record in perplexity.records if record["method"] == "dense"}
    for record in perplexity.records:
        difference = abs(record["score"] - dense[record["sample"]]["score"])
        if record["method"] != "dense":
            assert (difference == 0) == (record["budget_requested"] == "400"), record["method"]
            small = record["bytes_resident"] < dense[record["sample"]]["bytes_resident"]
            assert small == (record["budget_requested"] == "16" and record["method"] != "dense")


def test_windows_do_not_overlap_and_cover_the_text(tiny_model_dir, text):
    renderer = renderer_of(tiny_model_dir)
    task = build(
        "perplexity", {"family": "perplexity", "path": str(text), "length": [300], "continuation": 40}
    )
    samples = task.samples(None, 0, 300, renderer)
    whole = text.read_text(encoding="utf-8")
    joined = "".join(sample.context + sample.continuations[0] for sample in samples)
    assert whole.startswith(joined) and len(samples) == len(renderer.offsets(whole)) // 300 > 5


def test_tables_know_that_less_is_better(perplexity):
    summary = perplexity.summary()
    assert summary["metric"].map(lower_is_better).all() and not summary["floor"].any()
    rows = summary.set_index(["method", "budget_requested"])
    dense = rows.loc["dense", ""]
    assert dense["score"] > 1
    losing = rows[rows["p_holm"] < 0.05]
    assert all(
        row["verdict"].startswith("worse" if row["delta_vs_dense"] > 0 else "better")
        for _, row in losing.iterrows()
    )
    means = [record for record in perplexity.records if record["method"] == "dense"]
    metrics = perplexity.metrics()
    of_dense = metrics[metrics["method"] == "dense"].set_index("metric")["value"]
    nll = sum(record["scores"]["nll"] for record in means)
    assert of_dense["exp of nll per tokens"] == pytest.approx(math.exp(nll / (40 * 5)))
    assert of_dense["bits per bytes"] == pytest.approx(
        nll / math.log(2) / sum(record["scores"]["bytes"] for record in means)
    )
    # a margin of shares says nothing of nats
    with pytest.raises(UserError, match="has no scores of methods"):
        perplexity.best()
    assert "nats per token, lower is better" in perplexity.table()
    assert not list(perplexity.figures("score_vs_resident"))
    with pytest.raises(UserError):
        perplexity.plot("paired", "snapkv", "chunkkv")


def test_the_page_of_a_run_of_losses_is_written(perplexity):
    files = report.write_report(perplexity)
    assert "nats per token, lower is better" in files["report.html"].read_text(encoding="utf-8")


def test_sums_of_options_are_those_of_an_ordinary_forward(tmp_path, tiny_model_dir):
    rows = Choices(data="-").examples(3, 40)
    rows[1]["choices"][0] = "a longer option with blanks"
    rows[1]["answer"] = 0
    file = tmp_path / "choices.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    renderer = renderer_of(tiny_model_dir)
    task = build("choices", {"family": "choices", "data": str(file)})
    samples = task.samples(None, 0, 0, renderer)
    found = run(
        tmp_path / "run",
        tiny_model_dir,
        "task=[choices]",
        f"task.data={file}",
        "method=[snapkv]",
        "budget.tokens=[24]",
    )
    dense = {record["sample"]: record for record in found.records if record["method"] == "dense"}
    for index, sample in enumerate(samples):
        prompt = renderer.render(sample)
        sums = []
        for option in sample.continuations:
            tail = renderer.continuation(prompt, option)
            sums.append(math.fsum(forward(tiny_model_dir, prompt.ids + tail)[-len(tail) :]))
        best = max(range(4), key=sums.__getitem__)
        answer = rows[index]["answer"]
        others = max(value for n, value in enumerate(sums) if n != answer)
        assert dense[index]["output"] == rows[index]["choices"][best]
        assert dense[index]["scores"]["margin"] == pytest.approx(sums[answer] - others, abs=1e-4)
        assert dense[index]["score"] == (best == answer)
    margins = [
        (record["scores"]["margin"], dense[record["sample"]]["scores"]["margin"])
        for record in found.records
        if record["method"] == "snapkv"
    ]
    assert all(abs(ours - theirs) > 1e-3 for ours, theirs in margins)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decode.first_token=dense"], "decode.first_token: dense is not for task choices"),
        (["method=[static_oracle]"], "needs dense's answer, and task choices generates none"),
    ],
)
def test_settings_that_would_not_measure_a_method_are_refused(tmp_path, tiny_model_dir, settings, message):
    file = tmp_path / "choices.jsonl"
    file.write_text("\n".join(map(json.dumps, Choices(data="-").examples(1, 20))), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", tiny_model_dir, "task=[choices]", f"task.data={file}", *settings)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"answer": 4}, "answer must be the number of a choice, 0 to 3, not 4"),
        ({"choices": ["a", "a"]}, "choices must be a list of two texts or more, all different"),
        ({"choices": ["a", " "]}, "choices must be a list of two texts or more, all different"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, tiny_model_dir, change, text):
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({**Choices(data="-").examples(1, 20)[0], **change}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"data: .*row 1: {text}"):
        build("choices", {"family": "choices", "data": str(file)}).samples(
            1, 0, 0, renderer_of(tiny_model_dir)
        )


def test_a_method_that_raises_loses_its_own_cells_only(tmp_path, tiny_model_dir, monkeypatch):
    from kvbench.methods.snapkv import SnapKV

    monkeypatch.setattr(SnapKV, "scores", lambda self, layer: 1 / 0)
    file = tmp_path / "choices.jsonl"
    file.write_text("\n".join(map(json.dumps, Choices(data="-").examples(2, 30))), encoding="utf-8")
    from kvbench.config.errors import CellsFailed

    with pytest.raises(CellsFailed):
        run(
            tmp_path / "run",
            tiny_model_dir,
            "task=[choices]",
            f"task.data={file}",
            "method=[snapkv,chunkkv]",
            "budget.tokens=[24]",
        )
    found = report.load(tmp_path / "run")
    assert {record["method"] for record in found.records} == {"dense", "chunkkv"}
    assert {record["method"] for record in found.failures} == {"snapkv"}
