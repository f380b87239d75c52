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
# # An ablation, in pandas
#
# Is the chunk length of ChunkKV worth tuning, and does it matter where the grid of chunks begins? `ablate` makes
# the product of the settings; all cells of a prompt share one prefill and one batch, so that ten settings cost
# little more than one.

# %%
import pandas as pd
from matplotlib import pyplot as plt

import kvbench
from kvbench.report import Clusters, stats

run = kvbench.run(
    "quickstart",
    {
        "task": ["ruler_niah_single_2"],
        "task.length": [512],
        "task.max_new_tokens": 12,
        "method": ["dense", "snapkv", "chunkkv"],
        "variants": {f"chunkkv_at_{at}": {"method": "chunkkv", "offset": at} for at in (3, 6)},
        "ablate": {"chunkkv": {"chunk": [3, 5, 10, 20, 40]}},
        "budget.tokens": [64, 128],
        "task.samples": 10,
    },
)
cells = run.cells()
cells.groupby(["method", "budget_requested"])[
    ["kept_tokens", "bytes_resident", "score", "kl_to_dense"]
].mean().round(3)

# %% [markdown]
# Every setting keeps the same number of tokens: the budget is met to the token, so that nothing but the choice differs.
# (kvpress rounds to whole chunks, and a longer chunk then also has a smaller budget.)
#
# The parameters are in `params`, ready to be columns:

# %%
params = pd.DataFrame(cells["params"].tolist(), index=cells.index)[["chunk", "offset"]].astype("Int64")
cells = cells.join(params)
grid = cells.query("method.str.startswith('chunkkv[')")
grid.pivot_table(index="chunk", columns="budget_requested", values="kl_to_dense").round(3)

# %% [markdown]
# With intervals over the prompts (bootstrap-t), beside SnapKV with the same budgets and beside dense, whose KL is 0:


# %%
def with_interval(values, interval=stats.kl_interval):
    low, high = interval(Clusters(values, values.index))
    return pd.Series({"mean": values.mean(), "low": low, "high": high})


colours = {"64": "#0072B2", "128": "#D55E00"}
markers = {"64": "o", "128": "s"}
lines = {"64": "--", "128": ":"}
aside = {"64": 0.97, "128": 1.03}  # so that intervals do not hide each other
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for budget, rows in grid.groupby("budget_requested"):
    curve = rows.set_index("sample_hash").groupby("chunk")["kl_to_dense"].apply(with_interval).unstack()
    bars = [curve["mean"] - curve["low"], curve["high"] - curve["mean"]]
    look = {"color": colours[budget], "marker": markers[budget], "capsize": 3}
    axes.errorbar(curve.index * aside[budget], curve["mean"], bars, label=f"ChunkKV, {budget} tokens", **look)
    snapkv = cells.query("method == 'snapkv' and budget_requested == @budget")["kl_to_dense"].mean()
    axes.axhline(snapkv, color=colours[budget], linestyle=lines[budget], label=f"SnapKV, {budget} tokens")
axes.axhline(0, color="#222222", linewidth=1.5, label="dense")
axes.set_xscale("log")
axes.set_xticks([3, 5, 10, 20, 40], [3, 5, 10, 20, 40])
axes.minorticks_off()
axes.set_xlabel("chunk length (tokens)")
axes.set_ylabel("KL from dense (nats per token)")
axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
plt.show()

# %% [markdown]
# ## Noise of the grid
# Chunks of 10 tokens begin at token 0. Begin at 3 or at 6 and other words share a chunk. That changes nothing in
# the method, so the spread it causes is the least that any difference between settings should exceed.

# %%
offsets = cells.query("method.str.startswith('chunkkv') and chunk == 10")
spread = offsets.pivot_table(index="offset", columns="budget_requested", values="kl_to_dense")
spread.round(3)

# %% [markdown]
# ## Paired differences
# Chunk 10 against chunk 20, on the same prompts. A difference whose interval holds 0 is not detected, which is no proof
# of equality.

# %%
by_chunk = grid.pivot_table(index=["budget_requested", "sample"], columns="chunk", values="kl_to_dense")
differences = (by_chunk[10] - by_chunk[20]).groupby("budget_requested")
differences.apply(with_interval, stats.kl_difference_interval).unstack().round(3)

# %% [markdown]
# The same table for scores, tested and corrected over all comparisons, is `run.table()`; two runs are compared by
# `kvbench compare RUN_A RUN_B`. On the command line this ablation is
#
# ```
# kvbench run experiment=quickstart 'method=[snapkv,chunkkv]' 'ablate.chunkkv.chunk=[3,5,10,20,40]'
# ```
