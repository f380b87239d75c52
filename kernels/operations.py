"""The operations there are, the forms in which they run on a device, and their versions, for people and for records."""

import ast
import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import torch

from kvbench import kernels
from kvbench.kernels.forms import MODULES, Rule

#: the order of labels in stored records; other operations follow by name
ORDER = (
    "sparse_decode", "window_scores", "pool", "hsa_scores", "top_k",
    "page_bounds", "quest_scores", "attention_sum", "quantise_kv",
)  # fmt: skip


@functools.cache
def operations() -> dict[str, ModuleType]:
    """Every operation's package by name: those under `kernels/` that declare a `VERSION`."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__):
        if module.ispkg:
            package = importlib.import_module(f"{kernels.__name__}.{module.name}")
            if hasattr(package, "VERSION"):
                found[module.name] = package
    rank = {name: n for n, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def forms_for(device: torch.device, dtype: torch.dtype, group: int, head_dim: int) -> dict[str, str]:
    """The form of every operation that has a choice of forms; compiles what is not compiled yet.

    Args:
        device: where the model is.
        dtype: of its keys.
        group: query heads per KV head.
        head_dim: channels of a head.
    """
    shapes = {"sparse_decode": (group, head_dim)}
    return {
        name: package.form(device, dtype, *shapes.get(name, ()))
        for name, package in operations().items()
        if hasattr(package, "form")
    }


def label(forms: Mapping[str, str]) -> str:
    """Short name of a set of forms for records: the form of the attention, then the operations that differ from it.

    Next to compiled forms, operations without one are left out.
    """
    main = forms["sparse_decode"]
    packages = operations()
    others = [
        name for name in forms if "compiled" not in forms.values() or has_form(packages[name], "compiled")
    ]
    apart = [f"{name} {forms[name]}" for name in others if forms[name] != main]
    return ", ".join([main, *apart])


def has_form(package: ModuleType, form: str) -> bool:
    """Whether an operation has a form."""
    return _source(package, form).exists()


def versioned(
    calls: Mapping[str, Rule], device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[str, int]]:
    """Form and version of operations, for cell ids.

    Args:
        calls: from `forms.recording`.
        device: where the model is.
        dtype: of its keys.

    Returns:
        `(form, version)` by operation. Operations whose code the form of another one imports are included, in the form
        of that one unless they are called by themselves too.
    """
    forms = {name: rule(device, dtype) for name, rule in calls.items()}
    waiting = list(forms.items())
    while waiting:
        name, form = waiting.pop()
        for other in imported(name.partition(".")[0], form):
            if other not in forms:
                forms[other] = form
                waiting.append((other, form))
    packages = operations()
    return {name: (form, packages[name.partition(".")[0]].VERSION) for name, form in sorted(forms.items())}


def every_operation(
    device: torch.device, dtype: torch.dtype, group: int, head_dim: int
) -> dict[str, tuple[str, int]]:
    """Form and version of every operation that has a choice of forms; arguments as for `forms_for`."""
    forms = forms_for(device, dtype, group, head_dim)
    return {name: (form, operations()[name].VERSION) for name, form in forms.items()}


@functools.cache
def imported(operation: str, form: str) -> frozenset[str]:
    """The other operations whose forms the module of a form imports, read from its source."""
    source = _source(operations()[operation], form)
    if not source.exists():
        return frozenset()
    modules = {f"{kernels.__name__}.{name}.{module}" for name in operations() for module in MODULES.values()}
    used = {path for path in _imports(ast.parse(source.read_text(encoding="utf-8"))) if path in modules}
    return frozenset(path.split(".")[-2] for path in used) - {operation}


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(package: ModuleType, form: str) -> Path:
    assert package.__file__ is not None
    return Path(package.__file__).with_name(f"{MODULES[form]}.py")
