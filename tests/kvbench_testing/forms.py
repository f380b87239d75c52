"""The forms in which an operation can be tested, found from its files."""

import importlib
from pathlib import Path

import pytest

from kvbench.kernels.forms import MODULES
from kvbench_testing.triton import needs_triton


def forms_of(package, function, *leave_out):
    """Parameters for every form of an operation's function but those left out, with what they need as marks."""
    found = []
    for form, module in MODULES.items():
        source = Path(package.__file__).with_name(f"{module}.py")
        if form in leave_out or not source.exists() or f"def {function}(" not in source.read_text():
            continue
        marks = []
        if form == "compiled":
            available = importlib.import_module(f"{package.__name__}.{module}").available()
            marks = [pytest.mark.skipif(not available, reason="no C++ compiler with OpenMP")]
        elif form == "triton":
            marks = [needs_triton]
        found.append(pytest.param(form, marks=marks))
    return found
