"""Hand-computed figures of Llama-3.1-8B, mostly from RocketKV's paper and code."""

from dataclasses import dataclass

import pytest

from kvbench import cost
from kvbench.config.errors import UserError
from kvbench.methods.base import Eviction
from kvbench.methods.composite import Composite
from kvbench.methods.rocket_budget import capacity, split_traffic

LLAMA = cost.model_shape("llama31_8b")
PER_TOKEN = 2 * 32 * 8 * 128 * 2  # bytes of K and V of all layers in bf16


def rocketkv(total, traffic, new=128):
    return cost.account("rocketkv", LLAMA, prompt=total - new, new=new, tokens=traffic)


@pytest.mark.parametrize(
    ("traffic", "megabytes"), [(256, 33.9), (512, 67.8), (1024, 135), (2048, 269), (4096, 538)]
)
@pytest.mark.parametrize("total", [16384, 32768, 65536, 98304, 131072])
def test_rocketkv_moves_what_its_budget_says_at_any_length(total, traffic, megabytes):
    # scores n * r, attends 2 * k * D, writes 2 * D, updates bounds 4 * D: elements per KV head and layer
    room = capacity(total, traffic, None)
    page, channels = split_traffic(room, traffic, 128)
    elements = -(-room // page) * channels + 2 * (traffic // 2) * 128 + 2 * 128
    elements += 4 * 128 if page > 1 else 128
    moved = rocketkv(total, traffic).step.bytes
    assert moved == 2 * 32 * 8 * elements
    assert moved / 1e6 == pytest.approx(megabytes, rel=0.012)


@pytest.mark.parametrize(
    ("total", "gigabytes"), [(16384, 2.15), (31794, 4.17), (65586, 8.60), (96306, 12.62), (131072, 17.18)]
)
def test_dense_reads_everything_once(total, gigabytes):
    dense = cost.account("dense", LLAMA, prompt=total - 50, new=50)
    assert dense.step.read == dense.resident_end == total * PER_TOKEN
    assert dense.step.read / 1e9 == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize(
    ("total", "traffic", "share"),
    [
        (8192, 256, 0.236), (8192, 1024, 0.681), (8192, 4096, 1.253), (16384, 512, 0.236), (32768, 256, 0.066),
        (65536, 1024, 0.130), (65536, 4096, 0.394), (98304, 256, 0.019), (131072, 256, 0.013),
    ],
)  # fmt: skip
def test_rocketkv_storage_relative_to_dense(total, traffic, share):
    # at low compression it takes more than the cache it replaces
    assert rocketkv(total, traffic).resident_end / (total * PER_TOKEN) == pytest.approx(share, abs=0.0006)


def test_four_hundred_times_is_traffic_and_not_memory():
    account, dense = rocketkv(109_000, 256), cost.account("dense", LLAMA, prompt=109_000 - 128)
    assert dense.step.read / account.step.bytes > 400
    assert dense.resident_end / account.resident_end < 65


def test_storage_of_every_token_kept():
    # RocketKV's table 1 in bytes: SparQ 1.5, Quest with pages of 16 1 + 1/16, RocketKV-MT 1 + kept + pages of kept
    new, total = 128, 32768
    dense = total * PER_TOKEN
    sparq = cost.account("sparq", LLAMA, prompt=total - new, new=new, tokens=1024)
    quest = cost.account("quest", LLAMA, prompt=total - new, new=new, tokens=1024)
    turns = cost.account("rocketkv_mt", LLAMA, prompt=total - new, new=new, tokens=1024)
    assert sparq.resident_end / dense == pytest.approx(1.5, abs=1e-4)
    # its first two layers have no pages
    assert quest.resident_end / dense == pytest.approx(1 + 30 / 32 / 16, abs=1e-4)
    assert turns.kept == total - new
    assert turns.resident_end / dense == pytest.approx(1 + 0.236, abs=0.005)


def test_formats():
    def bytes_per_token(name):
        account = cost.account({"format": name}, LLAMA, prompt=31744, new=8)
        return account.resident / 31744 / PER_TOKEN

    assert bytes_per_token("fp8_e4m3") == pytest.approx(0.5, abs=1e-4)
    # 4 bits and 2 fp16 per group of 32 numbers, the last 128 tokens in full
    assert bytes_per_token("int4") == pytest.approx((4.5 + 0.5) / 16, rel=0.01)
    assert bytes_per_token("int2") == pytest.approx((2.5 + 0.5) / 16, rel=0.02)


def test_operations():
    account = cost.account("dense", LLAMA, prompt=1024, new=1)
    # two products, QK and PV, of each query head with each token
    assert account.step.flops == 32 * 2 * 2 * 32 * 128 * 1025
    weights = 8_030_261_248 - 2 * 128_256 * 4096
    attention = 32 * 2 * 2 * 32 * 128 * 1024 * 1025 / 2
    assert account.prefill().flops == 2 * weights * 1024 + 2 * 128_256 * 4096 + attention
    assert account.prefill(cached=1024).flops == 2 * 128_256 * 4096
    assert account.prefill(512).flops + cost.account(
        "dense", LLAMA, prompt=512
    ).prefill().flops == pytest.approx(account.prefill().flops, rel=1e-3)


def test_stage_one_costs_two_passes_over_the_keys():
    account = cost.account("snapkv", LLAMA, prompt=131_072, tokens=1024)
    keys, kept = 131_072 * PER_TOKEN / 2, 1024 * PER_TOKEN
    assert account.compress.read == 2 * keys + kept
    # Hq * w * S * D multiply-adds per pass and layer
    assert account.compress.flops == 2 * 2 * 32 * 32 * 32 * 131_072 * 128
    # layers that reuse the tokens of another one score nothing
    every, half = (
        cost.account({"method": "chunkkv", "n_reuse": n}, LLAMA, prompt=8192, tokens=1024).compress.flops
        for n in (1, 2)
    )
    assert half == every / 2


def test_sizes_that_depend_on_the_data_are_marked_as_upper_bounds():
    account = cost.account({"method": "snapkv", "heads": "query_head"}, LLAMA, prompt=8192, tokens=512)
    assert not account.exact and "query head" in account.notes[0]
    # the window is common, the rest may differ for each of 4 query heads
    assert account.kept == 32 + 4 * (512 - 32)
    assert cost.account("snapkv", LLAMA, prompt=8192, tokens=512).exact


@dataclass(frozen=True, kw_only=True)
class EveryOther(Eviction):
    """A user's method that says nothing about bytes."""


def test_a_new_method_needs_no_cost_formulas():
    account = cost.account(Composite(eviction=EveryOther()), LLAMA, prompt=1000, new=10, tokens=500)
    assert account.resident == 500 * PER_TOKEN and account.step.read == 510 * PER_TOKEN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 0}, "prompt: 0"),
        ({"prompt": 10, "new": 0}, "new: 0"),
        ({"prompt": 10, "element": 3}, "element: 3"),
        ({"prompt": 10, "tokens": 5, "ratio": 0.5}, "exactly one"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        cost.account("snapkv", LLAMA, **arguments)


def test_a_method_that_needs_a_budget_asks_for_it():
    with pytest.raises(UserError, match="budget"):
        cost.account("snapkv", LLAMA, prompt=100)
    with pytest.raises(UserError, match="did you mean snapkv"):
        cost.account("snapvk", LLAMA, prompt=100, tokens=10)
