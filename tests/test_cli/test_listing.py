"""The page of methods: that the committed one is fresh, and that nothing is left out."""

import dataclasses
import sys
from pathlib import Path

import pytest

from kvbench.cli import listing
from kvbench.methods import register, registry

ROOT = Path(__file__).parents[2]
SHIPPED = {name: cls for name, cls in registry().items() if cls.__module__.startswith("kvbench.")}


def test_the_committed_page_is_that_of_the_code():
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == listing.methods_page(), (
        "run make docs"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_method_is_described_with_its_parameters_budget_bytes_and_source(name):
    page, cls = listing.methods_page(), SHIPPED[name]
    (text,) = (part for part in page.split("\n### ")[1:] if part.startswith(f"{name}\n"))
    text = " ".join(text.split())
    for field in dataclasses.fields(cls):
        if field.name not in ("eviction", "selection", "format", "keep"):
            assert f"`{field.name}={str(field.default).lower()}`" in text.lower()
    assert "- Bytes: " in text
    if cls.family != "format":
        assert f"- Budget: {cls.budget_meaning}" in text
    if cls.source != "-":
        assert f"- Source: {cls.source}" in text
    assert f"- Paper and code: {cls.differs}" in text or not cls.differs


def test_methods_of_notebooks_are_not_on_the_page():
    @register("mine_alone")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(SHIPPED["snapkv"]):
        pass

    try:
        assert "mine_alone" not in listing.methods_page()
    finally:
        sys.modules["kvbench.methods.registry"]._CLASSES.pop("mine_alone")
