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
# # What prompt caching costs on Claude
#
# A cache write costs more than a plain input token, a read much less, and an entry lives five minutes or an hour.
# Whether caching pays depends on where `cache_control` stands, on how many turns follow and on the time between
# them. Everything here is **modelled**: documented rules and dated list prices, applied to generated conversations; no
# request is sent and no key is needed.

# %%
import pandas as pd
from matplotlib import pyplot as plt

import kvbench
from kvbench.claude import (
    Assumptions,
    PriceBook,
    Synthetic,
    SyntheticTrace,
    break_even,
    by_gap,
    by_turn,
    named,
)

SHAPE = {
    "turns": 10,
    "gap": 60.0,
    "tools": 1500,
    "system": 2000,
    "context": 3000,
    "question": 100,
    "answer": 400,
}
PLACEMENTS = ["tools_system", "automatic", "automatic_1h", "stable_1h_tail_5m"]
run = kvbench.run(
    "claude_replay", {"synthetic": SHAPE, "placements": PLACEMENTS, "plan": False, "doctor": None}
)
costs = run.frame("costs")
costs[
    [
        "placement",
        "cost_usd",
        "low_usd",
        "high_usd",
        "of_uncached",
        "read",
        "write_5m",
        "write_1h",
        "uncached",
    ]
].round(4)

# %% [markdown]
# The documentation leaves some points open. Each is a switch, and a cost is a range over the switches (whiskers), not a
# point. The black line is the same conversation without caching.

# %%
cached = costs[costs["placement"] != "none"]
plain = costs.loc[costs["placement"] == "none", "cost_usd"].item()
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
whiskers = [cached["cost_usd"] - cached["low_usd"], cached["high_usd"] - cached["cost_usd"]]
axes.barh(cached["placement"], cached["cost_usd"], xerr=whiskers, capsize=4, color="#56B4E9")
axes.axvline(plain, color="#222222", linewidth=1.5)
axes.annotate(" no caching", (plain, 0), va="center", fontsize=8)
axes.invert_yaxis()
axes.set_xlim(0, 1.2 * plain)
axes.set_xlabel("modelled cost of 10 turns (USD); whiskers: open points turned the other way")
plt.show()

# %% [markdown]
# ## How many turns?
# A write must be read again before it pays. `break_even` is the turn from which a placement stays cheaper.

# %%
prices = PriceBook.load(None)
placements = {name: named(name) for name in ["none", *PLACEMENTS]}
turns = [[request] for request in SyntheticTrace(Synthetic(**SHAPE), prices).requests(Assumptions())]
curves = by_turn(turns, placements, prices)
pd.Series(
    {name: break_even(curve, curves["none"]) for name, curve in curves.items() if name != "none"}, name="turn"
)

# %%
NANO = 1e9  # costs are whole nano-dollars
LOOKS = {
    "none": {"color": "#222222", "marker": "*", "linewidth": 2},
    "tools_system": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "automatic": {"color": "#0072B2", "marker": "o"},
    "automatic_1h": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "stable_1h_tail_5m": {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
}
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, curve in curves.items():
    axes.plot(range(1, 11), [cost / NANO for cost in curve], label=name, markersize=5, **LOOKS[name])
axes.set_xticks(range(1, 11))
axes.set_xlabel("turn")
axes.set_ylabel("modelled cost so far (USD)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## How long between turns?
# A read prolongs an entry; a gap longer than its lifetime loses it. Then every turn pays the dearer write and reads
# nothing: caching costs more than none. An hour's lifetime moves the cliff and doubles the price of a write.

# %%
GAPS = [10, 60, 180, 299, 301, 600, 1800, 3599, 3601, 7200]
gapped = by_gap(turns, GAPS, placements, prices)
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, curve in gapped.items():
    axes.plot(GAPS, [cost / NANO for cost in curve], label=name, markersize=4, **LOOKS[name])
for lifetime, text in ((300, "5 min"), (3600, "1 h")):
    axes.axvline(lifetime, color="#888888", linestyle=":", linewidth=1)
    axes.annotate(text, (lifetime, 0.02), xycoords=("data", "axes fraction"), ha="right", fontsize=8)
axes.set_xscale("log")
axes.set_xticks([10, 60, 300, 900, 3600], ["10 s", "1 min", "5 min", "15 min", "1 h"])
axes.minorticks_off()
axes.set_ylim(bottom=0)
axes.set_xlabel("time between turns")
axes.set_ylabel("modelled cost of 10 turns (USD)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## The whole report
# A run shows itself as its table: costs, what each open point moves, and the ten turns of the article that this project
# started from, recomputed. Its saving of 78 % holds while the same context repeats; a new context at each turn,
# marked as in its code, costs more than no caching.

# %%
run

# %% [markdown]
# With your own traffic: `kvbench run experiment=claude_replay trace=FOLDER_OR_FILE` (Claude Code sessions, recorded
# requests, Mooncake traces). `experiment=claude_rag_cost` runs an agentic RAG against a loopback server under several
# layouts, `experiment=two_layer` prices the same sessions on a rented GPU. What the answers are worth is in none of
# these numbers.
