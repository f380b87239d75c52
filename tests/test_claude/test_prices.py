"""Prices by date, multipliers, and the published figures to the last digit."""

import pytest

from kvbench.claude.prices import PriceBook, dollars
from kvbench.claude.request import Usage
from kvbench.claude.rules import Cache
from kvbench.config.errors import UserError


@pytest.mark.parametrize(("ttl", "expected"), [(300, "0.189827"), (3600, "0.113432")])
def test_published_real_api_run(prices, blocks, ask, day, ttl, expected):
    """cacheeconomics (Apache-2.0), evidence of 2026-07-28: 16,429 tokens at 0, 420, 480 and 900 s."""
    prefix = blocks(1, 16_429)[0]
    head = blocks(1, 6, start=prefix)[0]
    cache, cost, start = Cache(), 0, day(2026, 7, 28)
    for offset in (0, 420, 480, 900):
        request = ask(head, start + offset)
        usage = cache.serve(request, [(prefix, ttl)], prices.minimum(request.model, request.t)).usage
        cost += prices.cost(request, usage)[0]
    assert dollars(cost) == expected


def test_prices_change_at_their_date(prices, day):
    assert prices.rates("claude-sonnet-5-5", day(2026, 10, 6), 1000).read == 200
    assert prices.rates("claude-sonnet-5-5", day(2026, 10, 7), 1000).read == 100
    assert prices.rates("claude-sonnet-4-6", day(2026, 3, 12), 200_001).base == 6000
    assert prices.rates("claude-sonnet-4-6", day(2026, 3, 13), 200_001).base == 3000
    with pytest.raises(UserError, match="first price is of 2026-10-07"):
        prices.rates("claude-haiku-5-5", day(2026, 10, 6), 1000)


def test_minimums_change_at_their_date(prices, day):
    dates = [(2026, 2, 20), (2026, 2, 27), (2026, 5, 13), (2026, 5, 14)]
    assert [prices.minimum("claude-sonnet-4-6", day(*date)) for date in dates] == [1024, 2048, 2048, 1024]
    assert prices.minimum("claude-fable-5-2", day(2026, 11, 1), unknown=4096) == 4096


def test_long_prompts_pay_more_on_every_token(prices, ask, blocks, day):
    """R19: above 100,000 input tokens, cached ones included, Haiku 5.5 costs five times as much."""
    request = ask(blocks(1)[0], day(2026, 11, 1), model="claude-haiku-5-5")
    assert prices.cost(request, Usage(read=90_000, uncached=10_000, output=10)) == (1_900_000, 5_000)
    assert prices.cost(request, Usage(read=90_000, uncached=10_001, output=10)) == (9_500_500, 25_000)


def test_unverified_long_prompt_prices_are_an_assumption(prices, day):
    assert prices.rates("claude-sonnet-4-5", day(2026, 2, 1), 300_000).base == 3000
    assert prices.rates("claude-sonnet-4-5", day(2026, 2, 1), 300_000, unverified=True).base == 6000


def test_multipliers_stack(prices, ask, blocks, day):
    """R20: batch half, US inference 1.1 on 4.6 and later, fast base price with the cache multipliers."""
    usage = Usage(read=1000, write_5m=1000, write_1h=1000, uncached=1000, output=1000)
    head = blocks(1)[0]

    def cost(**fields):
        return prices.cost(ask(head, day(2026, 11, 1), **fields), usage)

    assert cost() == (13_050_000, 15_000_000)
    assert cost(batch=True) == (6_525_000, 7_500_000)
    assert cost(geo="us") == (14_355_000, 16_500_000)
    assert cost(batch=True, geo="us") == (7_177_500, 8_250_000)
    assert cost(geo="us", model="claude-sonnet-4-5") == (13_050_000, 15_000_000)
    assert cost(model="claude-opus-5", speed="fast") == (2 * 21_750_000, 50_000_000)
    with pytest.raises(UserError, match="no fast mode"):
        cost(speed="fast")


def test_unknown_models_name_the_nearest(prices):
    with pytest.raises(UserError, match=r"nearest are .*claude-sonnet-4-6") as error:
        prices.resolve("claude-sonnet-4-6-20250929")
    assert "\n" not in str(error.value)
    assert prices.resolve("claude-sonnet-4-5-20250929") == "claude-sonnet-4-5"


def test_every_row_has_a_dated_source_and_the_usual_ratios(prices, day):
    """Writes cost 1.25 and 2 times the base everywhere; reads 0.1 or, on three families, less."""
    for name in prices.models():
        rates = prices.rates(name, day(2026, 11, 24), 1000)
        assert (rates.write_5m * 4, rates.write_1h) == (rates.base * 5, rates.base * 2)
        assert rates.base in (rates.read * 10, rates.read * 20, rates.read * 40)
        assert prices.row(name, day(2026, 11, 24)).source


def test_break_even(prices, day):
    """R22: 5m pays off from the second use, 1h from the third, at every model's read price."""
    for name in prices.models():
        rates = prices.rates(name, day(2026, 11, 24), 1000)
        assert rates.write_5m + rates.read < 2 * rates.base
        assert rates.write_1h + rates.read >= 2 * rates.base
        assert rates.write_1h + 2 * rates.read < 3 * rates.base


@pytest.mark.parametrize(
    ("model", "auto", "forced"),
    [("claude-sonnet-4-6", 497, 589), ("claude-opus-5", 286, 406), ("claude-sonnet-5", 354, 474)],
)
def test_the_apis_own_tool_prompt(prices, model, auto, forced):
    """R21, from the pricing page."""
    assert prices.tool_prompt(model, "auto") == auto
    assert prices.tool_prompt(model, "any") == forced
    assert prices.tool_prompt(model, "") == 0


def test_an_unpublished_tool_prompt_is_left_out(prices):
    assert prices.tool_prompt("claude-fable-5-2", "auto") == 0


def test_cache_reads_count_towards_the_rate_limit_on_one_model_only(prices):
    """R23."""
    assert [name for name in prices.models() if prices.reads_limited(name)] == ["claude-haiku-3-5"]


def test_a_malformed_file_is_one_line(tmp_path):
    good = "sources: {D: {seen: 2026-01-01}}\nmodels:\n  m:\n    minimum: [{tokens: 1, source: D}]\n"
    good += "    prices:\n"
    rows = {
        "no such": "      - {source: X, base: 1, write_5m: 1.25, write_1h: 2, read: 0.1, output: 5}",
        "write_1h": "      - {source: D, base: 1, write_5m: 1.25, read: 0.1, output: 5}",
        "whole number": "      - {source: D, base: 0.0001, write_5m: 1, write_1h: 2, read: 0.1, output: 5}",
    }
    rows["source X"] = rows.pop("no such")
    for match, row in rows.items():
        (tmp_path / "p.yaml").write_text(good + row)
        with pytest.raises(UserError, match=match) as error:
            PriceBook.load(tmp_path / "p.yaml")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        PriceBook.load(tmp_path / "missing")


def test_dollars_round_half_up():
    assert dollars(83_850_000, 5) == "0.08385"
    assert dollars(500, 6) == "0.000001"
