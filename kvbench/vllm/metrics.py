"""vLLM's own counters: parsed from `/metrics`, and the difference of two scrapes.

Names are those of vLLM's documentation, without `_total`, `_count`, `_sum` and `_bucket`. Values are summed over
all label sets that match a filter, so over all engines by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvbench.config.numbers import all_finite
from kvbench.vllm.errors import BadAnswer

Labels = frozenset[tuple[str, str]]
Samples = Mapping[str, Mapping[Labels, float]]

HITS = "vllm:prefix_cache_hits"
QUERIES = "vllm:prefix_cache_queries"
PREEMPTIONS = "vllm:num_preemptions"
TTFT = "vllm:time_to_first_token_seconds"
CONFIG = "vllm:cache_config_info"

# names in earlier versions of vLLM
OLDER = {
    HITS: "vllm:gpu_prefix_cache_hits",
    QUERIES: "vllm:gpu_prefix_cache_queries",
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
}


@dataclass(frozen=True)
class Capacity:
    """Size of the KV cache, summed over all engines.

    Attributes:
        tokens: tokens of context that fit.
        block_size: tokens per block, the granularity of prefix caching.
        blocks: number of blocks.
        dtype: the cache's dtype as the server reports it; "auto" means FP8 for a checkpoint with scales.
        memory_bytes: size of the pool if it was set, else None.
        prefix_caching: whether it is on.
        engines: number of data-parallel engines.
    """

    tokens: int
    block_size: int
    blocks: int
    dtype: str
    memory_bytes: int | None
    prefix_caching: bool
    engines: int


@dataclass(frozen=True)
class Scrape:
    """One scrape of `/metrics`: values by sample name and label set."""

    samples: Samples

    def value(self, name: str, **labels: str) -> float | None:
        """A counter or gauge, summed over the label sets that contain these labels; None if absent."""
        found = _matching(self.samples.get(_sample(self.samples, name), {}), labels)
        return math.fsum(found.values()) if found else None

    def capacity(self) -> Capacity:
        """Size of the KV cache.

        Raises:
            BadAnswer: the server does not report it.
        """
        infos = [dict(labels) for labels in self.samples.get(CONFIG, ())]
        try:
            return Capacity(
                tokens=sum(map(_tokens, infos)),
                block_size=int(infos[0]["block_size"]),
                blocks=sum(int(info["num_gpu_blocks"]) for info in infos),
                dtype=infos[0]["cache_dtype"],
                memory_bytes=sum(int(info["kv_cache_memory_bytes"]) for info in infos)
                if infos[0].get("kv_cache_memory_bytes", "None") != "None"
                else None,
                prefix_caching=infos[0]["enable_prefix_caching"] == "True",
                engines=len(infos),
            )
        except (IndexError, KeyError, ValueError) as error:
            raise BadAnswer(f"/metrics: no usable {CONFIG} ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class Count:
    """Increase of a counter between two scrapes.

    Attributes:
        value: the increase; after a reset only the part since then, so a lower bound.
        reset: whether a process behind the counter restarted in between, or is gone.
    """

    value: float
    reset: bool


@dataclass(frozen=True)
class Histogram:
    """Observations of a histogram between two scrapes.

    Attributes:
        bounds: upper bounds of the buckets, ascending, the last one infinite.
        counts: observations in each bucket (not cumulative).
        total: sum of the observations.
        reset: as for `Count`.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float
    reset: bool

    @property
    def count(self) -> float:
        """Number of observations."""
        return math.fsum(self.counts)

    @property
    def mean(self) -> float:
        """Exact mean of the observations; NaN if there are none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The q-quantile, interpolated linearly inside its bucket as in Prometheus; NaN if there are no observations.

        In the last, infinite bucket it is the bucket's lower bound.
        """
        rank, seen, low = q * self.count, 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count and seen + count >= rank:
                return low if math.isinf(bound) else low + (bound - low) * (rank - seen) / count
            seen += count
            low = bound
        return math.nan


@dataclass(frozen=True)
class Delta:
    """The difference of two scrapes of one server."""

    before: Scrape
    after: Scrape

    def count(self, name: str, **labels: str) -> Count | None:
        """Increase of a counter; None if the server does not have it."""
        return self._increase(_sample(self.after.samples, name), _created(self.after.samples, name), labels)

    def histogram(self, name: str, **labels: str) -> Histogram | None:
        """Observations of a histogram; None if the server does not have it."""
        samples = self.after.samples
        base = name if f"{name}_count" in samples else OLDER.get(name, name)
        created = f"{base}_created"
        count = self._increase(f"{base}_count", created, labels)
        total = self._increase(f"{base}_sum", created, labels)
        if count is None or total is None:
            return None
        # the first scrape may contain series that are gone now
        series = (*samples[f"{base}_bucket"], *self.before.samples.get(f"{base}_bucket", ()))
        bounds = sorted({dict(labels)["le"] for labels in series}, key=float)
        increases = [self._increase(f"{base}_bucket", created, {**labels, "le": bound}) for bound in bounds]
        cumulative = [item.value if item else 0.0 for item in increases]
        counts = tuple(b - a for a, b in zip([0.0, *cumulative], cumulative, strict=False))
        return Histogram(tuple(map(float, bounds)), counts, total.value, count.reset or total.reset)

    def _increase(self, sample: str, created: str, labels: Mapping[str, str]) -> Count | None:
        new = _matching(self.after.samples.get(sample, {}), labels)
        old = _matching(self.before.samples.get(sample, {}), labels)
        if not new and not old:
            return None
        value, reset = 0.0, any(key not in new for key in old)
        for key, now in new.items():
            then = old.get(key, 0.0)
            if now < then or self._restarted(created, key):
                value, reset = value + now, True
            else:
                value += now - then
        return Count(value, reset)

    def _restarted(self, created: str, key: Labels) -> bool:
        """Whether a series was created again in between, even if its value already exceeds the old one."""
        bare = frozenset(pair for pair in key if pair[0] != "le")
        then = self.before.samples.get(created, {}).get(bare)
        return then is not None and self.after.samples.get(created, {}).get(bare) != then


def parse(text: str) -> Scrape:
    """Reads the text format of Prometheus.

    Raises:
        BadAnswer: the text is not in that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, IndexError, KeyError) as error:
        raise BadAnswer(f"/metrics: not in the text format of Prometheus ({error})") from None
    return Scrape(samples)


def _matching(series: Mapping[Labels, float], labels: Mapping[str, str]) -> dict[Labels, float]:
    found = {key: value for key, value in series.items() if labels.items() <= key}
    if not all_finite(found):
        # comparisons with NaN are false, so that a difference of counters would not show it
        raise BadAnswer("/metrics: a number that is used is NaN or infinite")
    return found


def _sample(samples: Samples, name: str) -> str:
    """The server's name of a counter or gauge; the requested name if it is absent."""
    names = (name, OLDER.get(name, name))
    return next((form for n in names for form in (f"{n}_total", n) if form in samples), f"{name}_total")


def _created(samples: Samples, name: str) -> str:
    return f"{_sample(samples, name).removesuffix('_total')}_created"


def _tokens(info: Mapping[str, str]) -> int:
    """Capacity of one engine in tokens; earlier versions of vLLM report only blocks."""
    if info.get("kv_cache_size_tokens", "None") != "None":
        return int(info["kv_cache_size_tokens"])
    return int(info["num_gpu_blocks"]) * int(info["block_size"])
