"""The article's table: two of its figures hold, one is a rounding of its own percentage."""

from kvbench.claude import article
from kvbench.claude.prices import dollars


def test_recomputed_table(prices):
    rows = {row["reading"]: dollars(row["nano_usd"], 5) for row in article.table(prices)}
    assert rows == {
        "no cache": "0.39000",
        "same context": "0.08385",
        "same context, 1h": "0.11310",
        "stable part only": "0.31935",
        "new context": "0.39435",
        # the tools alone are 1,000 tokens, below the minimum of 1,024: their marker does nothing
        "new context, as coded": "0.48750",
        "gaps over 5 min": "0.48750",
    }


def test_the_printed_total_is_computed_back_from_its_percentage():
    assert article.ARTICLE_CACHED == article.ARTICLE_PLAIN * 22 // 100
