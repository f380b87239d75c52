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
# # A paper's table, reproduced
#
# Table 10 of ChunkKV (arXiv 2502.00299) says that chunks of 10 tokens are best. kvbench has every table of the papers
# that it checks as an experiment; this one is `kvbench run chunkkv_table10`. Here it runs at a size that a laptop can
# do: the embedded model, one task, 512 tokens. That repeats the *comparison*; the paper's numbers need its model.
# **paper** is what the table prints, **measured** is what this notebook measures.

# %%
import pandas as pd
from matplotlib import pyplot as plt

import kvbench
from kvbench import claims

CHUNKS = [3, 5, 10, 20, 30]
run = kvbench.run(
    "chunkkv_table10",
    {
        "task": ["ruler_niah_single_2"],
        "task.length": [512],
        "task.samples": 10,
        "task.max_new_tokens": 12,
        "method": ["dense", "snapkv", "chunkkv"],
        "ablate": {"chunkkv": {"chunk": CHUNKS}},
        "budget.tokens": [128],
    },
)

# %% [markdown]
# ## The two tables side by side
# The paper's needle column is on an 8B model with up to 8K tokens and a budget of 128; ours keeps 128 of 512.

# %%
printed = pd.Series({3: 65.6, 5: 69.1, 10: 73.8, 20: 72.0, 30: 71.2}, name="paper: needle, %")
summary = run.summary()
rows = summary[summary["method"].str.startswith("chunkkv")].copy()
rows["chunk"] = rows["method"].str.extract(r"chunk=(\d+)", expand=False).astype(int)
ours = rows.set_index("chunk").sort_index()
table = pd.DataFrame(
    {
        printed.name: printed,
        "measured: score, %": 100 * ours["score"],
        "low": 100 * ours["ci_low"],
        "high": 100 * ours["ci_high"],
        "measured: KL, nats": ours["kl_to_dense"],
    }
)
table.round(2)

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
low = ours["kl_to_dense"] - ours["kl_ci_low"]
high = ours["kl_ci_high"] - ours["kl_to_dense"]
axes.errorbar(ours.index, ours["kl_to_dense"], [low, high], fmt="s-", color="#E69F00", capsize=3)
axes.axvline(10, color="#888888", linestyle=":")
axes.annotate("best in the paper ", (10, axes.get_ylim()[1]), ha="right", va="top", fontsize=8)
axes.set_xscale("log")
axes.set_xticks(CHUNKS, CHUNKS)
axes.minorticks_off()
axes.set_xlabel("chunk (tokens)")
axes.set_ylabel("KL from dense (nats per token)")
plt.show()

# %% [markdown]
# ## Is 10 better than its neighbours?
# All settings saw the same prompts, which intervals side by side do not use. Prompt by prompt: chunks of 10 minus
# chunks of 20, then minus chunks of 3. A difference is told where its interval lies on one side of 0.

# %%
run.plot("paired", "chunkkv[chunk=10]", "chunkkv[chunk=20]")

# %%
run.plot("paired", "chunkkv[chunk=10]", "chunkkv[chunk=3]")

# %% [markdown]
# ## The verdicts
# What kvbench says of the claims of that table. A claim about scores on an 8B model stays open until somebody runs the
# command beside it on a GPU; a small model cannot decide it.

# %%
results = claims.chosen(claims.evaluate(), ["ChunkKV"], [])
ids = ("chunkkv.best_chunk", "chunkkv.table10_needle_20")
chosen = [result for result in results if result.claim.id in ids]
pd.DataFrame(
    [{"claim": r.claim.claim, "verdict": r.verdict, "command": r.claim.command or ""} for r in chosen]
).style.hide(axis="index")

# %% [markdown]
# On a GPU, at the paper's size:
#
# ```
# kvbench run chunkkv_table10 model=llama31_8b 'task.length=[2048,4096,8192]' task.samples=100
# kvbench claims --source ChunkKV --run chunkkv_table10
# ```
