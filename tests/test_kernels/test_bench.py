"""The kernel benchmark on a short cache: every case runs, and a wrong form is not timed."""

import pytest
import torch

from kvbench.kernels.dev import bench
from kvbench.kernels.sparse_decode import portable


def test_every_operation_is_timed_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.ROCKETKV, (320, 64), (200, 3, 50, 32))
    path = tmp_path / "bench.csv"
    bench.main(["--lengths", "320", "--budgets", "64", "--repeats", "1", "--csv", str(path)])
    frame = bench.pd.read_csv(path)
    assert {
        "dense decode",
        "selected decode",
        "rocketkv step",
        "window_scores",
        "pool",
        "chunk_sums",
        "page_bounds",
        "quest_scores",
    } <= set(frame["operation"])
    assert (frame["median_ms"] > 0).all() and (frame["ratio_to_dense"] > 0).all()
    assert set(frame["dense_baseline"]) <= {"sdpa, group as rows", "portable", "flash-attn"}
    assert "GB/s" in capsys.readouterr().out


def test_a_time_limit_keeps_timed_rows_and_reports_the_rest(tmp_path, capsys):
    path = tmp_path / "bench.csv"
    bench.main(
        ["--lengths", "320,64", "--budgets", "32", "--repeats", "1", "--limit", "0", "--csv", str(path)]
    )
    frame = bench.pd.read_csv(path)
    timed = frame[frame["note"].isna()]
    assert set(timed["operation"]) == {"dense decode"} and (timed["length"] == 320).all()
    left = frame[frame["note"] == "left out: time limit of 0 s"]
    assert left["median_ms"].isna().all() and len(left) == 3 + 4
    assert "time limit of 0 s: selected decode 2 pages of 16, 64 tokens" in capsys.readouterr().out


def test_an_error_keeps_timed_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "quest_scores", None)
    path = tmp_path / "bench.csv"
    with pytest.raises(TypeError):
        bench.main(["--lengths", "64", "--budgets", "32", "--repeats", "1", "--csv", str(path)])
    assert "selected decode" in set(bench.pd.read_csv(path)["operation"])


def test_wrong_numbers_are_not_timed(monkeypatch):
    right = portable.sparse_decode

    def wrong(*args):
        out, lse = right(*args)
        return out * 1.1, lse

    monkeypatch.setattr(portable, "sparse_decode", wrong)
    with pytest.raises(RuntimeError, match="dense decode, portable, 64 tokens"):
        list(bench.run([64], [], "bf16", 1))


def test_selected_slots_are_runs_without_repetition():
    slots = bench.Inputs(320, torch.bfloat16, torch.device("cpu")).slots(64, 16)
    assert slots.shape == (1, bench.HEADS, 64)
    for head in slots[0]:
        assert (
            len(head.unique()) == 64
            and (head.view(4, 16) == head.view(4, 16)[:, :1] + torch.arange(16)).all()
        )
