"""The tokens that `kvbench explain` shows are those that the cell keeps."""

import warnings

import pytest
import torch

from kvbench import report
from kvbench.cli.main import main
from kvbench.config.errors import UserError
from kvbench.experiments.accuracy.kept import KeptPrompt, kept_prompt, shown
from kvbench.experiments.accuracy.run import run_accuracy
from kvbench.runs.config import load
from kvbench.runs.progress import Progress

SETTINGS = [
    "experiment=quickstart", "task=[ruler_niah_single_1]", "task.length=[512]", "task.samples=1",
    "task.max_new_tokens=4", "method=[streaming_llm,snapkv,quest,adakv]", "budget.tokens=[64]",
    "decode.block_rows=8", "kl=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    model = tiny_model_dir("llama", group=3, layers=3)
    cfg = load([*SETTINGS, f"model.path={model}", "model.name=tiny", f"run_dir={folder}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_accuracy(cfg, Progress)
    return folder


def test_streaming_keeps_four_sinks_and_the_last_sixty(folder):
    row = report.find(folder, "method=streaming_llm")
    kept = kept_prompt(row)
    length = row["compressed_tokens"]
    # one token per byte, and the last one of the prompt is fed after compression
    assert kept.kept_LHT.shape == (3, 2, length) and len(kept.spans) == length + 1
    wanted = torch.zeros(length, dtype=torch.bool)
    wanted[:4] = wanted[-60:] = True
    assert torch.equal(kept.kept_LHT, wanted.expand(3, 2, -1))
    text = shown(kept)
    start = kept.text.index(row["gold"][0])
    end = start + len(row["gold"][0])
    before, behind = kept.text[start - 24 : start], kept.text[end : end + 24]
    # special tokens have several characters, all others one
    first = [low for low, _ in kept.spans].index(start)
    assert f"tokens {first} to {first + end - start - 1}: kept by 0% of layers and KV heads" in text
    assert "  ...[-" + f"{before}{row['gold'][0]}{behind}".replace("\n", "\\n") + "-]..." in text
    assert "more is evicted while decoding" in text


@pytest.mark.parametrize("method", ["snapkv", "adakv"])
def test_as_many_tokens_as_the_row_says(folder, method):
    row = report.find(folder, f"method={method}")
    kept = kept_prompt(row)
    assert float(kept.kept_LHT.sum()) / 6 == pytest.approx(row["kept_tokens"])
    assert kept.kept_LHT[:, :, -16:].all(), "the observation window is kept"


def test_a_selection_evicts_nothing_and_says_what_it_reads(folder):
    text = shown(kept_prompt(report.find(folder, "method=quest")))
    assert "nothing is evicted" in text and "[-" not in text
    assert "a decode step reads 64 of the tokens that are there" in text


def test_runs_of_evicted_tokens_are_marked_and_shares_are_of_layers_and_heads():
    kept_LHT = torch.ones(2, 2, 8, dtype=torch.bool)
    kept_LHT[:, :, 2:4] = False  # "cd" everywhere
    kept_LHT[0, :, 6] = kept_LHT[1, 0, 6] = False  # "g" in three of four
    kept_LHT[0, 0, 7] = False  # "h" in one of four
    kept = KeptPrompt("abcdefghij", [(n, n + 1) for n in range(10)], kept_LHT, ["GH"], [])
    text = shown(kept)
    assert "  ...ab[-cd-]ef[-g-]hij..." in text
    assert "'GH' at tokens 6 to 7: kept by 50% of layers and KV heads\n  by layer, in %: 25 75\n" in text
    assert "by tenth of the prompt: 100% 100% 0% 0% 100% 100% 25% 75%" in text
    # a needle that is not there, and special tokens without text
    other = KeptPrompt("abcdefghij", [(0, 0), *kept.spans[:-1]], kept_LHT, ["xyz"], [])
    assert "('xyz') does not stand in the prompt" in shown(other)


def test_the_command_shows_them_or_says_why_not(folder, capsys, monkeypatch):
    run = str(folder)
    assert main(["explain", run, "method=streaming_llm"]) == 0
    out, err = capsys.readouterr()
    assert "kept by 0% of layers" in out and "kvbench: loads the model tiny to compress" in err
    assert main(["explain", run, "method=streaming_llm", "--no-tokens"]) == 0
    without, err = capsys.readouterr()
    assert out.startswith(without.rstrip("\n")) and "kept by" not in without and not err
    row = report.find(folder, "method=streaming_llm")
    monkeypatch.setattr(
        report,
        "find",
        lambda *_: row | {"command": row["command"].replace("model.path=/", "model.path=/gone/")},
    )
    assert main(["explain", run, "method=streaming_llm"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith(without.rstrip("\n"))
    assert "tokens kept after prefill: cannot be shown: model.path=/gone/" in out


@pytest.mark.parametrize("change", [{"cell": "0" * 16}, {"command": ""}, {"command": "python x.py"}])
def test_a_row_that_cannot_be_repeated_is_refused(folder, change):
    with pytest.raises(UserError, match=r"changed since the row was stored|no command that repeats it"):
        kept_prompt(report.find(folder, "method=snapkv") | change)


def test_a_cell_that_fails_now_is_one_line(folder, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nroom")

    monkeypatch.setattr("kvbench.experiments.accuracy.kept.kept_tokens", broken)
    with pytest.raises(UserError, match=r"^RuntimeError: no room$"):
        kept_prompt(report.find(folder, "method=snapkv"))
