"""Percentiles, rates and goodput of a load, and the server's own counters of the same load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvbench.vllm import metrics
from kvbench.vllm.load import Outcome
from kvbench.vllm.metrics import Delta

PERCENTILES = (50, 90, 99)


def summary(outcomes: Sequence[Outcome], ttft_limit: float) -> dict[str, Any]:
    """The numbers of one load.

    Latencies are of complete answers only, from when each was due. Goodput counts the answers whose first token
    arrives within the limit (Zhong et al. 2024, arXiv 2401.09670), per second from the first turn due to the last
    token.

    Args:
        outcomes: of `load.run`.
        ttft_limit: seconds within which the first token should arrive.

    Returns:
        Plain numbers; None for a percentile with too few answers.
    """
    complete = [outcome for outcome in outcomes if outcome.ok]
    good = sum(outcome.ttft <= ttft_limit for outcome in complete)
    seconds = span(outcomes)
    cached = [outcome.cached_tokens for outcome in complete]
    prompt = sum(outcome.prompt_tokens for outcome in complete)
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(complete),
        "seconds": seconds,
        "prompt_tokens": prompt,
        "cached_tokens": None if None in cached else sum(filter(None, cached)),
        "output_tokens": sum(outcome.output_tokens for outcome in complete),
        "requests_per_s": len(complete) / seconds if seconds else 0.0,
        "ttft_limit_s": ttft_limit,
        "good": good,
        "good_share": good / len(outcomes) if outcomes else None,
        "goodput_per_s": good / seconds if seconds else 0.0,
        "waited_s": max((outcome.sent - outcome.due for outcome in outcomes), default=0.0),
    }
    found["output_tokens_per_s"] = found["output_tokens"] / seconds if seconds else 0.0
    per_token = [outcome.per_token for outcome in complete]
    found |= _percentiles("ttft", [outcome.ttft for outcome in complete])
    found |= _percentiles("per_token", [value for value in per_token if value is not None])
    found |= _percentiles("latency", [outcome.latency for outcome in complete])
    return found


def span(outcomes: Sequence[Outcome]) -> float:
    """Seconds from the first turn due to the last token of a complete answer; 0 without one."""
    ends = [outcome.last for outcome in outcomes if outcome.last is not None]
    return max(ends) - min(outcome.due for outcome in outcomes) if ends else 0.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """A percentile, interpolated; None if fewer than one value is expected beyond it."""
    if not values or (len(values) * (100 - percent) < 100 and percent > 50):
        return None
    return float(np.percentile(values, percent))


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_p{percent}_s": percentile(values, percent) for percent in PERCENTILES}


def by_server(delta: Delta) -> dict[str, Any]:
    """The same load by the server's counters, from the difference of two scrapes.

    The server's clock starts when a request arrives: the network and turns that were not sent are not included.
    Quantiles are interpolated inside the buckets of its histograms. Numbers that it does not report are None.
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
        filled = histogram if histogram is not None and histogram.count else None
        found[f"server_{name}_mean_s"] = None if filled is None else filled.mean
        found[f"server_{name}_p50_s"] = None if filled is None else filled.quantile(0.5)
        found[f"server_{name}_p90_s"] = None if filled is None else filled.quantile(0.9)
    return {**found, "server_restarted": reset}
