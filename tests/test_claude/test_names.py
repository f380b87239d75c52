"""Model ids as files have them, and what a region costs."""

import pytest

from kvbench.claude.names import parse_name
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Usage
from kvbench.config.errors import UserError

SAME = {
    "claude-sonnet-4-5": [
        "claude-sonnet-4-5-20250929",
        "claude-sonnet-4-5[1m]",
        "anthropic/claude-sonnet-4-5-20250929",
        "anthropic/claude-sonnet-4.5",
        "azure_ai/claude-sonnet-4-5",
    ],
    "claude-sonnet-4": ["claude-sonnet-4-0", "claude-sonnet-4-20250514", "claude-4-sonnet-20250514"],
    "claude-opus-4": ["claude-opus-4-0", "claude-opus-4-20250514", "claude-4-opus"],
    "claude-opus-4-6": ["claude-opus-4-6[1M]", "claude-opus-4-6-20260205", "claude-4.6-opus"],
    "claude-haiku-3-5": ["claude-3-5-haiku-20241022", "claude-3-5-haiku-latest", "claude-3.5-haiku"],
    "claude-sonnet-3-7": ["claude-3-7-sonnet-latest", "claude-3-7-sonnet-20250219"],
    "claude-haiku-3": ["claude-3-haiku-20240307"],
    "claude-opus-3": ["claude-3-opus-20240229", "claude-3-opus-latest"],
    "bedrock/claude-opus-4-6": [
        "anthropic.claude-opus-4-6-v1",
        "global.anthropic.claude-opus-4-6-v1",
        "bedrock/anthropic.claude-opus-4-6-v1",
        "bedrock/converse/global.anthropic.claude-opus-4-6-v1",
    ],
    "bedrock/us/claude-sonnet-4-5": [
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    ],
    "bedrock/eu-central-1/claude-sonnet-4-6": [
        "arn:aws:bedrock:eu-central-1::foundation-model/anthropic.claude-sonnet-4-6",
        "bedrock/eu-central-1/anthropic.claude-sonnet-4-6",
    ],
    "bedrock/claude-sonnet-3": ["anthropic.claude-3-sonnet-20240229-v1:0:200k"],
    "vertex_ai/claude-haiku-4-5": [
        "vertex_ai/claude-haiku-4-5@20251001",
        "projects/p/locations/global/publishers/anthropic/models/claude-haiku-4-5@20251001",
    ],
    "vertex_ai/us-east5/claude-opus-4-5": [
        "projects/p/locations/us-east5/publishers/anthropic/models/claude-opus-4-5@20251101"
    ],
    "vertex_ai/claude-opus-5": ["vertex_ai/claude-opus-5@default"],
    "claude-opus-5": ["bedrock/claude_platform/claude-opus-5", "claude-opus-5[1m]"],
}


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in SAME.items() for form in forms])
def test_every_form_of_an_id_is_one_name(prices, name, form):
    """Foundry apart, whose bill is Anthropic's: its name stays so that its cache is its own."""
    found = prices.resolve(form)
    assert found == (f"azure_ai/{name}" if form.startswith("azure_ai") else name)
    assert prices.resolve(found) == found
    assert str(parse_name(found)) == found


@pytest.mark.parametrize(
    "text", ["claude-sonnet-4-6-20250929", "claude-opus-9", "gpt-4", "openrouter/anthropic/claude-opus-5", ""]
)
def test_other_ids_are_refused(prices, text):
    with pytest.raises(UserError, match="no prices for this model"):
        prices.resolve(text)


# litellm 1.109.1, model_prices: price of a region relative to the global endpoint
REGIONS = {
    "us.anthropic.claude-sonnet-4-5-20250929-v1:0": 11,
    "eu.anthropic.claude-haiku-4-5-20251001-v1:0": 11,
    "apac.anthropic.claude-opus-5-5": 11,
    "jp.anthropic.claude-sonnet-4-6": 11,
    "us-gov.anthropic.claude-opus-5": 12,
    "bedrock/us-gov-west-1/anthropic.claude-haiku-5-5": 12,
    "bedrock_mantle/anthropic.claude-sonnet-5-5": 11,
    "projects/p/locations/europe-west1/publishers/anthropic/models/claude-opus-4-5@20251101": 11,
    "global.anthropic.claude-opus-4-8": 10,
    "anthropic.claude-opus-4-7": 10,
    "vertex_ai/claude-sonnet-5@default": 10,
    "bedrock/claude_platform/claude-opus-4-6": 10,
    # models before 4.5 cost the same everywhere
    "us.anthropic.claude-sonnet-4-20250514-v1:0": 10,
    "eu.anthropic.claude-opus-4-1-20250805-v1:0": 10,
    "us.anthropic.claude-3-5-haiku-20241022-v1:0": 10,
}


@pytest.mark.parametrize(("model", "tenths"), REGIONS.items())
def test_a_region_costs_a_tenth_more(prices, ask, blocks, day, model, tenths):
    usage = Usage(read=1000, write_5m=1000, write_1h=1000, uncached=1000, output=1000)
    head, t = blocks(1)[0], day(2026, 11, 1)
    plain = parse_name(prices.resolve(model)).model
    base = prices.cost(ask(head, t, model=plain), usage)
    assert prices.cost(ask(head, t, model=model), usage) == tuple(part * tenths // 10 for part in base)
    assert prices.cost(ask(head, t, model=prices.resolve(model)), usage)[0] == base[0] * tenths // 10
    assert prices.minimum(model, t) == prices.minimum(plain, t)
    assert prices.tool_prompt(model, "auto") == prices.tool_prompt(plain, "auto")


def test_inference_geo_is_anthropics_own(prices, ask, blocks, day):
    usage, head, t = Usage(uncached=1000), blocks(1)[0], day(2026, 11, 1)
    costs = [
        prices.cost(ask(head, t, model=model, geo="us"), usage)[0]
        for model in ("claude-opus-5", "bedrock/claude_platform/claude-opus-5", "anthropic.claude-opus-5")
    ]
    assert costs == [5_500_000, 5_500_000, 5_000_000]
    assert prices.takes_geo("claude-opus-5")
    assert not prices.takes_geo("anthropic.claude-opus-5")


def test_a_price_file_without_the_multiplier_is_one_line(tmp_path, ask, blocks, day):
    (tmp_path / "p.yaml").write_text(
        "sources: {D: {seen: 2026-01-01}}\nmodels:\n  claude-opus-5:\n    minimum: [{tokens: 1, source: D}]\n"
        "    prices: [{source: D, base: 5, write_5m: 6.25, write_1h: 10, read: 0.5, output: 25}]\n"
    )
    with pytest.raises(UserError, match=r"multipliers\.regional is missing"):
        PriceBook.load(tmp_path).cost(
            ask(blocks(1)[0], day(2026, 11, 1), model="us.anthropic.claude-opus-5"), Usage(uncached=1)
        )
