from html.parser import HTMLParser

import pytest

from kvbench.report import load
from kvbench.report.html import examples, page
from kvbench.report.page import Picture
from kvbench.runs.store import Store

ATTACK = "</td><script>alert('x')</script><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects tags, their attributes and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def parsed(accuracy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    records = accuracy(tasks=("niah_single",), samples=3)
    records = [r | {"output": ATTACK + r["method"], "gold": [ATTACK], "device": ATTACK} for r in records]
    records = [r | {"method": ATTACK} if r["method"] == "snapkv" else r for r in records]
    store = Store(folder)
    store.extend(records)
    store.write_config(f'name: "{ATTACK}"\n')
    parser = Tags()
    parser.feed(page(load(folder), [Picture(ATTACK, ATTACK, b"<svg/>")]))
    return parser


def test_all_text_is_escaped(parsed):
    tags = [tag for tag, _ in parsed.tags]
    # the page's own script, and its data
    assert tags.count("script") == 2 and "onerror" not in {name for _, attrs in parsed.tags for name in attrs}
    assert tags.count("img") == 1
    text = "".join(parsed.text)
    for part in (
        "alert('x')</script><img src=x onerror=alert(1)>quest",
        f'name: "{ATTACK}"',
        f"gold: {ATTACK}",
    ):
        assert part in text


def test_the_page_is_self_contained(parsed):
    links = [value for _, attrs in parsed.tags for name, value in attrs.items() if name in ("src", "href")]
    assert links and all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    policy = next(attrs["content"] for _, attrs in parsed.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "unsafe-inline" not in policy


def test_examples_show_where_methods_disagree(accuracy, tmp_path):
    records = accuracy(tasks=("niah_single",), samples=3, budgets=(64,))
    records = [r | {"score": float(r["sample"] == 1 and r["method"] == "dense")} for r in records]
    records = [r | {"output": "x" * 900} if r["method"] == "quest" else r for r in records]
    Store(tmp_path).extend(records)
    (example,) = examples(load(tmp_path).prepared)
    assert "sample 1, seed 0" in example.title and len(example.rows) == 8
    assert example.rows[0][:3] == ["dense", "", "1.00"]
    assert example.rows[2][-1].endswith("x ... (900 characters)")
