"""Notebooks, from their text form: executed in a clean kernel and an empty folder.

`python tests/kvbench_testing/notebooks.py` (make notebooks) writes every .ipynb anew from the .py beside it; with
names as arguments only those.
"""

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
LIMIT_S = 600  # per cell
PROGRESS = re.compile(r"cells \d+/\d+, prompt ")


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
