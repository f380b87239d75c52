# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading the roofline
#
# A decode step reads all weights once and the cache of every sequence once. What does a smaller cache buy, then?
# Everything here is **modelled**: bytes and operations are counted by formulas that tests compare with real tensors,
# times are a lower bound (bytes over bandwidth, or operations over rate; no launches, no scheduler). No GPU is needed.

# %%
import pandas as pd
from matplotlib import pyplot as plt

from kvbench import cost

SHAPE = cost.model_shape("llama31_8b")
DEVICE = cost.hardware("h100_sxm")
METHODS = {
    "dense": ("dense", {}),
    "fp8": ("fp8_e4m3", {}),
    "chunkkv 1024": ("chunkkv", {"tokens": 1024}),
    "quest 1024": ("quest", {"tokens": 1024}),
    "rocketkv 1024": ("rocketkv", {"tokens": 1024}),
}
LOOKS = {
    "dense": {"color": "#222222", "linestyle": "-", "linewidth": 2, "marker": "*"},
    "fp8": {"color": "#E69F00", "linestyle": "--", "marker": "v"},
    "chunkkv 1024": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "quest 1024": {"color": "#009E73", "linestyle": ":", "marker": "^"},
    "rocketkv 1024": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
}
NEW = 128


def account(label, prompt):
    method, budget = METHODS[label]
    return cost.account(method, SHAPE, prompt=prompt, new=NEW, **budget)


# %% [markdown]
# ## Bytes
# One sequence of 32K tokens of Llama-3.1-8B in bf16. *Resident* is what the cache takes, *read* what a step moves.
# They are two questions with two answers: Quest reads little and stores more than dense, an eviction does both.

# %%
uses = {label: account(label, 32768) for label in METHODS}
table = pd.DataFrame(
    {
        label: {
            "kept tokens": use.kept,
            "resident GB": use.resident / 1e9,
            "read GB per step": use.step.read / 1e9,
        }
        for label, use in uses.items()
    }
).T
table["weights read GB per step"] = SHAPE.weights_read() / 1e9
table.round(3)

# %% [markdown]
# ## The roof
# Arithmetic intensity is operations per byte moved. Left of the roof's ridge a device waits for memory, right of it for
# its multipliers. The weights are shared by the batch, so intensity grows with it - until the caches, which nobody
# shares, are most of the bytes. Dense then stops far left of the ridge (left, numbers: sequences in the batch); how far
# it can get depends on the bytes that a method reads (right). 8K tokens per sequence; whether so many fit is the last
# section's question.

# %%
BATCHES = [1, 4, 16, 64, 256]


def intensity(use, batch):
    step = use.mean_step()
    flops = 2 * batch * SHAPE.weights_read(1) + batch * step.flops
    return flops / (SHAPE.weights_read() + batch * step.bytes)


ridge = DEVICE.flops() / DEVICE.bandwidth()
figure, (roof, growth) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for peak, style in ((False, "-"), (True, ":")):
    ends = [0.5, DEVICE.flops(peak) / DEVICE.bandwidth(peak), 2000]
    rates = [min(x * DEVICE.bandwidth(peak), DEVICE.flops(peak)) / 1e12 for x in ends]
    roof.plot(ends, rates, style, color="#888888", label="datasheet" if peak else "attainable")
for label, shift in (("dense", -14), ("rocketkv 1024", 8)):
    use = account(label, 8192)
    for batch in (1, 16, 256):
        x = intensity(use, batch)
        y = min(x * DEVICE.bandwidth(), DEVICE.flops()) / 1e12
        name = label if batch == 1 else None
        roof.plot(x, y, LOOKS[label]["marker"], color=LOOKS[label]["color"], markersize=7, label=name)
        roof.annotate(batch, (x, y), (-shift / 2, shift), textcoords="offset points", ha="center", fontsize=8)
roof.set_xscale("log")
roof.set_yscale("log")
roof.set_xlabel("operations per byte moved (FLOP/byte)")
roof.set_ylabel(f"modelled rate on {DEVICE.name} (TFLOP/s)")
for label in METHODS:
    use = account(label, 8192)
    growth.plot(BATCHES, [intensity(use, batch) for batch in BATCHES], label=label, **LOOKS[label])
growth.axhline(ridge, color="#888888", label="ridge")
growth.set_xscale("log", base=4)
growth.set_yscale("log")
growth.set_xticks(BATCHES, BATCHES)
growth.set_xlabel("batch (sequences)")
growth.set_ylabel("operations per byte moved (FLOP/byte)")
for axes in (roof, growth):
    axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Time per token
# Left alone, right in a batch of 16. The band reaches from attainable figures (line) to the datasheet's (lower edge).
# At batch 1 the weights are most of the step, and no method can undercut them; the dotted grey line is a step that
# reads no cache at all.

