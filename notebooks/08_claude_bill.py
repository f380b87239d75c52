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
# # My own Claude bill
#
# Claude Code writes every conversation to `~/.claude/projects`, with the tokens that the API reported. kvbench makes a
# bill of them: what was paid at list prices, what prompt caching saved, what was paid again and why, and what other
# settings would have cost. Nothing is sent anywhere and no key is needed. The transcript below is made up, in the form
# of the real ones; put your own folder in its place.

# %%
import json
from datetime import datetime, timedelta
from pathlib import Path

from matplotlib import pyplot as plt

import kvbench

START = datetime(2026, 11, 20, 10, 0)


def message(number, minutes, kind, content):
    """A line of a transcript; each answers the one before it."""
    return {
        "type": kind,
        "uuid": f"{number}",
        "parentUuid": f"{number - 1}" if number else None,
        "sessionId": "made-up",
        "isSidechain": False,
        "timestamp": f"{START + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%S}.000Z",
        "message": content,
    }


def usage(read, written, uncached=40, output=600):
    """Tokens of a call as the API reports them."""
    return {
        "input_tokens": uncached,
        "output_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_5m_input_tokens": written},
    }


# minutes since the start, tokens read and written, model: a pause of 20 minutes, then another model
CALLS = [
    (0, 0, 30_000, "claude-sonnet-4-6"),
    (2, 30_000, 4_000, "claude-sonnet-4-6"),
    (4, 34_000, 6_000, "claude-sonnet-4-6"),
    (24, 0, 46_000, "claude-sonnet-4-6"),
    (26, 46_000, 3_000, "claude-sonnet-4-6"),
    (28, 0, 52_000, "claude-opus-4-6"),
    (30, 52_000, 5_000, "claude-opus-4-6"),
]
lines = []
for turn, (minutes, read, written, model) in enumerate(CALLS):
    lines.append(message(2 * turn, minutes, "user", {"role": "user", "content": "a question"}))
    answer = {"id": f"msg_{turn}", "role": "assistant", "model": model, "content": []}
    answer["usage"] = usage(read, written)
    lines.append(message(2 * turn + 1, minutes + 0.5, "assistant", answer))
folder = Path("projects") / "made-up"
folder.mkdir(parents=True, exist_ok=True)
(folder / "session.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")

# %%
bill = kvbench.run("claude_bill", {"trace": "projects", "run_dir": "bill"})
bill.frame("models")[["of", "calls", "paid_usd", "without_caching_usd"]].round(4)

# %% [markdown]
# ## What was paid again
# Each line is a call that wrote what the call before it already had in the cache: after a pause longer than the
# lifetime of five minutes, or after a change of the model, whose cache is its own.

# %%
bill.frame("losses")

# %% [markdown]
# ## What other settings would have cost
# The same calls with an hour's lifetime, and with pings that keep an entry alive while nobody types.

# %%
instead = bill.frame("instead")
instead

# %%
figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
axes.barh(instead["instead"], instead["usd"], color="#56B4E9")
axes.bar_label(axes.containers[0], fmt="%.3f", padding=3)
axes.invert_yaxis()
axes.set_xlim(0, 1.2 * instead["usd"].max())
axes.set_xlabel("USD at list prices")
plt.show()

# %% [markdown]
# ## The whole report

# %%
bill

# %% [markdown]
# With your own transcripts:
#
# ```
# kvbench run claude_bill trace=$HOME/.claude/projects
# kvbench open claude_bill
# ```
#
# `kvbench run claude_replay trace=FOLDER` says more: why each request missed the cache, and what another placement of
# `cache_control` would have cost. Notebook 05 explains its numbers.
