"""Time, memory and money from an account and a device."""

import pytest

from kvbench import cost
from kvbench.config.errors import UserError

LLAMA = cost.model_shape("llama31_8b")
H100 = cost.hardware("h100_sxm")
LONG = {"prompt": 96_256, "new": 50}


@pytest.fixture(scope="module")
def dense():
    return cost.account("dense", LLAMA, **LONG)


@pytest.fixture(scope="module")
def rocketkv():
    return cost.account("rocketkv", LLAMA, tokens=256, **LONG)


def test_memory_saving_of_the_paper_has_the_mask_in_both_terms(dense, rocketkv):
    with_mask = 1 - cost.decode_peak(rocketkv, mask=True) / cost.decode_peak(dense, mask=True)
    without = 1 - cost.decode_peak(rocketkv) / cost.decode_peak(dense)
    assert with_mask == pytest.approx(0.326, abs=0.0005)
    assert without == pytest.approx(0.432, abs=0.0005)
    assert cost.decode_peak(dense, mask=True) - cost.decode_peak(dense) == 96_312**2
    # 16.06 for weights, 12.62 for the cache, 9.28 for the mask
    assert cost.decode_peak(dense, mask=True) / 1e9 == pytest.approx(37.96, abs=0.005)
    assert cost.decode_peak(rocketkv, mask=True) / 1e9 == pytest.approx(25.58, abs=0.005)


@pytest.mark.parametrize(
    ("prompt", "tokens", "saving"),
    [
        (96_256, 512, 31.8), (96_256, 1024, 30.3), (96_256, 2048, 27.6), (96_256, 4096, 23.3),
        (65_536, 256, 28.8), (31_744, 256, 18.3), (16_384, 256, 10.1),
    ],
)  # fmt: skip
def test_other_points_of_the_same_formula(prompt, tokens, saving):
    account, dense = (
        cost.account(name, LLAMA, prompt=prompt, new=50, tokens=tokens if name == "rocketkv" else None)
        for name in ("rocketkv", "dense")
    )
    assert 100 - 100 * cost.decode_peak(account, mask=True) / cost.decode_peak(
        dense, mask=True
    ) == pytest.approx(saving, abs=0.06)


@pytest.mark.parametrize(
    ("prompt", "limit"), [(16_384, 1.14), (31_744, 1.28), (65_536, 1.57), (96_256, 1.84)]
)
def test_no_method_can_be_faster_than_removing_all_traffic(prompt, limit):
    dense = cost.account("dense", LLAMA, prompt=prompt, new=50)
    assert cost.traffic_limit(dense) == pytest.approx(limit, abs=0.005)


def test_a_baseline_that_reads_keys_per_query_head_moves_the_limit(dense, rocketkv):
    assert cost.traffic_limit(dense, kv_passes=LLAMA.group) == pytest.approx(4.36, abs=0.005)
    slow, fast = cost.estimate(dense, H100, kv_passes=4), cost.estimate(rocketkv, H100)
    assert slow.step_s / fast.step_s == pytest.approx(4.36, rel=0.01)
    assert cost.estimate(dense, H100).step_s / fast.step_s < 1.85


def test_a_step_is_bytes_over_bandwidth():
    account = cost.account("dense", LLAMA, prompt=32_767, new=1)
    step = (LLAMA.weights_read() + account.step.bytes) / H100.bandwidth()
    found = cost.estimate(account, H100)
    assert found.step_s == pytest.approx(step) and found.bound == "bandwidth"
    assert found.tokens_per_s == pytest.approx(1 / step)
    assert found.usd_per_million_decode == pytest.approx(step * 1e6 * 2.29 / 3600)
    assert cost.estimate(account, H100, peak=True).step_s == pytest.approx(step * 3084 / 3352)


def test_large_batches_are_bound_by_operations():
    account = cost.account("snapkv", LLAMA, prompt=4096, new=1, tokens=64)
    found = cost.estimate(account, H100, batch=2048)
    weights = 2 * 2048 * LLAMA.weights_read(1) / H100.flops()
    caches = 2048 * account.step.bytes / H100.bandwidth()
    assert found.step_s == pytest.approx(weights + caches)
    assert found.bound == "compute"


def test_a_request_shares_its_steps_and_not_its_prefill():
    account = cost.account("dense", LLAMA, prompt=8192, new=100)
    one, eight = (
        cost.estimate(account, H100, usd_per_hour=3.6),
        cost.estimate(account, H100, 8, usd_per_hour=3.6),
    )
    assert eight.prefill_s == one.prefill_s == pytest.approx(account.prefill().flops / H100.flops())
    assert eight.request_s == pytest.approx(eight.prefill_s + 100 * eight.step_s / 8)
    assert eight.usd_per_request == pytest.approx(eight.request_s / 1000)
    # with all of the prompt in a prefix cache only the weights are read
    assert cost.estimate(account, H100, cached=8192).prefill_s == pytest.approx(
        LLAMA.weights_read() / H100.bandwidth()
    )


