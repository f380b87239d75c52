"""Notebooks, from their text form: executed in a clean kernel and an empty folder.

`python tests/kvbench_testing/notebooks.py` (make notebooks) writes every .ipynb anew from the .py beside it; with
names as arguments only those.
"""

import ast
import base64
import io
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
import pytest
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

import kvbench

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
LIMIT_S = 600  # per cell
PROGRESS = re.compile(r"(cells \d+/\d+, prompt )?\d+/\d+, \d+:\d\d")
# of runs of cells where a notebook is run in short
SHORT = {"limit": 2, "task.samples": 2, "task.max_new_tokens": 2, "task.length": [256]}


def texts() -> list[Path]:
    """The text forms."""
    return sorted(FOLDER.glob("*.py"))


def execute(text: Path, folder: Path) -> NotebookNode:
    """The notebook with its outputs.

    Args:
        text: its text form.
        folder: where it runs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = jupytext.read(text)
    options = {"timeout": LIMIT_S, "record_timing": False, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, kernel_name="python3", **options).execute()
    return notebook


def execute_short(text: Path, folder: Path, patch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Run the code of a notebook in this process, with two short prompts per run.

    Args:
        text: its text form.
        folder: where it runs.
        patch: undoes the changes.

    Returns:
        The settings of its runs.
    """
    runs: list[dict[str, object]] = []
    full = kvbench.run

    def run(experiment: str, settings: Mapping[str, object] | None = None, **further: object) -> object:
        given = {**(settings or {}), **further}
        if "method" in given:
            # lengths of the user's own questions are those of the file
            short = {key: value for key, value in SHORT.items() if key in ("limit", *given)}
            given |= short
        runs.append({"experiment": experiment, **given})
        return full(experiment, given)

    patch.setattr(kvbench, "run", run)
    patch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__", "display": repr}
    for cell in jupytext.read(text).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, text.name, "exec"), names)
            if isinstance(last, ast.Expr):
                shown(eval(compile(ast.Expression(last.value), text.name, "eval"), names))
    plt.close("all")
    return runs


def shown(value: object) -> None:
    """What a notebook calls to show a value."""
    for name in ("_repr_html_", "_repr_png_", "__repr__"):
        if callable(show := getattr(value, name, None)) and show() is not None:
            return


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes a notebook, without what differs from one machine or run to the next."""
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "code":
            cell["outputs"] = [out for out in cell.outputs if not passing(out)]
            for out in cell.outputs:
                if "image/png" in out.get("data", {}):
                    out["data"]["image/png"] = smaller(out["data"]["image/png"])
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def passing(output: NotebookNode) -> bool:
    """Whether an output is of no use later: warnings, which name temporary files, and how far a run was."""
    return output.get("name") == "stderr" or bool(PROGRESS.match(output.get("text", "")))


def smaller(png: str) -> str:
    """A PNG in base64 with at most 256 colours, which is plenty for a plot."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(
        buffer, "png", optimize=True
    )
    return base64.b64encode(buffer.getvalue()).decode()


def main(names: list[str]) -> None:
    for text in texts():
        if not names or text.stem in names:
            print(text.stem, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                write(execute(text, Path(folder)), text.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(sys.argv[1:])
