"""What `kvbench new` writes: a method to start from, as one Python file and one YAML."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from kvbench.config.compose import options
from kvbench.config.errors import UserError

_PYTHON = '''\
"""{title}: what it does, in a line."""

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods import Eviction, LayerSnapshot, register


@register("{name}")
@dataclass(frozen=True, kw_only=True)
class {cls}(Eviction):
    """Keeps the tokens to which the last `window` queries attend most.

    The fields are the parameters. This one scores tokens, and those of highest score are kept; see
    `kvbench.methods.base` for what else an eviction may do (`keep`, `layer_tokens`, `step`), and for
    `Selection`, which chooses what a decode step reads.
    """

    source = "own"
    budget_meaning = "tokens kept per KV head"

    window: int = 16

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """A score per prompt token and KV head, `[H, T]`."""
        return snapshot.window_scores(self.window).unflatten(0, (snapshot.heads, -1)).sum(1)
'''
_YAML = """\
# @package method.{name}
# {title}: what it does, in a line
method: {name}
window: 16
"""


@dataclass(frozen=True)
class Written:
    """The files that were written, a command that tries them, and what is left to do for a checkout's tests."""

    files: tuple[Path, Path]
    command: str
    left: str = ""

    def __str__(self) -> str:
        lines = [*(f"wrote {file}" for file in self.files), self.left, f"try it: {self.command}"]
        return "\n".join(line for line in lines if line)


def new_method(name: str, folder: Path | None = None) -> Written:
    """Write a method that works, to be made another one.

    In a checkout of kvbench it goes among the others. Elsewhere the Python file is a plugin in the folder and
    the YAML is under `conf/method/` there.

    Args:
        name: letters, digits and underscores.
        folder: where the user is; the working folder if not given.

    Raises:
        UserError: a name that is taken or none, or a file that cannot be written.
    """
    folder = folder or Path()
    _check(name)
    root = _checkout(folder)
    own = folder if root is None else root / "kvbench" / "methods"
    python, conf = own / f"{name}.py", (root or folder) / "conf" / "method" / f"{name}.yaml"
    for file in (python, conf):
        if file.exists():
            raise UserError(f"name: {file} exists; give another name")
    words = {"name": name, "title": name.replace("_", " "), "cls": name.title().replace("_", "")}
    try:
        for file, text in ((python, _PYTHON), (conf, _YAML)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(**words), encoding="utf-8")
    except OSError as error:
        raise UserError(f"name: cannot write {error.filename}: {error.strerror}") from None
    if root is None:
        command = f"kvbench run --config-dir conf experiment=quickstart plugins=[{name}] method=[{name}]"
        return Written((python, conf), command)
    command = f"kvbench run experiment=quickstart method=[{name}]"
    return Written(
        (python, conf), command, "once it is described: make docs, which writes docs/methods.md anew"
    )


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(
            f"name: {name!r} is no name of a method; give small letters, digits and underscores, a letter first"
        )
    # methods imports torch, and mistakes of spelling should show at once
    from kvbench.methods import registry

    if name in registry() or name in options("method"):
        raise UserError(f"name: there is a method {name!r} already; give another name")
    # a plugin of the name of a package would hide it, a file among the methods one of its neighbours
    if importlib.util.find_spec(name) or importlib.util.find_spec(f"kvbench.methods.{name}"):
        raise UserError(f"name: {name!r} is the name of a Python module already; give another name")


def _checkout(folder: Path) -> Path | None:
    """The checkout of kvbench that a folder is in, or None."""
    marks = ("kvbench/methods/registry.py", "conf/method/dense.yaml", "pyproject.toml")
    for root in (folder, *folder.absolute().parents):
        if all((root / mark).is_file() for mark in marks):
            return root
    return None
