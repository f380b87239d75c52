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
# # A model of your own
#
# `model.path` takes any folder with a Llama, Mistral, Qwen2 or Qwen3 checkpoint as `save_pretrained` writes it:
# config, weights and a fast tokenizer. This notebook makes one: four layers with random weights, with the tokenizer
# of the embedded model. It answers nothing right; what it shows is the way, and that bytes follow from the model's
# shape. Put the folder of your fine-tune in its place.

# %%
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import kvbench
from kvbench import report
from kvbench.models import embedded

tokenizer = AutoTokenizer.from_pretrained(embedded.ensure())
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=96,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=4096,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
)
LlamaForCausalLM(config).save_pretrained("my_model")
tokenizer.save_pretrained("my_model")
print(
    f"{config.num_hidden_layers} layers, {config.num_key_value_heads} KV heads of {config.head_dim} channels"
)

# %% [markdown]
# ## The run
# Everything else is as with a shipped model. On the command line: `kvbench run quickstart model.path=my_model`.

# %%
run = kvbench.run(
    "quickstart",
    {
        "model.path": "my_model",
        "model.name": "my_model",
        "task": ["ruler_niah_single_2"],
        "task.length": [1024],
        "task.max_new_tokens": 8,
        "method": ["streaming_llm", "snapkv", "quest", "rocketkv"],
        "budget.tokens": [64, 256],
        "task.samples": 11,
        "run_dir": "mine",
    },
)
columns = ["method", "budget_requested", "kept_tokens", "bytes_resident", "bytes_read_per_step", "score", "n"]
run.summary()[columns].round(2)

# %% [markdown]
# Dense's bytes are 2 (K and V) x layers x KV heads x channels x 4 bytes (fp32) x tokens:

# %%
dense = run.cells().query("method == 'dense'").iloc[0]
dense["bytes_resident"] / (2 * 4 * 2 * 16 * 4), dense["kept_tokens"]

# %% [markdown]
# Where dense itself is below 0.2, the score ranks nothing, and the table says `floor`. The KL from dense still does:
# it asks how much a method changes what the model says, right or wrong. With random weights attention is nearly
# uniform, so that dropping tokens changes little; with your model it will not be.

# %%
run.plot("kl_vs_read")

# %% [markdown]
# Two methods prompt by prompt, the first minus the second:

# %%
run.plot("paired", "snapkv", "streaming_llm")

# %% [markdown]
# ## One cell
# Everything that is known of one answer; `kvbench explain mine method=snapkv budget=64 sample=0` also compresses the
# prompt again and shows which tokens around the needle are kept.

# %%
print(report.explain("mine", "method=snapkv", "budget=64", "sample=0")[:1500])

# %% [markdown]
# What a model must have: full attention in every layer, grouped or not, and positions by
# RoPE. Another kind of attention is refused in one line that names the layer.
