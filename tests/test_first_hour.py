"""The first hour on a GPU, rehearsed on the CPU."""

import os
import signal
import sys
import threading
import time

import pandas as pd
import pytest
from kvbench_testing import first_hour
from kvbench_testing.first_hour import Step


def script(name, code, seconds=60.0, **more):
    return Step(name, seconds, [sys.executable, "-c", code], **more)


def test_every_step_has_its_end_and_a_failure_stops_none(tmp_path):
    hangs = "import time\nprint('began', flush=True)\n"
    hangs += "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stored')"
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    planned = [
        script("good", "print('hello')"),
        script("bad", "import sys; sys.exit(3)"),
        script("long", hangs, 3.0),
        script("deaf", deaf, 1.0),
        script("resumable", f"import sys; sys.exit({first_hour.STOPPED})"),
        script("set", "import os; print(os.environ['FORM'])", environment={"FORM": "7"}),
    ]
    outcomes = first_hour.run(planned, tmp_path, grace=1.0)
    states = {outcome.step.name: outcome.state for outcome in outcomes}
    stopped = "stopped at its limit"
    assert states == {
        "good": "done", "bad": "failed, exit code 3", "long": stopped, "deaf": stopped, "resumable": stopped,
        "set": "done",
    }  # fmt: skip
    logs = {outcome.step.name: outcome.log.read_text().split() for outcome in outcomes}
    assert logs["good"] == ["hello"] and logs["long"] == ["began", "stored"] and logs["set"] == ["7"]


def test_what_a_stopped_step_left_is_kept(tmp_path):
    run = tmp_path / "efficiency"
    leaves = f"import pathlib, time\nf = pathlib.Path({str(run)!r})\nf.mkdir()\n"
    leaves += "(f / 'summary.csv').write_text('a')\ntime.sleep(60)"
    first_hour.run([script("efficiency", leaves, 3.0, run=run)], tmp_path, grace=1.0)
    assert (tmp_path / "efficiency.csv").read_text() == "a"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_that_runs_and_begins_no_other(tmp_path, number):
    marker = tmp_path / "began"
    code = f"import pathlib, time\npathlib.Path({str(marker)!r}).touch()\ntime.sleep(60)"

    def send():
        while not marker.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send).start()
    outcomes = first_hour.run([script("one", code), script("two", "")], tmp_path, grace=1.0)
    assert outcomes == [] and not (tmp_path / "two.log").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_hour_is_less_than_one(tmp_path):
    for rehearse in (False, True):
        planned = first_hour.steps(["model=llama31_8b"], tmp_path, rehearse=rehearse)
        assert sum(step.seconds for step in planned) + first_hour.GRACE * len(planned) <= 45 * 60
        assert len({step.name for step in planned}) == len(planned)


def test_only_known_steps(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        first_hour.main(["--only", "doctor,kernel", "--rehearse", "--folder", str(tmp_path)])
    assert (
        ended.value.code == 2 and "--only: kernel: not among doctor, kernel_tests" in capsys.readouterr().err
    )


def test_without_a_gpu_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(first_hour, "_has_gpu", lambda: False)
    assert first_hour.main(["--folder", str(tmp_path / "new")]) == 2
    assert "--rehearse" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_rehearsal(tmp_path, tiny_model_dir):
    """Every step runs, and what it measures is set beside the model."""
    folder = tmp_path / "hour"
    arguments = ["--rehearse", "--model", str(tiny_model_dir("llama", group=4)), "--folder", str(folder)]
    code = first_hour.main(arguments)
    report = (folder / "report.md").read_text()
    assert code == 0, report + "".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
    assert report.count("| done |") == 6
    assert {"kernels.csv", "efficiency.csv", "accuracy.csv"} <= {path.name for path in folder.iterdir()}
    measured = pd.read_csv(folder / "efficiency.csv")
    assert set(measured["length"]) == {1500, 2000} and set(measured["method"]) >= {
        "dense",
        "quest",
        "rocketkv",
    }
    assert "launches and host" in report and "rocketkv" in report
