"""`kvbench new`: in a checkout, elsewhere, and methods that live outside of the repository."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kvbench.cli import scaffold
from kvbench.config.errors import UserError

ROOT = Path(__file__).parents[2]
MAPPED = ("kernels", "experiments", "conf")
SCRIPT = """\
from dataclasses import dataclass

import torch
import kvbench
from kvbench.methods import Eviction, register


@register("newest_only")
@dataclass(frozen=True, kw_only=True)
class NewestOnly(Eviction):
    '''Keeps the newest tokens.'''

    source = "own"
    budget_meaning = "tokens kept per KV head"
    step_back: int = 0

    def scores(self, snapshot):
        length = snapshot.length - self.step_back
        return torch.arange(snapshot.length).expand(snapshot.heads, -1) % length
"""
USE = """
if __name__ == "__main__":
    q, k, v = (torch.randn(1, n, 20, 8) for n in (4, 2, 2))
    print(kvbench.keep("newest_only", q, k, v, tokens=3)[0][0].tolist())
    run = kvbench.run("tiny", ["method=[]", "variants.a={method: newest_only, step_back: 2}", *OVERRIDES], ["mine"])
    print(sorted(run.cells()["method"]))
"""
TINY = {
    "experiment/tiny": "# @package _global_\ndefaults:\n  - override /task: [needle]\n  - override /method: [dense]\n",
    "task/needle": "# @package task.needle\nfamily: niah\nlength: [1024]\nsamples: 1\nmax_new_tokens: 4\n",
}


def python(folder: Path, *words: str, path: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of a user's with a tiny experiment in `mine`."""
    for name, text in TINY.items():
        file = tmp_path / "mine" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return tmp_path


def tiny(model_dir: Path) -> list[str]:
    return [f"model.path={model_dir}", "budget.tokens=[64]", "kl=false", "decode.block_rows=4"]


def test_plugins_run_written_files_and_a_method_of_a_package(elsewhere: Path, tiny_model_dir) -> None:
    method, task = scaffold.new("method", "my_own", elsewhere), scaffold.new("task", "my_task", elsewhere)
    assert (method.file, task.file) == (elsewhere / "my_own.py", elsewhere / "my_task.py")
    assert task.command == "kvbench run quickstart 'plugins=[my_task]' 'task=[my_task]'"
    (elsewhere / "my").mkdir()
    (elsewhere / "my" / "module.py").write_text(SCRIPT)
    words = method.command.replace("[my_own]' ", "[my_own,my_task,my.module]' ")
    # an experiment of seconds in the place of quickstart
    words = shlex.split(words.replace("quickstart", "tiny"))[1:]
    words += ["task=[my_task]", "task.length=[512]", "task.my_task.codes=2", "limit=1"]
    words += ["variants.b={method: newest_only}", "--config-dir", "mine", *tiny(tiny_model_dir())]
    python(elsewhere, "-m", "kvbench.cli.main", *words)
    frame = pd.read_csv(elsewhere / "results/runs/tiny/summary.csv")
    assert set(frame["method"]) == {"dense", "my_own", "b"}
    assert set(frame["task"]) == {"my_task"}


def test_a_method_of_a_script_runs_with_nothing_but_the_decorator(elsewhere: Path, tiny_model_dir) -> None:
    overrides = f"OVERRIDES = {tiny(tiny_model_dir())}\n"
    (elsewhere / "notebook.py").write_text(SCRIPT + overrides + USE)
    lines = python(elsewhere, "notebook.py").splitlines()
    assert lines[0] == "[17, 18, 19]" and lines[-1] == "['a', 'dense']"


@pytest.mark.parametrize("what", ["method", "task"])
def test_written_files_are_in_the_house_style(what: str, tmp_path: Path) -> None:
    written = scaffold.new(what, f"my_{what}", tmp_path)
    for command in (["check"], ["format", "--check"]):
        words = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml")]
        done = subprocess.run([*words, str(written.file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "folder", "tests", "passed"),
    [
        # the contract, the oracle at 3 budgets, the entry
        ("method", "methods", ["test_contract.py", "test_oracle.py"], 5),
        # 4 lengths, 2 tokenizers, short lengths, seeds, gold, parameters, the entry
        ("task", "tasks", ["test_tasks.py"], 11),
    ],
)
def test_what_is_written_in_a_checkout_is_under_the_contract(
    tmp_path: Path, what: str, folder: str, tests: list[str], passed: int
) -> None:
    checkout, path = tmp_path / "checkout", tmp_path / "path" / "kvbench"
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("kvbench", *MAPPED, f"tests/test_{folder}", "tests/kvbench_testing"):
        shutil.copytree(ROOT / part, checkout / part, ignore=ignored)
    (checkout / "tests/test_runs").mkdir()
    for file in ("pyproject.toml", "tests/conftest.py", "tests/test_runs/test_config.py"):
        shutil.copy(ROOT / file, checkout / file)
    # as an editable install maps the folders
    path.mkdir(parents=True)
    for part in (checkout / "kvbench").iterdir():
        (path / part.name).symlink_to(part)
    for part in MAPPED:
        (path / part).symlink_to(checkout / part)
    before = {file for file in checkout.rglob("*") if file.is_file()}
    out = python(checkout / "tests", "-m", "kvbench.cli.main", "new", what, "brand_new", path=path.parent)
    after = {file for file in checkout.rglob("*.[py]*") if file.is_file() and "__pycache__" not in file.parts}
    assert {str(file.relative_to(checkout)) for file in after - before} == {f"kvbench/{folder}/brand_new.py"}
    assert out.splitlines()[-1] == f"try it: kvbench run quickstart '{what}=[brand_new]'"
    files = [*(f"tests/test_{folder}/{name}" for name in tests), "tests/test_runs/test_config.py"]
    done = python(checkout, "-m", "pytest", "-q", "-k", "brand_new", *files, path=path.parent)
    assert int(done.splitlines()[-1].split(" passed")[0]) >= passed


def test_nothing_is_written_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "mine_too.py").write_text("mine\n")
    with pytest.raises(UserError, match=r"name: .*mine_too\.py exists"):
        scaffold.new("method", "mine_too", tmp_path)
    assert (tmp_path / "mine_too.py").read_text() == "mine\n"
