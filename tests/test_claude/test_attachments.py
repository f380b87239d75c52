"""Token counts of images, PDFs and Anthropic's own tools."""

import base64
import zlib

import pytest

from kvbench.claude.attachments import PAGE_TOKENS, UNKNOWN_PAGES, pdf_pages
from kvbench.claude.request_json import parse
from kvbench.claude.tokens import IMAGE_TOKENS

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
        (IMAGE, IMAGE_TOKENS),
        (TWO, 2 * PAGE_TOKENS),
        (URL, UNKNOWN_PAGES * PAGE_TOKENS),
        (document(type="file", file_id="f"), UNKNOWN_PAGES * PAGE_TOKENS),
        (document(type="text", media_type="text/plain", data="hello"), 0),
        (document(type="content", content=[IMAGE, {"type": "text", "text": "x"}]), IMAGE_TOKENS),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE, TWO]},
            IMAGE_TOKENS + 2 * PAGE_TOKENS,
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
