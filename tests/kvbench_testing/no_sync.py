"""Decodes steps as a GPU would, and fails where the host would wait for the device.

    TRITON_INTERPRET=0 python -P no_sync.py FORM FOLDER_OF_A_MODEL METHOD...

FORM is triton or portable. METHOD is a name, `behind:SELECTION` for a selection behind SnapKV per query head, or either
with `+FORMAT`; without any, all that there are. With the Triton forms, launches on a stand-in for a GPU only compile:
what they would write stays zero, so that the numbers are meaningless.
"""

import contextlib
import sys
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

from kvbench.engine import compress
from kvbench.engine.attention import register_attention
from kvbench.engine.compress import build_batch
from kvbench.engine.prefill import prefill
from kvbench.engine.step import Step
from kvbench.kernels import forms
from kvbench.kernels.dev import stub
from kvbench.methods import Budget, Shape, build
from kvbench.methods.registry import registry
from kvbench_testing.waits import watching

#: need dense's answer or a second pass over the text before they choose; what they keep is decoded as SnapKV's
ANOTHER_PASS = ("static_oracle", "kvzip")
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(150)]


def entry(name: str) -> dict:
    """The configuration of a method."""
    method, _, form = name.partition("+")
    kind, _, selection = method.rpartition(":")
    parts: dict = {"method": method}
    if kind:
        parts = {"method": "snapkv", "window": 8, "heads": "query_head", "selection": selection, "keep": 100}
    return parts | ({"format": form} if form else {})


def everything() -> list[str]:
    """Every method alone, every selection behind an eviction per query head, every format with one method."""
    by_family: dict[str, list[str]] = {}
    for name, cls in registry().items():
        by_family.setdefault(cls.family, []).append(name)
    selections, formats = by_family.pop("selection"), by_family.pop("format")
    alone = [name for names in by_family.values() for name in names if name not in ANOTHER_PASS]
    return [
        *alone,
        *selections,
        *(f"behind:{name}" for name in selections),
        *(f"snapkv+{name}" for name in formats),
    ]


@contextlib.contextmanager
def zeroed():
    """What is allocated is zero: slots that no launch wrote lie inside."""
    with contextlib.ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            stock = getattr(owner, name)
            filled = mock.patch.object(
                owner, name, lambda *args, _of=stock, **options: _of(*args, **options).zero_()
            )
            stack.enter_context(filled)
        yield


@torch.inference_mode()
def main(form: str, folder: str, methods: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()
    shape = Shape(len(PROMPT) - 1, 8, model.config.num_hidden_layers, model.config.head_dim)
    if form == "triton":
        # scores and choices are whatever memory held
        compress.check_scores = compress.audit = lambda *_: None
    failed = False
    for name in methods or everything():
        cell = build(entry(name)).resolve(shape, Budget(tokens=60))
        snapshot = prefill(model, PROMPT[:-1], len(PROMPT) - 1, needs=cell.eviction.needs - {"answer"})
        compiled = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(forms.using(form))
            if form == "triton":
                stack.enter_context(zeroed())
                compiled = stack.enter_context(stub.compiling_for(stub.CHIPS["sm_90"]))
            cache = build_batch(snapshot, cell, 2, 8)
            step = Step(model, cache, PROMPT[-1], 2)
            with watching(raising=False) as waits:
                step.eager()
                step.eager()
        failed |= bool(waits)
        print(
            name,
            *sorted({kernel.metadata.name for kernel in compiled}),
            *(f"waits: {wait}" for wait in waits),
        )
    sys.exit(int(failed))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
