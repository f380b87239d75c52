"""Wording of captions and messages, and text from elsewhere made harmless."""

import hashlib
import re

# what a terminal obeys: control characters but tab and line break, and marks that reorder, hide or tag text
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_LONGEST = 80  # characters of a file's name, without suffix
# what `file_name` ends with where it is not the label
_HASHED = re.compile(r"-[0-9a-f]{8}$")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written out, as `\\u001b`."""
    return _OBEYED.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def file_name(label: str) -> str:
    """A file name without suffix for a label, within its folder; labels that differ have names that differ."""
    name = re.sub(r"[^A-Za-z0-9_.,=\[\]+-]+", "-", label).lstrip(".")[:_LONGEST]
    if name and name == label and not _HASHED.search(name):
        return name
    return f"{name}-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


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
