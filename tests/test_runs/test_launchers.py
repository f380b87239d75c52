"""Workers that something else starts: the same table as one process's, and what is refused."""

import importlib
import sys

import pytest
from kvbench_testing import chaos

from kvbench.cli import main as cli
from kvbench.config.errors import UserError
from kvbench.experiments.accuracy.run import run_accuracy
from kvbench.runs import launchers
from kvbench.runs.config import load
from kvbench.runs.progress import Progress
from kvbench.runs.store import Store
from kvbench.runs.workers import worker_overrides

MORE = ["task.samples=6", "budget.tokens=[64]", "method=[dense,knorm,snapkv]"]


def words(model, folder, *more):
    return [*chaos.OVERRIDES[1:], *MORE, f"model.path={model}", "model.name=tiny", f"run_dir={folder}", *more]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return tiny_model_dir("llama", group=3, layers=3)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_accuracy(load(["experiment=quickstart", *words(model, folder)]), Progress)
    return folder


def same(model, folder, alone, capfd, *more):
    """Two workers by a launcher give what one process does, and both worked."""
    code = cli.main(["run", "quickstart", *words(model, folder, "workers=2", *more)])
    assert code == 0, (capfd.readouterr(), [log.read_text() for log in folder.glob("logs/*.log")])
    assert not any(chaos.differences(folder, alone).values())
    assert len(list(folder.glob("plan-*.json"))) == 1 and len(Store(folder).files("cells")) == 2
    rows = sum(path.read_bytes().count(b"\n") for path in Store(folder).files("cells"))
    # no cell was done twice
    assert rows == 6 * 3 and len(list(folder.glob("logs/worker-*.log"))) == 2


@pytest.mark.cluster
def test_ray_on_two_nodes(model, tmp_path, alone, capfd, monkeypatch):
    utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        address = f"launch.address='{cluster.address}'"
        same(model, tmp_path / "run", alone, capfd, "launcher=ray", address)
    finally:
        cluster.shutdown()


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["submitit_local", "joblib"])
def test_on_this_machine(name, model, tmp_path, alone, capfd, monkeypatch):
    pytest.importorskip(launchers.LAUNCHERS[name][0])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    same(model, tmp_path / "run", alone, capfd, f"launcher={name}")


@pytest.mark.cluster
def test_settings_that_are_refused_are_one_line(model, tmp_path, capsys):
    pytest.importorskip("submitit")
    run = words(model, tmp_path / "run", "launcher=submitit_local", "launch.partitoin=gpu")
    assert cli.main(["run", "quickstart", *run]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("kvbench: error: launcher: submitit refused: ") and "partitoin" in line


def test_workers_get_the_overrides_without_the_launcher(model):
    cfg = load(
        ["experiment=quickstart", *words(model, "out"), "launcher=ray", "launch.num_gpus=1", "workers=3"]
    )
    assert cfg.launch == {"num_gpus": 1}
    found = worker_overrides(cfg)
    assert not [text for text in found if text.startswith("launch")] and load(found).request == cfg.request


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"^launcher: ray needs ray, which is not installed: pip install [^\n]+$"
    ):
        launchers.launcher("ray")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["launcher=slurm"], "launcher: there is no launcher 'slurm'"),
        (["launch.partition=gpu"], "launch: its settings are for a launcher"),
        (["launcher=joblib", "shard=1/2"], "shard: workers share the prompts already"),
    ],
)
def test_mistakes_are_one_line(more, message, model, tmp_path, capsys):
    assert cli.main(["run", "quickstart", *words(model, tmp_path / "run", *more)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvbench: error: {message}"), line


class FakeJob:
    def __init__(self, code):
        self.code, self.ended, self.state = code, False, "RUNNING"

    def done(self):
        return self.code is not None

    def result(self):
        if self.code < 0:
            raise RuntimeError("killed")
        return self.code

    def cancel(self, check):
        self.ended = True


def test_a_job_of_slurm_that_is_gone_has_a_code():
    assert launchers._Submitit(FakeJob(None)).poll() is None
    assert launchers._Submitit(FakeJob(75)).poll() == 75
    assert launchers._Submitit(FakeJob(-9)).poll() == 143
    running = FakeJob(None)
    launchers._Submitit(running).send_signal(15)
    assert running.ended


def test_slurm_takes_a_preempted_worker_back_into_the_queue(monkeypatch):
    class Delayed:
        def __init__(self, *what):
            self.what = what

    fake = type("submitit", (), {"helpers": type("helpers", (), {"DelayedSubmission": Delayed})})
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    work = launchers.Work()
    assert work.checkpoint(["run"], "log").what == (work, ["run"], "log")
