"""Wording of captions and messages, and text from elsewhere made harmless."""

import hashlib
import re

# what a terminal obeys: control characters but tab and line break, and marks that reorder or hide text
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_LONGEST = 80  # characters of a file's name, without suffix


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written out, as `\\x1b`."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def file_name(label: str) -> str:
    """A file name without suffix for a label, within its folder; labels that differ have names that differ."""
    name = re.sub(r"[^A-Za-z0-9_.,=\[\]+-]+", "-", label).lstrip(".")[:_LONGEST]
    return (
        name
        if name == label
        else f"{name}-{hashlib.sha256(label.encode('utf-8', 'replace')).hexdigest()[:8]}"
    )


def counted(n: float, noun: str, form: str = ",") -> str:
    """A number with its noun, as "1 thread" or "2 threads".

    Args:
        n: the number.
        noun: the noun in the singular; its plural ends in s.
        form: format of the number.
    """
    number = format(n, form)
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


def one_line(error: BaseException, longest: int = 300) -> str:
    """Kind and text of an exception without line breaks."""
    try:
        text = " ".join(str(error).split())
    # jinja2 and transformers have exceptions whose own text cannot be made of what they hold
    except (AttributeError, LookupError, TypeError, ValueError):
        text = ""
    text = text if len(text) <= longest else text[:longest] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
