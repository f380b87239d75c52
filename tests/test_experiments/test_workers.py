"""Several workers on one folder: the same table as one worker's, whatever happens to them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kvbench_testing import chaos

from kvbench.cli import main as cli
from kvbench.config.errors import UserError
from kvbench.runs.config import load
from kvbench.runs.store import Store
from kvbench.runs.workers import _places, worker_overrides

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(Path(__file__).parents[1]),
}


#: of a run of two workers: so many that some are left when it is stopped, and again when it goes on
PROMPTS = 16


class Harness:
    """The chaos module as a process of its own, which has loaded torch and forks."""

    def __init__(self):
        command = [sys.executable, "-m", "kvbench_testing.chaos"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes)

    def __call__(self, *words):
        """The answer to a request."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(w) if isinstance(w, Path) else w for w in words]) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        assert not (isinstance(found, dict) and "failed" in found), found["failed"]
        return found

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def harness():
    made = Harness()
    yield made
    made.close()


class Forked:
    """A command that the harness forks: without the time of its imports."""

    def __init__(self, harness, words, folder):
        self.harness, self.returncode = harness, None
        self.out, self.err = folder / "out", folder / "err"
        self.pid = harness("start", words, self.out, self.err)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def end(self):
        """Exit code, and what it printed."""
        self.returncode = self.harness("wait", self.pid)
        return self.returncode, self.out.read_text(), self.err.read_text()


class Process:
    """A command as a process of its own."""

    def __init__(self, words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "kvbench.cli.main", *words]
        self.process = subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes)
        self.send_signal = self.process.send_signal

    def end(self):
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


def unharmed(happened, kills):
    assert happened["kills"] == kills
    for what in ("lost", "strange", "other", "contradicting", "table", "falsely complete"):
        assert not happened.get(what), happened
    # every kind of kill and of end was there
    assert {"SIGKILL", "SIGTERM", "SIGINT", "exit 75", "exit 130"} <= happened.keys(), happened
    assert happened["exit 75"] <= happened["SIGTERM"] and not happened.get("exit 70"), happened


@pytest.fixture
def model(tiny_model_dir):
    return tiny_model_dir("llama", group=3, layers=3)


def test_forty_kills_change_nothing(model, tmp_path, harness):
    unharmed(harness("campaigns", model, tmp_path / "runs", 40, 7), 40)


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(model, tmp_path, harness):
    happened = harness("campaigns", model, tmp_path / "runs", 200, 11)
    print(json.dumps(happened))
    unharmed(happened, 200)
    # so many that every fault of the disk, and two workers on one prompt, were there too
    assert happened["exit 2"] and happened["stopped for a while"], happened


def test_each_of_three_workers_takes_a_third_of_the_prefills(model, tmp_path, harness):
    found = harness("shares", model, tmp_path / "run")
    assert found["codes"] == [0, 0, 0] and found["cells"] == 12 * 7
    assert found["per prompt"] == [1]  # no prefill is done twice
    assert sum(found["shares"]) == 12 and min(found["shares"]) >= 3, found


def test_the_comparison_sees_what_is_lost_other_or_contradicts(tmp_path):
    """The check of the chaos can fail, in each of its ways."""
    base = Path(__file__).parents[2] / "results" / "quickstart"
    rows = [row for row in Store(base).scan()[0] if row["sample"] < 4]
    Store(tmp_path / "base").extend(rows)

    def differences(changed, more=()):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        Store(tmp_path / "other").extend([*changed, *more])
        return chaos.differences(tmp_path / "other", tmp_path / "base")

    assert not any(differences(rows[::-1]).values())
    assert not any(differences([row | {"time": "", "compress_s": 9.0} for row in rows]).values())
    assert differences(rows[1:])["lost"] == 1 and differences(rows[1:])["table"]
    scored = [rows[0] | {"score": 1 - rows[0]["score"]}, *rows[1:]]
    assert differences(scored)["other"] == 1 and differences(scored)["table"]
    assert differences(rows, scored[:1]) == {
        "lost": 0,
        "strange": 0,
        "other": 0,
        "contradicting": 1,
        "table": 0,
    }
    assert differences(rows, [rows[0] | {"cell": "0"}])["strange"] == 1


def words(model, folder, *more):
    """Of a command."""
    settings = [*chaos.OVERRIDES[1:], f"model.path={model}", "model.name=tiny", f"run_dir={folder}"]
    return ["run", "quickstart", *settings, *more]


@pytest.fixture(params=["forked", pytest.param("processes", marks=pytest.mark.slow)])
def command(request, model, tmp_path, harness):
    """`command(run_dir)` starts two workers on a folder; the slow way is a user's."""

    def start(folder):
        given = words(model, folder, f"task.samples={PROMPTS}", "workers=2")
        return (
            Process(given) if request.param == "processes" else Forked(harness, given, new_folder(tmp_path))
        )

    return start


