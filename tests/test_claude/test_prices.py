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


def test_unverified_long_prompt_prices_are_an_assumption(tmp_path, day):
    """A user's own file may hold prices without a primary source; the shipped one holds none."""
    (tmp_path / "p.yaml").write_text(
        "sources: {D: {seen: 2026-01-01}}\nmodels:\n  claude-own:\n    minimum: [{tokens: 1, source: D}]\n    prices:\n"
        "      - {source: D, base: 3, write_5m: 3.75, write_1h: 6, read: 0.3, output: 15, long_prompt:\n"
        "         {above: 200000, base: 6, write_5m: 7.5, write_1h: 12, read: 0.6, output: 22.5, source: D,\n"
        "          verified: false}}\n"
    )
    own = PriceBook.load(tmp_path)
    assert own.rates("claude-own", day(2026, 2, 1), 300_000).base == 3000
    assert own.rates("claude-own", day(2026, 2, 1), 300_000, unverified=True).base == 6000
    assert own.rates("claude-own", day(2026, 2, 1), 200_000, unverified=True).base == 3000


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        ("claude-opus-4-6", (10_000, 12_500, 20_000, 1_000, 37_500), 5_000),
        ("claude-sonnet-4-6", (6_000, 7_500, 12_000, 600, 22_500), 3_000),
    ],
)
def test_long_contexts_cost_more_until_13_march(prices, day, model, before, after):
    """Release notes and pricing page of 2026: above 200,000 input tokens, on every token, until 2026-03-13."""
    rates = prices.rates(model, day(2026, 3, 12), 200_001)
    assert (rates.base, rates.write_5m, rates.write_1h, rates.read, rates.output) == before
    assert prices.rates(model, day(2026, 3, 12), 200_000).base == after
    assert prices.rates(model, day(2026, 3, 13), 900_000).base == after


@pytest.mark.parametrize(
    ("day_", "model", "cost"),
    [
        # 30 and 150 dollars per million: six times the standard of Opus 4.6
        ((2026, 2, 6), "claude-opus-4-6", "no fast mode before 2026-02-07"),
        ((2026, 2, 7), "claude-opus-4-6", (30_000_000, 150_000_000)),
        ((2026, 6, 28), "claude-opus-4-6", (30_000_000, 150_000_000)),
        ((2026, 6, 29), "claude-opus-4-6", (5_000_000, 25_000_000)),
        ((2026, 7, 23), "claude-opus-4-7", (30_000_000, 150_000_000)),
        ((2026, 7, 24), "claude-opus-4-7", "no fast mode from 2026-07-24 on"),
        ((2026, 11, 29), "claude-opus-4-8", (10_000_000, 50_000_000)),
        ((2026, 11, 1), "anthropic.claude-opus-5", "no fast mode"),
    ],
)
def test_fast_mode_by_its_days(prices, ask, blocks, day, day_, model, cost):
    """Withdrawn on Opus 4.6 it is served, and priced, as standard; on Opus 4.7 it is an error."""
    request = ask(blocks(1)[0], day(*day_), model=model, speed="fast")
    usage = Usage(uncached=1000, output=1000)
    if isinstance(cost, str):
        with pytest.raises(UserError, match=cost):
            prices.cost(request, usage)
    else:
        assert prices.cost(request, usage) == cost
    served = prices.served_speed(model, request.t, "fast")
    assert served == ("standard" if cost == (5_000_000, 25_000_000) else "fast")


@pytest.mark.parametrize(
    ("model", "day_"),
    [
        ("claude-opus-4-6", "2026-02-05"),
        ("claude-opus-4-7", "2026-04-16"),
        ("claude-opus-4-8", "2026-05-28"),
        ("claude-opus-5", "2026-07-24"),
        ("claude-sonnet-5", "2026-06-30"),
        ("claude-fable-5", "2026-06-09"),
        ("claude-haiku-4-5", "2025-10-15"),
        ("claude-sonnet-4-20250514", "2025-05-22"),
        ("claude-opus-4-20250514", "2025-05-22"),
        ("claude-3-7-sonnet-20250219", "2025-02-24"),
    ],
)
def test_first_days(prices, day, model, day_):
    first = day(*map(int, day_.split("-")))
    assert prices.rates(model, first, 1000)
    with pytest.raises(UserError, match=f"first price is of {day_}"):
        prices.rates(model, first - 1, 1000)


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
    """Writes cost 1.25 and 2 times the base; reads 0.1 or, on three families, less; those of Haiku 3 are rounded."""
    rounded = prices.rates("claude-3-haiku-20240307", day(2026, 1, 1), 1000)
    assert (rounded.base, rounded.write_5m, rounded.write_1h, rounded.read) == (250, 300, 500, 30)
    for name in prices.models():
        if name == "claude-haiku-3":
            continue
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
