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
    for parameter, default in cls().params().items():
        if parameter not in ("eviction", "selection", "format", "keep"):
            assert f"`{parameter}={str(default).lower()}`" in text.lower()
    assert "- Bytes: " in text
    if cls.family != "format":
        assert f"- Budget: {cls.budget_meaning}" in text
    if cls.source != "-":
        assert f"- Source: {cls.source}" in text
    assert f"- Paper and code: {cls.differs}" in text or not cls.differs


def test_a_parameter_that_depends_on_the_mode_has_its_default_in_each():
    (text,) = (part for part in listing.methods_page().split("\n### ") if part.startswith("snapkv\n"))
    assert (
        "`window=32` (kvpress: 64), `pool=max` (or avg; kvpress: avg), `kernel=7` (kvpress: 5)"
        in " ".join(text.split())
    )


def test_methods_of_notebooks_are_not_on_the_page():
    @register("mine_alone")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(SHIPPED["snapkv"]):
        pass

    try:
        assert "mine_alone" not in listing.methods_page()
    finally:
        sys.modules["kvbench.methods.registry"]._CLASSES.pop("mine_alone")