def new_folder(folder):
    made = folder / f"printed {len(list(folder.iterdir()))}"
    made.mkdir()
    return made


def test_workers_of_one_command(command, tmp_path):
    """What they are told reaches them, and the same command goes on; one that dies is told, its prompts are done."""
    run = tmp_path / "run"
    process = command(run)
    wait_for(lambda: list(run.glob("cells-*.jsonl")))
    process.send_signal(signal.SIGUSR1)
    code, _, err = process.end()
    assert code == 75
    assert err.splitlines()[-1] == (
        f"kvbench: stopped by SIGUSR1; what is done is kept in {run}, the same command resumes"
    )
    stopped = len(Store(run).done())
    assert stopped > 0 and not list((run / "claims").iterdir())
    # a prompt that was begun was finished
    assert stopped % 7 == 0

    process = command(run)
    wait_for(lambda: list((run / "claims").iterdir()))
    claim = json.loads(next((run / "claims").iterdir()).read_text())
    os.kill(claim["pid"], signal.SIGKILL)
    code, out, err = process.end()
    assert code == 0, err
    assert out.splitlines()[-1] == f"report: {run}/report.html"
    assert len(Store(run).done()) == PROMPTS * 7 and len(list(run.glob("plan-*.json"))) == 1
    assert re.search(
        r"^kvbench: warning: worker [12] ended with signal SIGKILL: .*; the others did its", err, re.M
    )
    logs = [path.read_text() for path in run.glob("logs/worker-*.log")]
    assert len(logs) == 4 and f"{PROMPTS * 7} of {PROMPTS * 7} cells done" in "".join(logs)


def wait_for(what):
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_end_with_the_command_that_started_them(command, tmp_path):
    run = tmp_path / "run"
    process = command(run)
    wait_for(lambda: list(run.glob("cells-*.jsonl")))
    process.send_signal(signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    wait_for(lambda: not list((run / "claims").iterdir()))
    logs = "".join(path.read_text() for path in run.glob("logs/worker-*.log"))
    assert "kvbench: stopped by SIGTERM" in logs or f"{PROMPTS * 7} of {PROMPTS * 7} cells done" in logs


def test_a_mistake_is_told_once_by_the_command(model, tmp_path, capsys):
    assert cli.main(words(model, tmp_path / "run", "workers=2", "task.length=[64]")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvbench: error: task.ruler_niah_single_1.length: 64 ")


def config(model, *more):
    return load([*chaos.OVERRIDES, f"model.path={model}", "model.name=tiny", "run_dir=out", *more])


def test_what_a_worker_is_told(model):
    cfg = config(model, "workers=3", "stop_after=1h", "retry_failed=true", "report=true")
    found = worker_overrides(cfg)
    assert found[-3:] == ["workers=1", "report=false", f"run_dir={Path.cwd() / 'out'}"]
    assert {"stop_after=1h", "retry_failed=true", "experiment=quickstart"} <= set(found)
    assert [text for text in found if text.startswith(("workers", "run_dir", "report"))] == found[-3:]
    # it works on the same plan
    assert load(found).request == cfg.request


def test_each_worker_has_its_own_gpu_or_cores(model, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpu = list(_places(config(model, "workers=2", "model.device=cpu")))
    assert [place.cores for place in cpu] == [(0, 1), (2, 3)]
    assert {place.environment["OMP_NUM_THREADS"] for place in cpu} == {"2"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    gpu = list(_places(config(model, "workers=2")))
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in gpu] == ["3", "5"]
    with pytest.raises(UserError, match=r"^workers: 3 need a GPU each, and this machine has 2; [^\n]+$"):
        list(_places(config(model, "workers=3")))
    with pytest.raises(UserError, match=r"^workers: [^\n]+ model\.device=cuda:1 [^\n]+$"):
        list(_places(config(model, "workers=2", "model.device=cuda:1")))
    with pytest.raises(UserError, match=r"^workers: on a CPU [^\n]+$"):
        list(_places(config(model, "workers=2", "model.device=cpu", "kind=efficiency")))


def test_other_kinds_refuse_what_only_cells_have(capsys, tmp_path):
    for setting in ("workers=2", "shard=1/2", "stop_after=1h", "report=false"):
        assert cli.main(["run", "roofline", setting, f"run_dir={tmp_path}"]) == 2
        assert capsys.readouterr().err.startswith(
            f"kvbench: error: {setting.split('=')[0]}: is for experiments of"
        )
