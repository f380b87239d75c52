"""Ids of many cells that share most of what they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def texts(payload: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a payload as JSON, `"key": value`, by key."""
    return {
        key: f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, default=str, allow_nan=False)}"
        for key, value in payload.items()
    }


def joined(*parts: Mapping[str, str]) -> str:
    """`digest` of the union of payloads, each given as `texts`; of a key that several have, the last one counts."""
    entries: dict[str, str] = {}
    for part in parts:
        entries |= part
    text = "{" + ", ".join([entries[key] for key in sorted(entries)]) + "}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