# %%
PROMPTS = [2048, 4096, 8192, 16384, 32768, 65536, 131072]
figure, both = plt.subplots(1, 2, figsize=(9, 4), sharex=True, layout="constrained")
for axes, batch in zip(both, (1, 16), strict=True):
    for label in METHODS:
        series = [account(label, prompt) for prompt in PROMPTS]
        high = [1e3 * cost.estimate(use, DEVICE, batch).step_s for use in series]
        low = [1e3 * cost.estimate(use, DEVICE, batch, peak=True).step_s for use in series]
        axes.plot(PROMPTS, high, label=label, markersize=4, **LOOKS[label])
        axes.fill_between(PROMPTS, low, high, color=LOOKS[label]["color"], alpha=0.12, linewidth=0)
    floor = 1e3 * SHAPE.weights_read() / DEVICE.bandwidth()
    axes.axhline(floor, color="#888888", linestyle=":", label="weights alone")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(PROMPTS, [f"{prompt // 1024}K" for prompt in PROMPTS])
    axes.set_yticks([5, 10, 20, 50, 100], [5, 10, 20, 50, 100])
    axes.minorticks_off()
    axes.set_ylim(3, 120)
    axes.set_xlabel("prompt (tokens)")
    axes.set_title(f"batch {batch}, {DEVICE.title}, bf16")
both[0].set_ylabel("modelled time of a decode step (ms)")
figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
plt.show()

# %% [markdown]
# ## The most that any method can win
# If a step read *nothing* of the cache, it would be faster by (weights + cache) / weights. That bound needs no
# assumption about the method or the device. A published speed-up above it was measured against a baseline that reads
# more than the cache once: one that expands grouped heads reads it once per query head, four times here (last columns).
# RocketKV's 3.7x at 96K and batch 1 is such a number.

# %%
dense = {prompt: account("dense", prompt) for prompt in (16384, 32768, 65536, 96256, 131072)}
pd.DataFrame(
    {
        **{
            f"batch {batch}": {p: cost.traffic_limit(use, batch) for p, use in dense.items()}
            for batch in (1, 8, 32)
        },
        **{
            f"batch {batch}, heads expanded": {
                p: cost.traffic_limit(use, batch, kv_passes=SHAPE.group) for p, use in dense.items()
            }
            for batch in (1, 8)
        },
    }
).rename_axis("prompt").round(2)

# %% [markdown]
# ## Traffic is not memory
# RocketKV at 96K tokens and the smallest budget of its paper. The three numbers of its abstract, 400x, 3.7x and 32.6 %,
# are three different things: traffic, time and peak memory. The last one was taken with a mask of one byte per
# pair of tokens in both terms; modern attention makes none.

# %%
NEW = 50
rocket = cost.account("rocketkv", SHAPE, prompt=96256, new=NEW, tokens=256)
full = cost.account("dense", SHAPE, prompt=96256, new=NEW)
pd.Series(
    {
        "cache read per step, dense / RocketKV": full.step.read / rocket.step.read,
        "cache resident, dense / RocketKV": full.resident_end / rocket.resident_end,
        "step time at batch 1, dense / RocketKV": cost.estimate(full, DEVICE).step_s
        / cost.estimate(rocket, DEVICE).step_s,
        "peak memory saved, no mask (%)": 100 * (1 - cost.decode_peak(rocket) / cost.decode_peak(full)),
        "peak memory saved, mask in both (%)": 100
        * (1 - cost.decode_peak(rocket, mask=True) / cost.decode_peak(full, mask=True)),
    }
).round(2)

# %% [markdown]
# ## Room and money
# How many sequences of 32K tokens fit, what they produce together, and what a million generated tokens costs when so
# many are decoded at once: decoding alone, and whole requests of 1,024 new tokens, whose prefill costs the same for
# all. Here resident bytes count, because they decide the batch. The rental price is one provider's; what others ask is
# printed beside it where it is known.

# %%
NEW = 1024
rows = {}
for label in METHODS:
    use = account(label, 32768)
    batch = cost.max_batch(use, DEVICE)
    estimate = cost.estimate(use, DEVICE, batch)
    rows[label] = {
        "batch that fits": batch,
        "ms per step": 1e3 * estimate.step_s,
        "tokens per s": estimate.tokens_per_s,
        "USD per million, decode only": estimate.usd_per_million_decode,
        "USD per million, whole": estimate.usd_per_million_whole,
    }
print(f"{DEVICE.title} at {DEVICE.usd_per_hour} USD per hour ({DEVICE.rent_note})")
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# `kvbench run experiment=efficiency` measures times on the device that there is; the model says what they could
# be at best. What neither says is whether the answers are still right: that is `01_quickstart`.
