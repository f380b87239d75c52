"""Regular expressions of a user, whose search ends in time whatever the text.

RE2 searches in time linear in the text, where Python's `re` may backtrack for ever. It knows no lookaround and no
backreferences, and `\\w`, `\\d` and `\\b` are ASCII's there. What it does not read as Python does goes to `re` in a
child process with a time limit.
"""

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.secrets import child_environment

#: seconds for one answer in the child process
LIMIT_S = 10.0
_CHILD = """
import json, re, sys
patterns, text = json.load(sys.stdin)
for number, pattern in enumerate(patterns):
    print("at", number, flush=True)
    if re.search(pattern, text):
        print("match")
        break
else:
    print("none")
"""
# a set's class or nested set, a count without its minimum, an octal number or reference by number: other in RE2
_READ_OTHERWISE = re.compile(r"\[\[|\[:|\{,|\\[0-9]")
# separators that are spaces for Python only
_OTHER_SPACES = re.compile("[\x0b\x1c-\x1f]")


class ScoreError(UserError):
    """An answer that cannot be scored."""


def fault(pattern: str) -> str | None:
    """Why a text is no regular expression, or None."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    return None


def matches(patterns: Sequence[str], text: str) -> bool:
    """Whether any pattern matches somewhere in the text, as Python's `re.search` does; both in the form NFC.

    Args:
        patterns: regular expressions of Python's `re`.
        text: where to search.

    Raises:
        ScoreError: a pattern that RE2 does not read as `re` does takes longer than `LIMIT_S`.
    """
    text = unicodedata.normalize("NFC", text)
    slow: list[str] = []
    for pattern in (unicodedata.normalize("NFC", pattern) for pattern in patterns):
        linear = _linear(pattern) if _reads_alike(pattern, text) else None
        if linear is None:
            slow.append(pattern)
        elif linear.search(text):
            return True
    return bool(slow) and _in_child(slow, text)


def shown(pattern: str) -> str:
    """A pattern for a message, cut if it is long."""
    return repr(pattern if len(pattern) <= 80 else f"{pattern[:80]}...")


def _reads_alike(pattern: str, text: str) -> bool:
    """Whether RE2 reads pattern and text as `re` does, as far as it takes the pattern."""
    if not (pattern.isascii() and text.isascii()) or _OTHER_SPACES.search(text):
        return False
    # for `re`, $ is also before a last line break
    return not _READ_OTHERWISE.search(pattern) and not ("$" in pattern and text.endswith("\n"))


@lru_cache(maxsize=256)
def _linear(pattern: str) -> Any:
    """The pattern compiled by RE2, or None where RE2 does not take it."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


def _in_child(patterns: list[str], text: str) -> bool:
    """The search by `re` in a process of its own, which can be ended while it backtracks."""
    command = [sys.executable, "-I", "-S", "-c", _CHILD]
    task = json.dumps([patterns, text])
    try:
        done = subprocess.run(
            command,
            input=task,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired as error:
        reason, said = f"takes more than {LIMIT_S:g} s on an answer", error.stdout
    except subprocess.CalledProcessError as error:
        reason, said = "cannot be searched for in an answer", error.stdout
    else:
        return done.stdout.endswith("match\n")
    said = said.decode() if isinstance(said, bytes) else said or ""
    at = int(said.split()[-1]) if said.split() else 0
    raise ScoreError(
        f"answers: the pattern {shown(patterns[at])} {reason}; write it without nested repetitions"
    )
