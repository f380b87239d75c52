"""What `kvbench new` writes: a method or a task to start from, in one Python file."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from kvbench.config import source
from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.config.groups import Groups

_METHOD = '''\
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
_TASK = '''\
"""{title}: what it asks, in a line."""

from dataclasses import dataclass

from kvbench.tasks import Family, Renderer, Sample, register
from kvbench.tasks.base import stream
from kvbench.tasks.haystack import text
from kvbench.tasks.length import fit
from kvbench.tasks.scorers import substring_all


@register("{name}")
@dataclass(frozen=True, kw_only=True)
class {cls}(Family):
    """Asks for `codes` numbers that are hidden in running text.

    The fields are the parameters, in addition to those of `kvbench.tasks.base.Family`. Raise `version` whenever the
    same parameters give other prompts or other scores.
    """

    codes: int = 1

    @property
    def metric(self) -> str:
        return "substring_all"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        rng = stream("{name}", seed, index)
        codes = [str(code) for code in rng.sample(range(100_000, 1_000_000), self.codes)]
        filler = text("prose", None, rng)

        def build(units: int) -> Sample:
            """The sample with so many words of filler; `fit` finds how many meet the length."""
            places = stream("{name} places", seed, index)
            needles = [f"One of the codes is {{code}}." for code in codes]
            return Sample(
                context=filler.hide(needles, units, places),
                question="\\n\\nWhich codes does the text name?",
                answer_prefix="",
                gold=tuple(codes),
                max_new_tokens=self.max_new_tokens,
                meta={{"haystack": filler.kind}},
            )

        return fit(build, renderer, length, smallest=self.codes)

    def score(self, output: str, sample: Sample) -> float:
        return substring_all(output, sample.gold)
'''


@dataclass(frozen=True)
class _Kind:
    """One kind of file that `kvbench new` writes.

    Attributes:
        group: the configuration group.
        packages: packages of kvbench whose modules share its names; a checkout gets the file in the first one.
        text: the template of the file.
        then: what is left to do in a checkout.
    """

    group: str
    packages: tuple[str, ...]
    text: str
    then: str = ""


_KINDS = {
    "method": _Kind(
        "method",
        ("methods", "formats"),
        _METHOD,
        "once it is described: make docs, which regenerates docs/methods.md",
    ),
    "task": _Kind("task", ("tasks",), _TASK),
}


@dataclass(frozen=True)
class Written:
    """A written file, a command that tries it, one that checks it, and what is left to do in a checkout."""

    file: Path
    command: str
    check: str = ""
    then: str = ""

    def __str__(self) -> str:
        check = self.check and f"check it: {self.check}"
        lines = [f"wrote {self.file}", self.then, check, f"try it: {self.command}"]
        return "\n".join(line for line in lines if line)


def new(what: str, name: str, folder: Path | None = None) -> Written:
    """Write a working method or task to change.

    In a checkout of kvbench the file goes among the others. Elsewhere it is a plugin in the folder.

    Args:
        what: "method" or "task".
        name: letters, digits and underscores.
        folder: where the user is; the working folder if not given.

    Raises:
        UserError: the name is taken or not a valid one, or the file cannot be written.
    """
    kind = _KINDS[what]
    folder = folder or Path()
    _check(kind, name)
    root = _checkout(folder)
    file = (folder if root is None else root / "kvbench" / kind.packages[0]) / f"{name}.py"
    if file.exists():
        raise UserError(f"name: {file} exists; give another name")
    words = {"name": name, "title": name.replace("_", " "), "cls": name.title().replace("_", "")}
    write(file, kind.text.format(**words), "name")
    plugin = [f"plugins=[{name}]"] if root is None else []
    command = shlex.join(["kvbench", "run", "quickstart", *plugin, f"{what}=[{name}]"])
    check = f"kvbench check {name}" if what == "method" else ""
    return Written(file, command, check, kind.then if root else "")


def _check(kind: _Kind, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(
            f"name: {name!r} is not a name for a {kind.group}; "
            "give small letters, digits and underscores, a letter first"
        )
    groups = Groups()
    if name in groups.options(kind.group) or name in groups.registered(kind.group):
        raise UserError(f"name: there is a {kind.group} {name!r} already; give another name")
    # a plugin would shadow a package of its name, a file in a checkout its neighbour
    shipped = [source.find(f"kvbench.{package}.{name}") for package in kind.packages]
    if importlib.util.find_spec(name) or any(shipped):
        raise UserError(f"name: {name!r} is the name of a Python module already; give another name")


def _checkout(folder: Path) -> Path | None:
    """The checkout of kvbench that a folder is in, or None."""
    marks = ("kvbench/methods/registry.py", "conf/config.yaml", "pyproject.toml")
    for root in (folder, *folder.absolute().parents):
        if all((root / mark).is_file() for mark in marks):
            return root
    return None
