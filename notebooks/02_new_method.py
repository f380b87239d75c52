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
# # A method of your own
#
# A method is a frozen dataclass: its fields are its parameters, its base class says what it does. An `Eviction`
# needs nothing but `scores`: one number per KV head and prompt token, and the engine keeps the highest.
#
# The idea tried here: SnapKV keeps the tokens that the last queries attend to most. But a token that is attended to
# and has a small value vector changes little. So we multiply the attention by the norm of the value.

# %%
from dataclasses import dataclass

import torch

import kvbench
from kvbench.methods import Eviction, LayerSnapshot, register


@register("value_aware")
@dataclass(frozen=True, kw_only=True)
class ValueAware(Eviction):
    """Keeps the observation window and the tokens of highest attention times norm of the value."""

    source = "notebooks/02_new_method"
    budget_meaning = "tokens kept per KV head, window included"
    pins = True

    window: int = 32
    power: float = 1.0

    def scores(self, snapshot: LayerSnapshot) -> torch.Tensor:
        """Scores `[H, T]`; the window's are infinite, so that it is kept."""
        window = min(self.window, snapshot.length)
        attention_QT = snapshot.window_scores(window)
        attention_HT = attention_QT.unflatten(0, (snapshot.heads, -1)).sum(1)
        scores_HT = attention_HT * snapshot.v_HTD.float().norm(dim=-1) ** self.power
        scores_HT[:, snapshot.length - window :] = torch.inf
        return scores_HT


# %% [markdown]
# That is all. Budgets, bytes, batching, resuming and the tables follow. First a check on raw tensors: a token with
# large values must be kept, although it is attended to like the others. SnapKV does not see it.

# %%
torch.manual_seed(0)
q, k, v = torch.randn(1, 4, 300, 16), torch.randn(1, 2, 300, 16), torch.randn(1, 2, 300, 16)
v[:, :, 77] *= 50
for method in ("value_aware", "snapkv"):
    heads = kvbench.keep(method, q, k, v, tokens=48)[0]
    print(method, [f"{len(head)} kept, token 77: {77 in head}" for head in heads])

# %% [markdown]
# ## Compared
# SnapKV also pools its scores over neighbours. To see what the norm alone does, the comparison has our method
# without it (`power: 0`), with it, and SnapKV. All of them, and dense, share one prefill per prompt.

# %%
run = kvbench.run(
    "quickstart",
    {
        "task": ["ruler_niah_single_2"],
        "task.length": [512],
        "task.max_new_tokens": 16,
        "method": ["dense", "snapkv"],
        "variants": {
            "attention": {"method": "value_aware", "power": 0},
            "value_aware": {"method": "value_aware"},
        },
        "budget.tokens": [64, 128],
        "task.samples": 10,
    },
)
run.summary()[
    ["method", "budget_requested", "bytes_read_share", "score", "kl_to_dense", "kl_ci_low", "kl_ci_high"]
].round(3)

# %%
run.plot("kl_vs_read")

# %% [markdown]
# The intervals overlap, but the comparison is paired: the same prompts, the same continuation. So look at the
# difference prompt by prompt: in KL, below 0 where the norm of the value helps.

# %%
run.plot("paired", "value_aware", "attention")

# %% [markdown]
# Ten prompts of one task on a small model show an effect on this model and this task, if the interval is on one side of
# 0, and no more. The same lines with `task.samples: 50`, more tasks and `model: llama31_8b` say more.
#
# - **Change the method, raise its version.** A run takes cells for done whose method has the same name, parameters and
#   `version` (a class attribute, 1 by default). After a change of `scores` set `version = 2`, or the old numbers stay.
# - **On the command line** the class lives in a module of its own. `kvbench new method NAME` writes one to start from
#   and says which commands check and run it: the check tries it against everything that the engine relies on.
# - **More than scores**: `keep` for choices that are no top-k, `layer_tokens` for budgets by layer, `step` for eviction
#   while decoding, and the base classes `Selection` and `Format` for the other two roles.
