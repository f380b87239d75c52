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
# # Long generation
#
# Compressing the prompt is not enough where the answer is long: every generated token adds to the cache. Some methods
# therefore evict while decoding. This notebook lets the embedded model copy lists, an answer that is as long as its
# prompt and whose every word needs the cache, and watches score, KL and memory. The answers are short for a notebook,
# 64 tokens; nothing but `max_new_tokens` and the budgets changes for long ones.

# %%
import json
import random
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

import kvbench

COLOURS = "red green blue white black brown yellow purple".split()
THINGS = "lamp chair table spoon clock window garden bottle".split()


def line(seed):
    """One list to copy, as a line of a file of questions."""
    draw = random.Random(seed)
    text = "\n".join(
        f"{draw.choice(COLOURS)} {draw.choice(THINGS)} {draw.randint(10, 99)}" for _ in range(12)
    )
    question = "Copy the list above, line by line, without any other word."
    return json.dumps({"context": text, "question": question, "answers": [text]})


Path("lists.jsonl").write_text("\n".join(line(seed) for seed in range(8)) + "\n")

# %% [markdown]
# Six ways to evict while decoding. `tova`, `h2o` and `streaming_llm` drop a token for every new one; `decode_every`,
# `rkv` and `rpc` let the cache grow and cut it every `interval` tokens. All get the same budget; `rpc` has none, but a
# share that it keeps of each period.

# %%
METHODS = {
    "decode_every": {"method": "decode_every", "interval": 16, "window": 8},
    "rkv": {"method": "rkv", "interval": 16},
    "rpc": {"method": "rpc", "interval": 16, "ratio": 4, "window": 8},
}
run = kvbench.run(
    "jsonl",
    {
        "task.path": "lists.jsonl",
        "task.scorer": "rouge_l",
        "task.samples": 8,
        "task.max_new_tokens": 64,
        "method": ["dense", "h2o", "tova", "streaming_llm"],
        "variants": METHODS,
        "budget.tokens": [64],
        "decode.ignore_eos": True,
        "run_dir": "long",
    },
)
summary = run.summary()
columns = ["method", "score", "ci_low", "ci_high", "kl_to_dense", "kl_ci_low", "kl_ci_high"]
summary[columns].sort_values("kl_to_dense").round(3)

# %% [markdown]
# ## Memory
# `bytes_resident` is the cache after the prompt, `bytes_resident_end` after the answer. Dense grows with every token; a
# method with a budget ends near it, whatever the length of the answer; `rpc` grows, but more slowly.

# %%
cells = run.cells()
memory = cells.groupby("method")[["bytes_resident", "bytes_resident_end"]].mean() / 1e6
memory.columns = ["after the prompt, MB", "after the answer, MB"]
memory = memory.sort_values("after the answer, MB")
axes = memory.plot.barh(figsize=(6.5, 3.4), color=["#BBBBBB", "#0072B2"])
axes.set_xlabel("KV cache (MB)")
axes.set_ylabel("")
axes.legend(frameon=False, loc="lower right")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## What was written
# The first prompt's answers.

# %%
first = cells.query("sample == 0")[["method", "output", "score", "kl_to_dense"]]
with pd.option_context("display.max_colwidth", 90):
    display(first.sort_values("score", ascending=False))  # noqa: F821

# %% [markdown]
# ## Paired
# Two methods of the same memory, prompt by prompt.

# %%
run.plot("paired", "decode_every", "streaming_llm")

# %% [markdown]
# Eight lists and a model of 135M parameters say which methods lose a list that they need whole, and nothing about
# reasoning, where much of what was generated is never needed again. There the same lines with your own questions,
# `task.max_new_tokens=4096` and a model that reasons:
#
# ```
# kvbench run jsonl task.path=questions.jsonl model=qwen3_8b 'method=[dense,rkv,rpc,tova]' 'budget.tokens=[1024]' \
#   task.max_new_tokens=4096
# ```