def test_the_longer_the_answer_the_nearer_the_whole_comes_to_decoding_alone():
    """Per token, prefill is spread over 10, then over 1,000 of them."""
    for new, low, high in ((10, 4, 4.5), (1000, 1, 1.05)):
        found = cost.estimate(cost.account("dense", LLAMA, prompt=8192, new=new), H100, usd_per_hour=3.6)
        assert found.usd_per_million_whole == pytest.approx(found.request_s / new * 1000)
        assert low < found.usd_per_million_whole / found.usd_per_million_decode < high


def test_a_step_of_unequal_sequences():
    """Weights once, every cache for itself: bytes bind at first, products for many sequences."""
    weights = cost.weight_step(LLAMA, H100)
    assert weights.read_s == pytest.approx(LLAMA.weights_read() / H100.bandwidth())
    assert weights.product_s == pytest.approx(2 * LLAMA.weights_read(1) / H100.flops())
    assert weights.seconds(3, 0.2, 0.1) == pytest.approx(weights.read_s + 0.2)
    assert weights.seconds(5000, 0.1, 0.2) == pytest.approx(5000 * weights.product_s + 0.2)
    account = cost.account("dense", LLAMA, prompt=4096, new=1)
    own = account.step.bytes / H100.bandwidth()
    assert cost.estimate(account, H100, 7).step_s == pytest.approx(weights.seconds(7, 7 * own, 0.0))


def test_without_a_price_there_are_no_dollars():
    import dataclasses

    free = dataclasses.replace(H100, rent=None)
    account = cost.account("dense", LLAMA, prompt=100, new=1)
    assert cost.estimate(account, free).usd_per_million_decode is None
    assert cost.estimate(account, free).usd_per_request is None
    assert cost.estimate(account, free).usd_per_million_whole is None
    assert cost.estimate(account, free, usd_per_hour=1.0).usd_per_request is not None


def test_what_fits(dense, rocketkv):
    room = 0.9 * H100.memory - LLAMA.weight_bytes()
    assert cost.max_batch(dense, H100) == int(room // dense.resident_end) == 4
    # prefill needs one dense cache, whatever is kept of it
    fits = 1 + int((room - LLAMA.kv_bytes(96_256) - rocketkv.resident) // rocketkv.resident_end)
    assert cost.max_batch(rocketkv, H100) == fits > 150
    assert cost.max_batch(dense, cost.hardware("rtx_4090")) == 0
    for account in (dense, rocketkv):
        largest = cost.max_batch(account, H100)
        assert (
            cost.prefill_peak(account, largest) <= 0.9 * H100.memory < cost.prefill_peak(account, largest + 1)
        )
        assert cost.estimate(account, H100, largest).fits
    # prefill needs more than decoding after compression
    assert cost.prefill_peak(rocketkv) > cost.decode_peak(rocketkv)
    assert cost.prefill_peak(dense) < cost.decode_peak(dense)


@pytest.mark.parametrize("name", ["batch", "kv_passes"])
def test_counts_are_above_zero(dense, name):
    with pytest.raises(UserError, match=f"{name}: 0"):
        cost.estimate(dense, H100, **{name: 0})


@pytest.mark.parametrize(("batch", "speedup"), [(8, 3.1), (32, 7.9)])
def test_larger_batches_gain_more(batch, speedup):
    # 15 GB of weights, 4.29 GB of dense and 0.134 GB of RocketKV traffic per sequence at 32K, t = 1024
    prompt = 32_768 - 128
    dense = cost.account("dense", LLAMA, prompt=prompt)
    rocketkv = cost.account("rocketkv", LLAMA, prompt=prompt, tokens=1024)
    ratio = cost.estimate(dense, H100, batch).step_s / cost.estimate(rocketkv, H100, batch).step_s
    assert ratio == pytest.approx(speedup, abs=0.05)


@pytest.mark.parametrize(
    ("prompt", "new", "seconds"),
    [(4096, 1024, 43.6), (4096, 4096, 175.5), (8192, 1024, 46.48), (8192, 4096, 183.42)],
)
def test_published_times_of_dense_are_above_the_bound_by_the_same_factor(prompt, new, seconds):
    # ChunkKV's table 8, second-hand: FullKV, Llama-3-8B, one A40, batch 1, FlashAttention-2
    account = cost.account("dense", LLAMA, prompt=prompt, new=new)
    bound = cost.estimate(account, cost.hardware("a40")).request_s
    assert seconds / bound == pytest.approx(1.825, abs=0.02)


def test_a_published_saving_is_more_than_all_traffic_is_worth():
    # the same table: ChunkKV at 10 % takes 18.6 % less at 8192 in, 1024 out
    account, a40 = cost.account("dense", LLAMA, prompt=8192, new=1024), cost.hardware("a40")
    found = cost.estimate(account, a40)
    without = found.prefill_s + 1024 * LLAMA.weights_read() / a40.bandwidth()
    assert 1 - without / found.request_s == pytest.approx(0.068, abs=0.001)
