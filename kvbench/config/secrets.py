"""Passwords and keys: masked wherever text is shown or stored, and kept from other processes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
# names whose value is secret: api_key and hf_token are, api_key_env, max_tokens and first_token are not
_OWNERS = "api|access|auth|bearer|refresh|session|secret|hf|hub|hugging_?face|github|gitlab|wandb"
_NAME = (
    r"(?:(?:[A-Za-z0-9]+[-_.])*?(?:(?:api|access|secret|private|auth)[-_]?key|secret|password|passwd|pwd|credentials?"
    rf"|authorization)|(?:\w+\.)*?(?:(?:{_OWNERS})[-_]?)?token)"
)
_IS_NAME = re.compile(_NAME, re.IGNORECASE)
_IS_VARIABLE = re.compile(r"[A-Z0-9_]*_(?:TOKEN|KEY)")
_QUOTED = r"'[^'\n]*'|\"[^\"\n]*\""
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(form, re.IGNORECASE), shown)
    for form, shown in (
        # user and password of an address
        (r"(\b[a-z][a-z0-9+.-]*://)[^\s/?#'\"]+@", rf"\1{MASK}@"),
        (rf"((?<![\w-])--?{_NAME}(?:\s+|,\s*))(?:{_QUOTED}|[^\s'\",;\])}}-][^\s'\",;\])}}]*)", rf"\1{MASK}"),
        (rf"((?<![\w-])-{{0,2}}{_NAME}=)(?:{_QUOTED}|[^\s'\",;&\])}}]+)", rf"\1{MASK}"),
        (rf"(['\"]-{{0,2}}{_NAME}['\"]\s*[:,]\s*\[?\s*)(?:{_QUOTED})", rf"\1'{MASK}'"),
        (r"(\bbearer\s+)[^\s'\",;]+", rf"\1{MASK}"),
        # keys that say what they are
        (
            r"\b(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}"
            r"|xox[abp]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)",
            MASK,
        ),
    )
)
_SHORTEST = 8  # characters of a variable's value that is looked for in text
# variables that a program needs to run at all
_BASIC = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "SSL_CERT_FILE",
)  # fmt: skip
_BASIC_PREFIXES = ("LC_", "XDG_")


def is_secret(name: str) -> bool:
    """Whether the value of a setting, flag or variable of this name is to be kept secret."""
    return bool(_IS_NAME.fullmatch(name.lstrip("-")) or _IS_VARIABLE.fullmatch(name))


def masked(text: str) -> str:
    """The text with passwords of addresses, values of secret flags and settings, and known keys masked.

    So are the values that secret variables of the environment have now, as a shell may have put them into a command.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and is_secret(name):
            text = text.replace(value, MASK)
    for form, shown in _FORMS:
        text = form.sub(shown, text)
    return text


def masked_data(data: Any, name: str = "") -> Any:
    """Plain data in which every text is masked, by the key or flag before it too.

    Args:
        data: mappings, lists, tuples and plain values.
        name: the key of `data`.
    """
    if isinstance(data, Mapping):
        return {key: masked_data(value, str(key)) for key, value in data.items()}
    if isinstance(data, list | tuple):
        flags = ["", *data[:-1]] if data else []
        return type(data)(
            masked_data(item, flag if isinstance(flag, str) and flag.startswith("-") else name)
            for flag, item in zip(flags, data, strict=True)
        )
    if not isinstance(data, str):
        return data
    return MASK if data and is_secret(name) else masked(data)


def child_environment(*needed: str, **more: str) -> dict[str, str]:
    """The environment of another process: what any program needs, what this one does, and no secrets.

    Args:
        needed: names of further variables; those that end in `_` are the beginnings of names.
        more: variables to set.
    """
    prefixes = (*_BASIC_PREFIXES, *(name for name in needed if name.endswith("_")))
    found = {
        name: value
        for name, value in os.environ.items()
        if (name in _BASIC or name in needed or name.startswith(prefixes)) and not is_secret(name)
    }
    return found | more
