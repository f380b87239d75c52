"""The bridge to lm-eval: scores, proof of compression, and what is refused."""

import json
from importlib.util import find_spec

import pytest

from kvbench.cli.main import main

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("lm_eval", "datasets", "evaluate", "sacrebleu")),
    reason="the extra tasks",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a task that generates text, and one of likelihoods."""
    # what lm-eval and datasets write goes there too
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"q": f"The number of the tree is {n}. " * 20 + "The number of the tree is", "a": str(n)}
        for n in (12, 34)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test\n"
    (tmp_path / "a.yaml").write_text(
        f"task: made_up\n{common}output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: '{{{{a}}}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 6, do_sample: false}\nmetric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "b.yaml").write_text(
        f"task: made_up_options\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: 0\n"
        "doc_to_choice: ['{{a}}', 'x']\nmetric_list: [{metric: acc}]\n"
    )
    return tmp_path


def test_a_task_runs_with_a_compressed_cache(folder, tiny_model_dir, capsys):
    out = folder / "out.json"
    code = main(
        [
            "lm-eval", "--tasks", "made_up", "--include-path", str(folder), "--model", str(tiny_model_dir()),
            "--method", "snapkv", "--tokens", "64", "--output", str(out), "window=16",
        ]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "every method prefills every prompt anew" in printed.err and "exact_match" in printed.out
    stored = json.loads(out.read_text())
    found = stored["compression"]
    assert len(found["bytes"]) == 2 and all(length > 400 for length in found["prompts"])
    # 64 of some hundred tokens, and the answer
    assert all(kept < 0.3 * dense for kept, dense in zip(found["bytes"], found["dense_bytes"], strict=True))
    assert "made_up" in stored["results"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tasks", "made_up_options", "--method", "snapkv", "--tokens", "64"],
            "a task is scored by likelihoods",
        ),
        (["--tasks", "made_up", "--method", "snapkv"], "--tokens, --ratio: give one of both"),
        (["--tasks", "made_up", "--method", "snapkw", "--tokens", "4"], "did you mean snapkv"),
        (["--tasks", "no_such", "--method", "snapkv", "--tokens", "4"], "--tasks: lm-eval fails"),
    ],
)
def test_what_cannot_run_is_one_line(folder, tiny_model_dir, capsys, words, message):
    code = main(["lm-eval", *words, "--include-path", str(folder), "--model", str(tiny_model_dir())])
    err = capsys.readouterr().err.splitlines()
    assert code == 2 and message in err[-1]
