"""Token counts of what a request holds besides text: images, PDFs, and Anthropic's own tools. All are estimates.

Sources: platform.claude.com, "PDF support" (2026-08: 1,500 to 3,000 tokens of text per page, and each page an image
too) and "Pricing" (2026-08: tokens that the definitions of Anthropic's own tools add).
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from typing import Any

from kvbench.claude.images import UP_TO_4_6, image_tokens
from kvbench.claude.names import is_older

PAGE_TOKENS = 2_250 + UP_TO_4_6.tokens  # the middle of the published range, and the page's image
UNKNOWN_PAGES = 10  # of a PDF behind a URL or a file id: nothing is published; the reported usage corrects it

# tokens of a definition by the start of its type, before and from the 4.7 models on
_OWN_TOOLS = {
    "bash_": (244, 325),
    "text_editor_": (700, 700),
    # these two hold the prompt that the API adds for tools, which is counted apart
    "computer_toolset_": (4_500 - 290, 4_500 - 290),
    "browser_toolset_": (6_600 - 290, 6_600 - 290),
    "computer_": (735, 735),
}
_OBJECT_STREAM = re.compile(rb"/ObjStm\b.*?stream\r?\n(.*?)endstream", re.DOTALL)
_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")


def attached_tokens(item: Mapping[str, Any], model: str) -> int:
    """Tokens of the images and PDFs in a block, those inside of a tool result or a document included."""
    source = item.get("source")
    source = source if isinstance(source, Mapping) else {}
    inner = [item.get("content"), source.get("content")]
    parts = [part for content in inner if isinstance(content, list) for part in content]
    total = sum(attached_tokens(part, model) for part in parts if isinstance(part, Mapping))
    if item.get("type") == "image":
        return total + image_tokens(source.get("data"), model)
    if item.get("type") == "document" and source.get("type") in ("base64", "url", "file"):
        pages = pdf_pages(source.get("data")) if source["type"] == "base64" else None
        return total + (UNKNOWN_PAGES if pages is None else pages) * PAGE_TOKENS
    return total


def pdf_pages(data: object) -> int | None:
    """Pages of a base64 PDF, None if they cannot be counted."""
    try:
        content = base64.b64decode(data if isinstance(data, str | bytes) else b"")
    except (ValueError, binascii.Error):
        return None
    found = len(_PAGE.findall(content))
    for stream in _OBJECT_STREAM.findall(content):
        try:
            found += len(_PAGE.findall(zlib.decompressobj().decompress(stream, 16_000_000)))
        except zlib.error:
            continue
    return found or None


def own_tool_tokens(tool: Mapping[str, Any], model: str) -> int | None:
    """Tokens of the definition of one of Anthropic's own tools, None if it is none or has no published count."""
    type_ = str(tool.get("type", ""))
    for start, (old, new) in _OWN_TOOLS.items():
        if type_.startswith(start):
            return old if is_older(model) else new
    return None
