"""Fixtures of every kernel test: a corrected interpreter, and NaN in memory that is allocated and not written."""

import contextlib
import importlib.util

import pytest
import torch
from kvbench_testing.interpreter import corrected
from kvbench_testing.triton import INTERPRETED


@pytest.fixture(autouse=True)
def exact_interpreter():
    with_triton = INTERPRETED and importlib.util.find_spec("triton") is not None
    with corrected() if with_triton else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
