"""Token counts of images, PDFs and Anthropic's own tools."""

import base64
import io
import zlib

import pytest

from kvbench.claude.attachments import PAGE_TOKENS, UNKNOWN_PAGES, pdf_pages
from kvbench.claude.images import FROM_4_7, UP_TO_4_6, image_size, image_tokens
from kvbench.claude.request_json import parse

PAGES = b"1 0 obj <</Type /Pages /Kids [2 0 R 3 0 R] /Count 2>> endobj\n"
PAGE = b"obj <</Type/Page /Parent 1 0 R>> endobj\n"


class None_:
    """Counts no text, so that only attachments count."""

    def count(self, text, model):
        return 0, "fixture"


def pdf(content):
    return base64.b64encode(b"%PDF-1.7\n" + content + b"%%EOF").decode()


def packed(content):
    return (
        b"5 0 obj <</Type /ObjStm /Filter /FlateDecode>> stream\n" + zlib.compress(content) + b"\nendstream\n"
    )


def document(**source):
    return {"type": "document", "source": source}


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
TWO = document(type="base64", media_type="application/pdf", data=pdf(PAGES + PAGE + PAGE))
URL = document(type="url", url="https://x/y.pdf")


@pytest.mark.parametrize(
    ("content", "pages"),
    [(PAGES + 2 * PAGE, 2), (packed(PAGES + 3 * PAGE), 3), (PAGE + packed(PAGE), 2), (b"", None)],
)
def test_pages_of_a_pdf(content, pages):
    assert pdf_pages(pdf(content)) == pages


@pytest.mark.parametrize("data", [None, 7, "%%%", "abc", pdf(b"/ObjStm stream\nbroken endstream")])
def test_what_is_no_pdf_has_no_pages(data):
    assert pdf_pages(data) is None


@pytest.mark.parametrize(
    ("item", "tokens"),
    [
        (IMAGE, FROM_4_7.tokens),
        (TWO, 2 * PAGE_TOKENS),
        (URL, UNKNOWN_PAGES * PAGE_TOKENS),
        (document(type="file", file_id="f"), UNKNOWN_PAGES * PAGE_TOKENS),
        (document(type="text", media_type="text/plain", data="hello"), 0),
        (document(type="content", content=[IMAGE, {"type": "text", "text": "x"}]), FROM_4_7.tokens),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE, TWO]},
            FROM_4_7.tokens + 2 * PAGE_TOKENS,
        ),
        ({"type": "text", "text": "x"}, 0),
    ],
)
def test_blocks(item, tokens):
    (block,) = parse(
        {"model": "claude-opus-5", "messages": [{"role": "user", "content": [item]}]}, None_()
    ).blocks
    assert (block.tokens, block.source) == (tokens, "estimate" if tokens else "fixture")


@pytest.mark.parametrize(
    ("type_", "model", "tokens"),
    [
        ("bash_20250124", "claude-opus-5", 325),
        ("bash_20250124", "claude-opus-4-7", 325),
        ("bash_20250124", "claude-sonnet-4-6", 244),
        ("bash_20250124", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", 244),
        ("bash_20250124", "claude-3-7-sonnet-20250219", 244),
        ("text_editor_20250728", "claude-opus-4-8", 700),
        ("computer_20250124", "claude-sonnet-4-5", 735),
        ("computer_toolset_20260801", "claude-opus-5", 4_210),
        ("web_search_20250305", "claude-opus-5", 0),
    ],
)
def test_own_tools(type_, model, tokens):
    """What has no published count is counted as its JSON is, here nothing."""
    body = {
        "model": model,
        "tools": [{"type": type_, "name": "x"}],
        "messages": [{"role": "user", "content": "x"}],
    }
    assert parse(body, None_()).blocks[0].tokens == tokens


def picture(kind, width, height):
    image = pytest.importorskip("PIL.Image").new("RGB", (width, height))
    out = io.BytesIO()
    image.save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1000, 1000), (37, 4000)])
def test_the_size_of_an_image_is_read_from_its_first_bytes(kind, size):
    assert image_size(picture(kind, *size)) == size


@pytest.mark.parametrize(
    ("width", "height", "old", "new"),
    [
        (28, 28, 1, 1),
        (29, 28, 2, 2),
        (1000, 1000, 1296, 1296),  # 36 x 36 patches, the documented example
        (1568, 28, 56, 56),
        (3136, 56, 56, 92 * 2),  # halved to 1568 x 28; scaled to 2576 x 46
    ],
)
def test_patches_by_hand(width, height, old, new):
    data = picture("PNG", width, height)
    assert image_tokens(data, "claude-sonnet-4-6") == old
    assert image_tokens(data, "claude-opus-4-7") == new


@pytest.mark.parametrize(("model", "limits"), [("claude-haiku-4-5", UP_TO_4_6), ("claude-opus-5", FROM_4_7)])
@pytest.mark.parametrize("size", [(3000, 3000), (4000, 2000), (1700, 1701), (2600, 2000), (1569, 1100)])
def test_no_image_is_above_the_limits(model, limits, size):
    found = image_tokens(picture("PNG", *size), model)
    shrunk = min(1.0, limits.edge / max(size)) ** 2
    assert 0.95 * min(limits.tokens, shrunk * size[0] * size[1] / 784) <= found <= limits.tokens


@pytest.mark.parametrize(
    "data",
    [
        None,
        7,
        "",
        "%%%",
        "AA==",
        *(picture_head[:40] for picture_head in ("iVBORw0KGgo", "/9j/", "R0lGODlh")),
    ],
)
def test_an_image_without_a_size_counts_as_the_largest(data):
    assert image_tokens(data, "claude-opus-5") == 4784
