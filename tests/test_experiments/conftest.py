"""Runs experiments with the fake server in place of vLLM."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kvbench_testing import fake_vllm

from kvbench import experiments
from kvbench.config.compose import compose
from kvbench.vllm import environment


class CheckedProgress:
    """Progress display that checks, at the end, that all announced cells were stored."""

    def __init__(self, cells: int, prompts: int) -> None:
        self.cells, self.done = cells, 0

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is None:
            assert self.done == self.cells

    def start_prompt(self, name: str) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def cells_done(self, n: int) -> None:
        self.done += n


@pytest.fixture(autouse=True, scope="session")
def processor():
    """One that vLLM's fp8 cache runs on, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "features", lambda: {"avx512f"})
        yield


@pytest.fixture(scope="module")
def experiment(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir
) -> Callable[..., tuple[str, list[str]]]:
    """`experiment(NAME, *overrides)` runs it on fake servers and returns its text and the started servers."""
    python = fake_vllm.environment(tmp_path_factory.mktemp("env") / "vllm")
    model = tiny_model_dir()

    def run(name: str, *overrides: str) -> tuple[str, list[str]]:
        started: list[str] = []

        class Progress(CheckedProgress):
            def start_prompt(self, name: str) -> None:
                if name.endswith(": start"):
                    started.append(name.removesuffix(": start"))

        fixed = [f"experiment={name}", f"serving.python={python}", f"model.path={model}", "model.name=tiny"]
        return experiments.run(compose([*fixed, *overrides]), Progress), started

    return run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "out"
