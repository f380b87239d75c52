"""Tokens of images, from the width and height in their first bytes.

Source: platform.claude.com, "Images and vision", public copy read 2026-11-30: a token per patch of 28 x 28 pixels,
after an image that is too large has been scaled down to its model's limits, with its proportions kept. The limits by
family of models: a public measurement with count_tokens (jackin.tailrocks.com, multimodal token economics) of the
documented 1,568 pixels and tokens, and 2,576 pixels and 4,784 tokens from Opus 4.7 on; it gives 1,296 tokens for
1,000 x 1,000.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass

from kvbench.claude.names import is_older

PATCH = 28  # pixels
HEAD = 262_144  # bytes in which the size must stand


@dataclass(frozen=True)
class Limits:
    """Largest image of a model: pixels of the longer edge, and tokens."""

    edge: int
    tokens: int


UP_TO_4_6, FROM_4_7 = Limits(1_568, 1_568), Limits(2_576, 4_784)


def image_tokens(data: object, model: str) -> int:
    """Tokens of a base64 image; one whose size cannot be read counts as the largest.

    Args:
        data: base64, None for an image behind a URL or a file id.
        model: the model's id.
    """
    limits = UP_TO_4_6 if is_older(model) else FROM_4_7
    size = image_size(data)
    if size is None:
        return limits.tokens
    width, height = size
    scale = min(1.0, limits.edge / max(width, height), math.sqrt(limits.tokens * PATCH**2 / (width * height)))
    # whole patches may take one row or column more than the limit
    while _patches(width * scale) * _patches(height * scale) > limits.tokens:
        scale *= 0.995
    return _patches(width * scale) * _patches(height * scale)


def image_size(data: object) -> tuple[int, int] | None:
    """Width and height of a base64 PNG, GIF, WebP or JPEG; None if they cannot be read."""
    try:
        head = base64.b64decode((data if isinstance(data, str) else "")[: HEAD // 3 * 4])
        size = _size(head)
    except (ValueError, binascii.Error, struct.error, IndexError):
        return None
    return size if size is not None and min(size) > 0 else None


def _patches(pixels: float) -> int:
    return max(1, math.ceil(pixels / PATCH - 1e-9))


def _size(head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", head[16:24])
        return width, height
    if head[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack("<HH", head[6:10])
        return width, height
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    return _jpeg(head) if head.startswith(b"\xff\xd8") else None


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack("<I", head[21:25])[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    place = 2
    while head[place] == 0xFF:
        marker = head[place + 1]
        # a start of frame, but no table (C4, C8, CC)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[place + 5 : place + 9])
            return width, height
        place += 2 + struct.unpack(">H", head[place + 2 : place + 4])[0]
    return None
