"""Parsing `/metrics`: the recorded sample, resets, several engines, label sets, names in older versions."""

import math
from pathlib import Path

import pytest

from kvbench.vllm import metrics
from kvbench.vllm.errors import BadAnswer
from kvbench.vllm.metrics import HITS, QUERIES, TTFT, Delta, parse

SAMPLE = (Path(__file__).parent / "metrics-0.30.0.txt").read_text()
EMPTY = parse("")


def hits(
    values: dict[str, float], created: float = 1.0, name: str = "vllm:prefix_cache_hits_total"
) -> metrics.Scrape:
    """A scrape with one counter, by engine."""
    lines = [f"# TYPE {name} counter"]
    lines += [f'{name}{{engine="{engine}",model_name="m"}} {value}' for engine, value in values.items()]
    base = name.removesuffix("_total")
    lines += [f"# TYPE {base}_created gauge"]
    lines += [f'{base}_created{{engine="{engine}",model_name="m"}} {created}' for engine in values]
    return parse("\n".join(lines) + "\n")


def test_golden_values_of_the_recorded_sample():
    scrape = parse(SAMPLE)
    assert scrape.value(HITS) == 3904
    assert scrape.value(QUERIES) == 9971
    assert scrape.value("vllm:prompt_tokens") == 9978
    assert scrape.value("vllm:prompt_tokens_by_source", source="local_compute") == 6074
    assert scrape.value("vllm:prompt_tokens_by_source", source="local_cache_hit") == 3904
    assert scrape.value("vllm:request_success") == 7
    assert scrape.value("vllm:request_success", finished_reason="stop") == 1
    assert scrape.value("vllm:kv_cache_usage_perc") == 0
    assert scrape.value("vllm:prefix_cache_misses") is None
    assert scrape.value(HITS, engine="1") is None


def test_golden_capacity_of_the_recorded_sample():
    assert parse(SAMPLE).capacity() == metrics.Capacity(
        tokens=46_592,
        block_size=32,
        blocks=1456,
        dtype="fp8",
        memory_bytes=512 << 20,
        prefix_caching=True,
        engines=1,
    )


def test_golden_histogram_of_the_recorded_sample():
    found = Delta(EMPTY, parse(SAMPLE)).histogram(TTFT)
    assert found is not None and not found.reset
    assert found.count == 7
    assert found.mean == pytest.approx(12.334635972976685 / 7)
    filled = {bound: n for bound, n in zip(found.bounds, found.counts, strict=True) if n}
    assert filled == {0.08: 1, 0.25: 2, 2.5: 1, 5.0: 3}
    # the fourth of seven is alone in (1, 2.5], the first alone in (0.06, 0.08]
    assert found.quantile(4 / 7) == pytest.approx(2.5)
    assert found.quantile(0.5) == pytest.approx(1.0 + 1.5 * 0.5)
    assert found.quantile(1 / 7) == pytest.approx(0.08)
    # a histogram whose name ends in _total
    steps = Delta(EMPTY, parse(SAMPLE)).histogram("vllm:iteration_tokens_total")
    assert steps is not None and (steps.count, steps.total) == (77, 6151)


def test_a_histogram_without_observations_has_no_quantile():
    scrape = parse(SAMPLE)
    found = Delta(scrape, scrape).histogram(TTFT)
    assert found is not None and found.count == 0
    assert math.isnan(found.mean) and math.isnan(found.quantile(0.5))


def test_the_difference_of_two_scrapes():
    assert Delta(hits({"0": 64}), hits({"0": 160})).count(HITS) == metrics.Count(96, False)
    assert Delta(EMPTY, hits({"0": 160})).count(HITS) == metrics.Count(160, False)
    assert Delta(hits({"0": 64}), hits({"0": 64})).count(HITS) == metrics.Count(0, False)
    assert Delta(EMPTY, EMPTY).count(HITS) is None


def test_engines_are_summed_or_selected_by_label():
    delta = Delta(hits({"0": 64, "1": 10}), hits({"0": 96, "1": 40}))
    assert delta.count(HITS) == metrics.Count(62, False)
    assert delta.count(HITS, engine="1") == metrics.Count(30, False)


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        # a smaller value: the restart is seen without a creation time
        (hits({"0": 640}), hits({"0": 32}), 32),
        # the new process has already counted more than the old one
        (hits({"0": 64}, created=1.0), hits({"0": 96}, created=2.0), 96),
        # one of two engines restarted: the other one's increase counts in full
        (hits({"0": 64, "1": 640}), hits({"0": 96, "1": 32}), 32 + 32),
        # an engine is gone
        (hits({"0": 64, "1": 640}), hits({"0": 96}), 32),
        (hits({"0": 64}), EMPTY, 0),
    ],
)
def test_a_reset_is_reported_and_gives_a_lower_bound(before, after, value):
    assert Delta(before, after).count(HITS) == metrics.Count(value, True)


def test_a_histogram_after_a_reset():
    old = parse(SAMPLE)
    new = parse(SAMPLE.replace("1.7954897883279653e+09", "1.7954999999999999e+09"))
    found = Delta(old, new).histogram(TTFT)
    assert found is not None and found.reset
    assert (found.count, found.total) == (7, 12.334635972976685)


def test_names_of_older_versions():
    old, new = (hits({"0": value}, name="vllm:gpu_prefix_cache_hits_total") for value in (0, 64))
    assert new.value(HITS) == 64
    assert Delta(old, new).count(HITS) == metrics.Count(64, False)
    text = SAMPLE.replace("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits")
    assert parse(text).value(HITS) == 3904


def test_capacity_of_several_engines_and_of_older_versions():
    line = next(line for line in SAMPLE.splitlines() if line.startswith("vllm:cache_config_info{"))
    second = line.replace('engine="0"', 'engine="1"')
    two = parse(f"{line}\n{second}\n").capacity()
    assert (two.tokens, two.blocks, two.engines, two.memory_bytes) == (93_184, 2912, 2, 1 << 30)
    older = line.replace('kv_cache_size_tokens="46592",', "")
    assert parse(older.replace('"536870912"', '"None"') + "\n").capacity().tokens == 1456 * 32
    assert parse(older.replace('"536870912"', '"None"') + "\n").capacity().memory_bytes is None


@pytest.mark.parametrize("text", ["", 'vllm:cache_config_info{engine="0"} 1.0\n'])
def test_a_missing_capacity_is_an_error(text):
    with pytest.raises(BadAnswer, match="no usable vllm:cache_config_info"):
        parse(text).capacity()


@pytest.mark.parametrize("text", ["<html>\n", "vllm:a{ 1\n", "vllm:a x\n"])
def test_text_in_another_format_is_an_error(text):
    with pytest.raises(BadAnswer, match="text format of Prometheus"):
        parse(text)


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_a_counter_that_is_not_finite_is_an_error(value):
    """NaN is below nothing, so that no difference would show it."""
    broken = parse(f'vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {value}\n')
    for read in (lambda: broken.value(HITS), lambda: Delta(hits({"0": 64}), broken).count(HITS)):
        with pytest.raises(BadAnswer, match=r"^/metrics: a number that is used is NaN or infinite$"):
            read()
