"""One cell of kvpress, timed: SnapKV on a prompt, then a greedy answer. Runs in an environment of its own.

`python peer.py MODEL PROMPT.json BUDGET NEW` answers each line of its input with a line of JSON: seconds of a cell, of
its prefill, and of SnapKV's scores in it; CPU seconds where the line is `cpu`.
"""

import json
import sys
import time

import torch
from kvpress import SnapKVPress
from transformers import AutoModelForCausalLM, DynamicCache


class Timed(SnapKVPress):
    """SnapKV that adds up the time of its scores."""

    spent = 0.0
    clock = staticmethod(time.perf_counter)

    def score(self, *args, **kwargs):
        started = self.clock()
        found = super().score(*args, **kwargs)
        Timed.spent += self.clock() - started
        return found


@torch.inference_mode()
def cell(model, ids, budget, new, clock):
    """Seconds of one cell, of its prefill with compression, and of the scores."""
    Timed.spent, Timed.clock = 0.0, staticmethod(clock)
    started = clock()
    cache = DynamicCache()
    tokens = torch.tensor([ids])
    with Timed(compression_ratio=1 - budget / (len(ids) - 1))(model):
        model.model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True)
    prefilled = clock()
    last = tokens[:, -1:]
    for step in range(new):
        position = torch.tensor([[len(ids) - 1 + step]])
        out = model(input_ids=last, position_ids=position, past_key_values=cache, use_cache=True)
        last = out.logits[:, -1:].argmax(-1)
    return {"cell": clock() - started, "prefill": prefilled - started, "scores": Timed.spent}


def main():
    folder, prompt, budget, new = sys.argv[1:]
    with open(prompt) as file:
        ids = json.load(file)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        clock = time.process_time if line.strip() == "cpu" else time.perf_counter
        print(json.dumps(cell(model, ids, int(budget), int(new), clock)), flush=True)


if __name__ == "__main__":
    main()
