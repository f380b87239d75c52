"""Hashes of a text without what changes by itself, so that a change can be named without keeping the text."""

from __future__ import annotations

import re

from kvbench.claude.request import digest

_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s?[ap]\.?m\b\.?)?(?:\s?(?:z|utc|gmt|[+-]\d{2}:?\d{2})(?![a-z0-9]))?"
_DATES = re.compile(
    rf"""
      \d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?:[t ]{_CLOCK})?   # 2026-11-30, with a time or without
    | \d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}                  # 30.11.2026, 11/30/26
    | {_CLOCK}                                               # 14:05:09
    | \d{{8}}t\d{{6}}z?                                      # 20261130T140509Z
    | (?<![\d.])1[3-9]\d{{8}}(?:\d{{3}}|\d{{6}}|\d{{9}})?(?:\.\d+)?(?!\d)  # seconds (ms, us, ns) since 1970
    | \b(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\b
    | \b{_MONTHS}\.?\s\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s\d{{4}})?\b
    | \b\d{{1,2}}(?:st|nd|rd|th)?\.?\s{_MONTHS}(?:\.?,?\s\d{{4}})?\b
    | \b\d{{1,2}}\s?[ap]\.?m\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# a random id has letters and digits, or is a long hexadecimal word; a counter is a number
_NUMBERS = re.compile(
    r"""
      [0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}
    | \b[0-9a-f]{8,}\b
    | \b(?=[a-z_-]*\d)[a-z\d_-]{6,}\b
    | \d+(?:\.\d+)?
    """,
    re.IGNORECASE | re.VERBOSE,
)


def masked(text: str) -> tuple[int, int]:
    """Hashes of a text with dates and times masked, and with numbers and random ids masked as well; 0 if it has none.

    Two texts with the same hash differ in nothing else. A random id of letters only is not seen.
    """
    undated, dates = _DATES.subn("\x00", text)
    unnumbered, numbers = _NUMBERS.subn("\x01", undated)
    return digest(undated) if dates else 0, digest(unnumbered) if numbers or dates else 0
