"""An experiment whose servers are the fake one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kvbench_testing import fake_vllm

from kvbench import experiments
from kvbench.config.compose import compose


class Shown:
    """Progress that remembers what was started, and how many rows were done."""

    def __init__(self, cells: int, prompts: int) -> None:
        self.cells, self.done = cells, 0
        self.started: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        if not _[0]:
            assert self.done == self.cells

    def start_prompt(self, name: str) -> None:
        self.started.append(name)

    def stage(self, name: str) -> None:
        pass

    def cells_done(self, n: int) -> None:
        self.done += n


@pytest.fixture(scope="module")
def experiment(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir
) -> Callable[..., tuple[str, list[str]]]:
    """`experiment(NAME, *overrides)`: runs it on fake servers; returns its text and the servers that were started."""
    python = fake_vllm.environment(tmp_path_factory.mktemp("env") / "vllm")
    model = tiny_model_dir()

    def run(name: str, *overrides: str) -> tuple[str, list[str]]:
        started: list[str] = []

        class Mine(Shown):
            def start_prompt(self, name: str) -> None:
                if name.endswith(": start"):
                    started.append(name.removesuffix(": start"))

        fixed = [f"experiment={name}", f"serving.python={python}", f"model.path={model}", "model.name=tiny"]
        return experiments.run(compose([*fixed, *overrides]), Mine), started

    return run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "out"
