"""The sentences of SCBench: ours, or those of the user's clone of microsoft/MInference, read as text."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.tasks.scbench_names import NAMES

_FILE = "scbench/eval_utils.py"
# the tables of the file, in its spelling: the first turn, the context alone, a question within the chat template
_TABLES = ("multiturn_templates", "multiturn_templates_scdq", "multiturn_follow_up_templates_in_chat_tempate")
#: first digits of the SHA-256 of the official sentences
OFFICIAL = "1c4f0bf900d0d938"
_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"


@dataclass(frozen=True)
class Sentences:
    """The sentences of a task, each with the fields that it is filled with.

    Attributes:
        first: the first message of a conversation, with {context}.
        following: a later message.
        head: what stands before and around the context where it is alone.
        asked: the question behind it.
        label: `own`, `scbench`, or `scbench` with digits of its hash where the clone has other sentences.
    """

    first: str
    following: str
    head: str
    asked: str
    label: str


def sentences(name: str, repo: str | None) -> Sentences:
    """The sentences of a task.

    Args:
        name: of the task.
        repo: the clone's folder; None for our own sentences.

    Raises:
        UserError: the clone has no such file, or not these tables.
    """
    if repo is None:
        return _own(name)
    tables, digest = _read(repo)
    first, alone, following = (table[f"scbench_{name}"] for table in tables)
    label = "scbench" if digest == OFFICIAL else f"scbench ({digest[:8]})"
    head, asked = alone if isinstance(alone, tuple | list) else (alone, following)
    return Sentences(first, following, head, asked, label)


def _own(name: str) -> Sentences:
    asked, before = "{input}", "Read the text and answer the questions about it.\n\n"
    if name == "choice_eng":
        asked = f"Question: {{question}}\n{_OPTIONS}\n\nThe letter of the right answer is"
    elif name in ("qa_eng", "qa_chn"):
        asked = "Question: {question}\nAnswer briefly:"
    elif name == "mf":
        before, asked = "Here is a list of numbers.\n\n", "{prefix}\n\n{input}"
    elif name == "repoqa":
        before = "Find the function that is described in this code, and repeat it in a code block.\n\n"
    elif name in ("kv", "prefix_suffix"):
        before = "Remember what stands in this text; the questions are about it.\n\n"
    head = before + "{context}"
    return Sentences(f"{head}\n\n{asked}", asked, head, f"\n\n{asked}", "own")


def _read(repo: str) -> tuple[tuple[Mapping[str, Any], ...], str]:
    path = Path(repo).expanduser() / _FILE
    try:
        stat = path.stat()
        return _tables(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"repo: {repo} has no {_FILE} ({error}); give the folder of a clone of github.com/microsoft/MInference, "
            "or leave repo out for wording=own"
        ) from None


@cache
def _tables(path: Path, mtime_ns: int, size: int) -> tuple[tuple[Mapping[str, Any], ...], str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            target.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id in _TABLES
        }
        tables = tuple(found[name] for name in _TABLES)
        for table in tables:
            for name in NAMES:
                texts = table[f"scbench_{name}"]
                assert all(isinstance(text, str) for text in ([texts] if isinstance(texts, str) else texts))
    except (SyntaxError, ValueError, KeyError, TypeError, AssertionError):
        raise UserError(
            f"repo: {path} has not the sentences that are expected there ({', '.join(_TABLES)}); leave repo out for "
            "wording=own"
        ) from None
    used = [[table[f"scbench_{name}"] for name in NAMES] for table in tables]
    digest = hashlib.sha256(json.dumps(used, ensure_ascii=False).encode()).hexdigest()[:16]
    return tables, digest
