"""Every notebook runs from a clean kernel, on what is public, and is committed as its text form has it."""

import ast
import importlib
import re
from pathlib import Path

import jupytext
import matplotlib
import nbformat
import pytest
from kvbench_testing import notebooks

TEXTS = pytest.mark.parametrize("text", notebooks.texts(), ids=lambda path: path.stem)
LIMIT = 200_000  # bytes
LOCAL_PATH = re.compile(r"(?<![\w.:/])/(tmp|home|root|work|Users|opt|usr)/")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem.startswith("07") else (), id=path.stem)
        for path in notebooks.texts()
    ],
)
def test_its_code_runs_in_short(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    registry = importlib.import_module("kvbench.methods.registry")
    monkeypatch.setattr(registry, "_CLASSES", registry.registry())
    matplotlib.use("Agg")
    runs = notebooks.execute_short(text, tmp_path, monkeypatch)
    assert ("kvbench.run(" in text.read_text(encoding="utf-8")) == bool(runs)
    assert all(run["limit"] == 2 for run in runs if "method" in run)


def test_a_call_that_does_not_exist_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.py").write_text("# %%\nimport kvbench\n# %%\nkvbench.keeps('snapkv')\n")
    with pytest.raises(AttributeError, match="keeps"):
        notebooks.execute_short(tmp_path / "x.py", tmp_path, monkeypatch)


@pytest.mark.slow
@TEXTS
def test_it_runs_from_a_clean_kernel(text: Path, tmp_path: Path):
    notebook = notebooks.execute(text, tmp_path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@TEXTS
def test_the_committed_one_is_that_of_its_text(text: Path):
    wanted, found = jupytext.read(text), nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    assert [(cell.cell_type, cell.source) for cell in found.cells] == [
        (cell.cell_type, cell.source) for cell in wanted.cells
    ], "make notebooks writes it anew"


@TEXTS
def test_the_committed_one_has_small_outputs_and_no_local_path(text: Path):
    file = text.with_suffix(".ipynb")
    content = file.read_text(encoding="utf-8")
    assert file.stat().st_size < LIMIT
    assert not LOCAL_PATH.search(content)
    outputs = [out for cell in nbformat.reads(content, 4).cells for out in cell.get("outputs", [])]
    kinds = {out.output_type for out in outputs}
    assert "error" not in kinds
    assert any("image/png" in out.get("data", {}) for out in outputs)


@TEXTS
def test_it_uses_what_is_public(text: Path):
    tree = ast.parse(text.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").split(".")[0] == "kvbench"]
    # kvbench and its subpackages, not what is inside those
    assert [node.module for node in ours if (node.module or "").count(".") > 1] == []
    assert [name.name for node in ours for name in node.names if name.name.startswith("_")] == []
    used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [name for name in used if name.startswith("_")] == []
