"""The kernel benchmark on a short cache: every case runs, and a wrong form is not timed."""

import pytest
import torch

from kvbench.kernels import bench
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
        "page_bounds",
        "quest_scores",
    } <= set(frame["operation"])
    assert (frame["median_ms"] > 0).all() and (frame["ratio_to_dense"] > 0).all()
    assert set(frame["dense_baseline"]) <= {"sdpa, group as rows", "portable", "flash-attn"}
    assert "GB/s" in capsys.readouterr().out


def test_wrong_numbers_are_not_timed(monkeypatch):
    right = portable.sparse_decode

    def wrong(*args):
        out, lse = right(*args)
        return out * 1.1, lse

    monkeypatch.setattr(portable, "sparse_decode", wrong)
    with pytest.raises(RuntimeError, match="dense decode, portable, 64 tokens"):
        bench.run([64], [], "bf16", 1)


def test_selected_slots_are_runs_without_repetition():
    slots = bench.Inputs(320, torch.bfloat16, torch.device("cpu")).slots(64, 16)
    assert slots.shape == (1, bench.HEADS, 64)
    for head in slots[0]:
        assert (
            len(head.unique()) == 64
            and (head.view(4, 16) == head.view(4, 16)[:, :1] + torch.arange(16)).all()
        )
