"""Percentiles, rates and goodput of a load, with the server's own counters beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvbench.vllm import metrics
from kvbench.vllm.load import Outcome
from kvbench.vllm.metrics import Delta

PERCENTILES = (50, 90, 99)


def summary(outcomes: Sequence[Outcome], ttft_limit: float) -> dict[str, Any]:
    """One load in numbers.

    Latencies are of whole answers only, from when each was due. Goodput counts the answers whose first token came
    within the limit (Zhong et al. 2024, arXiv 2401.09670), per second from the first turn due to the last token.

    Args:
        outcomes: of `load.run`.
        ttft_limit: seconds within which the first token should come.

    Returns:
        Plain numbers; a percentile for which there are too few answers is None.
    """
    whole = [outcome for outcome in outcomes if outcome.ok]
    good = sum(outcome.ttft <= ttft_limit for outcome in whole)
    seconds = span(outcomes)
    cached = [outcome.cached_tokens for outcome in whole]
    prompt = sum(outcome.prompt_tokens for outcome in whole)
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(whole),
        "seconds": seconds,
        "prompt_tokens": prompt,
        "cached_tokens": None if None in cached else sum(filter(None, cached)),
        "output_tokens": sum(outcome.output_tokens for outcome in whole),
        "requests_per_s": len(whole) / seconds if seconds else 0.0,
        "ttft_limit_s": ttft_limit,
        "good": good,
        "good_share": good / len(outcomes) if outcomes else None,
        "goodput_per_s": good / seconds if seconds else 0.0,
        "waited_s": max((outcome.sent - outcome.due for outcome in outcomes), default=0.0),
    }
    found["output_tokens_per_s"] = found["output_tokens"] / seconds if seconds else 0.0
    per_token = [outcome.per_token for outcome in whole]
    found |= _named("ttft", [outcome.ttft for outcome in whole])
    found |= _named("per_token", [value for value in per_token if value is not None])
    found |= _named("latency", [outcome.latency for outcome in whole])
    return found


def span(outcomes: Sequence[Outcome]) -> float:
    """Seconds from the first turn due to the last token of a whole answer; 0 without one."""
    ends = [outcome.last for outcome in outcomes if outcome.last is not None]
    return max(ends) - min(outcome.due for outcome in outcomes) if ends else 0.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """A percentile, interpolated; None where fewer than one value is expected beyond it."""
    if not values or (len(values) * (100 - percent) < 100 and percent > 50):
        return None
    return float(np.percentile(values, percent))


def _named(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_p{percent}_s": percentile(values, percent) for percent in PERCENTILES}


def by_server(delta: Delta) -> dict[str, Any]:
    """The same load as the server counted it, between two scrapes.

    Its clock starts when a request has arrived, and it knows nothing of the network or of turns that were not
    sent; quantiles are interpolated inside the buckets of its histograms. What it does not say is None.
    """
    counters = {
        "server_prefix_queries": metrics.QUERIES,
        "server_prefix_hits": metrics.HITS,
        "server_prompt_tokens": "vllm:prompt_tokens",
        "server_output_tokens": "vllm:generation_tokens",
        "server_preemptions": metrics.PREEMPTIONS,
    }
    found: dict[str, Any] = {}
    reset = False
    for name, counter in counters.items():
        count = delta.count(counter)
        found[name] = None if count is None else count.value
        reset |= count is not None and count.reset
    for name, source in (("ttft", metrics.TTFT), ("per_token", "vllm:inter_token_latency_seconds")):
        histogram = delta.histogram(source)
        # a histogram without observations has no quantile
        seen = histogram if histogram is not None and histogram.count else None
        found[f"server_{name}_mean_s"] = None if seen is None else seen.mean
        found[f"server_{name}_p50_s"] = None if seen is None else seen.quantile(0.5)
        found[f"server_{name}_p90_s"] = None if seen is None else seen.quantile(0.9)
    return {**found, "server_restarted": reset}
