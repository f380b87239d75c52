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
# # Quickstart
#
# How small can the KV cache be, with which method, and what does it cost? This notebook compares four methods
# with dense attention on the embedded 135M-parameter model. It downloads nothing and takes a minute or two.

# %%
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kvbench
from kvbench.models import embedded

SETTINGS = {
    "task": ["ruler_niah_single_2"],
    "task.length": [512],
    "task.max_new_tokens": 16,
    "method": ["dense", "streaming_llm", "snapkv", "chunkkv", "rocketkv"],
    "budget.tokens": [64, 128],
    "task.samples": 10,
}
run = kvbench.run("quickstart", SETTINGS)

# %% [markdown]
# The keys are those of the command line: `kvbench run quickstart 'task.length=[512]' ...`. Any experiment of
# `kvbench ls experiments` runs so.
#
# A run shows itself as its table. Budgets are only names; what counts are the kept tokens and the bytes, which are
# measured from the tensors. RocketKV's budget is *traffic*: it keeps more than it reads at a step.

# %%
run

# %% [markdown]
# Ten samples tell a method that finds nothing from dense (in the table such a difference is marked), and no more: the
# intervals of the scores are wide. The KL divergence from the dense model's next-token distribution is the more
# sensitive signal. Lower and further to the left is better; the vertical line is what dense reads.

# %%
run.plot("kl_vs_read")

# %%
run.plot("score_vs_resident")

# %% [markdown]
# Which method and budget to take, by a margin of the score and by one of KL. "Cannot be told" says how many samples
# would do.

# %%
print(run.best(within=0.1).text())

# %% [markdown]
# Every cell of the run is kept: what the model wrote, what was expected, bytes and times.

# %%
columns = ["method", "budget_requested", "sample", "output", "gold", "score", "kl_to_dense"]
run.cells().query("sample == 0")[columns].sort_values(["method", "budget_requested"])

# %% [markdown]
# The same call again does what is missing, which here is nothing; more methods, budgets or samples would extend
# the run.

# %%
again = kvbench.run("quickstart", SETTINGS)
len(run.cells()), len(again.cells())

# %% [markdown]
# ## Without a run
# Methods also work on raw tensors. Which of 1,000 prompt tokens does SnapKV keep, per KV head?

# %%
torch.manual_seed(0)
q, k, v = torch.randn(1, 8, 1000, 64), torch.randn(1, 2, 1000, 64), torch.randn(1, 2, 1000, 64)
kept = kvbench.keep("snapkv", q, k, v, tokens=128)
[(len(head), head[:5].tolist(), head[-3:].tolist()) for head in kept[0]]

# %% [markdown]
# And which slots of the cache does Quest read for the newest token? Its pages have 16 tokens.

# %%
read = kvbench.select("quest", q[:, :, -1], k, v, tokens=64)
[sorted({slot // 16 for slot in head.tolist()}) for head in read[0][:2]]

# %% [markdown]
# With the `generate` of transformers, a compressing cache takes the place of its own:

# %%
folder = embedded.ensure()
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
text = (
    "The pass key is 71432. Remember it. "
    + "The grass is green. The sky is blue. " * 40
    + "What is the pass key?"
)
chat = tokenizer.apply_chat_template(
    [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
cache = kvbench.cache(model, "chunkkv", tokens=128, max_new_tokens=16)
out = model.generate(**chat, past_key_values=cache, max_new_tokens=16, do_sample=False)
prompt = chat["input_ids"].shape[1]
config = model.config
dense = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4 * out.shape[1]
print(tokenizer.decode(out[0, prompt:], skip_special_tokens=True))
print(f"{prompt} prompt tokens; cache {cache.resident_bytes() / 1e6:.1f} MB, dense {dense / 1e6:.1f} MB")
