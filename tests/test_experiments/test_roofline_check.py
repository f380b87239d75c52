"""Measurements of this machine, and the experiment `roofline_check`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from kvbench import cost
from kvbench.cli import main as cli
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.cost import measure as machine
from kvbench.cost.hardware import Rate
from kvbench.experiments import run
from kvbench.experiments.roofline_check import run as module
from kvbench.experiments.roofline_check.config import RooflineCheckConfig
from kvbench.experiments.roofline_check.report import markdown
from kvbench.experiments.roofline_check.run import KEY, check, compare
from kvbench.runs.progress import Progress

COMMITTED = Path(__file__).parents[2] / "results" / "roofline_check"
DEVICE = cost.Hardware(
    name="this_machine", title="a test", memory_mib=1000, memory_source="M", sources={"M": "typed in"},
    bandwidth_gb_s=Rate(attainable=20.0, source="M"), tflops=Rate(attainable=0.5, source="M"),
)  # fmt: skip


class Clock:
    """Readings of a machine whose bandwidth drifts."""

    def __init__(self, *_):
        self.readings = iter([10.0, 20.0, 60.0, 20.0, 20.0, 20.0])

    def read_bandwidth(self):
        return next(self.readings)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "measure_device", lambda: DEVICE)
    monkeypatch.setattr(module, "ColdClock", Clock)
    monkeypatch.setattr(module, "COLD", 10**6)


def test_a_whole_run_and_its_resumption(quick, tiny_model_dir, tmp_path, monkeypatch, capsys):
    overrides = [
        "experiment=roofline_check", f"models=[{tiny_model_dir('llama', group=4)}]", "lengths=[300]",
        "budget.tokens=[80]", "steps=2", "warmup=1", "method=[dense,snapkv,rocketkv]", f"run_dir={tmp_path}",
    ]  # fmt: skip
    printed = run(compose(overrides), Progress)
    assert capsys.readouterr().out == "cells 0/3, prompt 1/1, 0:00: model 300\n"
    frame = pd.read_csv(tmp_path / "check.csv", keep_default_na=False)
    assert list(frame["method"]) == ["dense", "snapkv", "rocketkv"] and list(frame["budget"].astype(str)) == [
        "",
        "80",
        "80",
    ]
    assert (frame["median_ms"] > 0).all() and (frame["p20_ms"] <= frame["p80_ms"]).all()
    # bytes of one layer: 2 KV heads of 16 channels in bf16
    assert frame["read_mb"][0] == pytest.approx((300 + 2) * 2 * 2 * 16 * 2 / 1e6)
    assert (frame["modelled_ms"] == frame["moved_bytes"] / 20e6).all()
    assert printed.count("| 300 |") == 3 and "20.0 GB/s" in printed and "(10.0 to 60.0)" in printed
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"check.model.png", "check.model.svg"}

    def measured_again(*_):
        raise AssertionError

    monkeypatch.setattr(module, "measure", measured_again)
    assert run(compose(overrides), Progress) == printed
    assert not capsys.readouterr().out


def rows(**changes):
    base = {
        "model": "m", "method": "dense", "budget": "", "length": [1000, 2000], "kept": 1.0, "read_mb": 40.0,
        "moved_bytes": [40e6, 80e6], "flops": 1.0, "median_ms": [4.0, 6.0], "p20_ms": 4.0, "p80_ms": 4.0,
        "short_ms": 2.5, "short_bytes": 10e6, "read_gb_per_s": [20.0, 20.0], "tflops": 0.5, "device": "d",
        "torch": "2", "date": "2026-01-01",
    }  # fmt: skip
    return pd.DataFrame({**base, **changes})


def test_the_model_and_its_error_by_hand():
    found = compare(rows())
    assert list(found["modelled_ms"]) == [2.0, 4.0] and list(found["ratio"]) == [2.0, 1.5]
    # 2.5 ms of which 0.5 are bytes
    assert list(found["fixed_ms"]) == [2.0, 2.0] and list(found["ratio_with_fixed"]) == [1.0, 1.0]


def test_speed_up_over_dense_of_the_same_length():
    both = pd.concat(
        [rows(), rows(method="snapkv", median_ms=[1.0, 1.2], moved_bytes=[4e6, 4e6])], ignore_index=True
    )
    found = compare(both)
    assert list(found["speedup"]) == [1, 1, 4, 5] and list(found["speedup_modelled"]) == [1, 1, 10, 20]
    assert compare(rows(method="snapkv"))["speedup"].isna().all()


def test_operations_can_be_the_limit_and_fixed_costs_are_not_negative():
    found = compare(rows(flops=[1e9, 4e9], short_ms=0.1))
    assert list(found["modelled_ms"]) == [2.0, 8.0] and list(found["fixed_ms"]) == [0.0, 0.0]


def test_the_table_is_in_order_of_length():
    table = markdown(compare(rows(length=[2000, 1000])))
    assert table.index("| 1000 | dense") < table.index("| 2000 | dense")


def test_the_committed_check_is_complete():
    from pathlib import Path

    frame = pd.read_csv(
        Path(__file__).parents[2] / "results" / "roofline_check" / "check.csv", keep_default_na=False
    )
    expected = {
        (method, length)
        for method in ("dense", "snapkv", "chunkkv", "rocketkv")
        for length in 4096 * 2 ** np.arange(5)
    }
    assert set(frame[["method", "length"]].itertuples(index=False, name=None)) == expected
    pd.testing.assert_frame_equal(compare(frame), frame, rtol=1e-4)
    assert not frame[KEY].duplicated().any()
    # the model is a lower bound
    assert (frame["p80_ms"] > frame["modelled_ms"]).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lengths=[100]", "lengths: 100"),
        ("steps=0", "steps, warmup"),
        ("budget.tokens=[]", "budget: snapkv needs one"),
    ],
)
def test_mistakes(quick, override, message, capsys, tmp_path):
    assert cli.main(["run", "experiment=roofline_check", override, f"run_dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_doctor_prints_a_device_that_can_be_used(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "REPEATS", 1)
    monkeypatch.setattr(machine, "SIDE", {"cpu": 128, "cuda": 128})
    assert cli.main(["doctor", "--bandwidth"]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "hardware" / "this_machine.yaml"
    file.parent.mkdir()
    file.write_text(printed)
    device = cost.hardware("this_machine", [str(tmp_path)])
    assert device.memory > 10**9 and 10**8 < device.bandwidth() < 10**13 and device.flops() > 10**8
    assert yaml.safe_load(printed)["sources"]["M"]["what"].startswith("kvbench doctor --bandwidth")
    with pytest.raises(UserError, match="no datasheet"):
        device.flops(peak=True)


def test_check_needs_lengths_beyond_the_short_one(quick):
    with pytest.raises(UserError, match="lengths: 256"):
        check(
            RooflineCheckConfig(
                run_dir="x", models=("llama31_8b",), lengths=(256,), method={"dense": {"method": "dense"}}
            ),
            Progress,
        )
