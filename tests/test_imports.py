"""Imports point one way: each package may import only the packages that are listed for it here."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: folders of the checkout that hold a package of another name
MAPPED = {"kernels": ROOT / "kernels", "experiments": ROOT / "experiments"}
#: what each package may import besides itself and `kvbench.__version__`
ALLOWED: Mapping[str, set[str]] = {
    "config": set(),
    "kernels": {"config"},
    "methods": {"config", "kernels"},
    "formats": {"config", "kernels", "methods"},
    "models": {"config", "kernels"},
    "tasks": {"config", "kernels"},
    "engine": {"config", "kernels", "methods", "formats", "models"},
    "runs": {"config", "kernels", "methods", "formats", "models", "tasks", "engine"},
    "report": {"config", "runs"},
    "cost": {"config", "kernels", "methods", "formats", "models", "tasks", "runs", "report"},
    "claude": {"config", "report"},
    "vllm": {"config", "models", "tasks", "runs", "report", "claude"},
    "claims": {"config", "methods", "formats", "report", "cost", "claude", "vllm"},
}
ALLOWED |= {"experiments": {*ALLOWED}}
ALLOWED |= {"api": {*ALLOWED}, "cli": {*ALLOWED}, "kvbench": {"api", "engine"}}


def modules() -> Iterator[tuple[str, str]]:
    """Name and source of every module."""
    for package, folder in {"": ROOT / "kvbench", **MAPPED}.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [*package.split(), *path.relative_to(folder).with_suffix("").parts]
            yield ".".join(["kvbench", *parts]).removesuffix(".__init__"), path.read_text(encoding="utf-8")


def imported(source: str) -> set[str]:
    """The packages under `kvbench` that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = node.module == "kvbench"
            names |= {f"kvbench.{alias.name}" for alias in node.names} if below else {node.module}
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == "kvbench" and name[1:2] not in ([], ["__version__"])}


def package_of(module: str) -> str:
    return [*module.split("."), "kvbench"][1]


def violations(sources: Mapping[str, str]) -> list[str]:
    """`MODULE imports PACKAGE` for every import that is not allowed."""
    found = []
    for module, source in sources.items():
        package = package_of(module)
        beyond = imported(source) - ALLOWED[package] - {package}
        found += [f"{module} imports {name}" for name in sorted(beyond)]
    return found


def test_every_package_is_listed():
    assert {package_of(module) for module, _ in modules()} == set(ALLOWED)


def test_imports_point_one_way():
    assert not violations(dict(modules()))


def test_the_lists_hold_no_circle():
    order: list[str] = []
    left = dict(ALLOWED)
    while left:
        free = [name for name, needs in left.items() if needs <= set(order)]
        assert free, f"circle among {sorted(left)}"
        order += free
        left = {name: needs for name, needs in left.items() if name not in free}


@pytest.mark.parametrize(
    ("module", "source", "package"),
    [
        ("kvbench.engine.decode", "from kvbench.tasks import Prompt", "tasks"),
        ("kvbench.engine.decode", "from kvbench import tasks", "tasks"),
        ("kvbench.methods.snapkv", "def scores():\n    import kvbench.models.load", "models"),
        (
            "kvbench.report.summary",
            "from kvbench.experiments.accuracy.run import run_accuracy",
            "experiments",
        ),
        ("kvbench.cost.measure", "from kvbench.claims import evaluate", "claims"),
        ("kvbench.kernels.pool", "from kvbench.methods.base import Kept", "methods"),
    ],
)
def test_a_wrong_import_is_found(module, source, package):
    assert violations({module: source}) == [f"{module} imports {package}"]


def test_nothing_in_the_package_imports_the_tools_of_kernel_developers():
    tools = [module for module, source in modules() if ".kernels." not in module and "kernels.dev" in source]
    assert not tools


LOADED = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
        assert "torch" not in sys.modules, f"{module.name} imports torch"
"""


def test_claude_and_configuration_import_no_torch():
    names = ["config", "claude", "experiments.claude_replay", "experiments.claude_rag_cost"]
    command = [sys.executable, "-c", LOADED, *(f"kvbench.{name}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
