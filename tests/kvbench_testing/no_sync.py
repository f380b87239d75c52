"""Decodes steps with the Triton forms on a stand-in for a GPU, and fails where the host would wait for the device.

    TRITON_INTERPRET=0 python -P no_sync.py FOLDER_OF_A_MODEL METHOD...

Launches only compile, so that the numbers are meaningless.
"""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from kvbench.engine import compress
from kvbench.engine.attention import register_attention
from kvbench.engine.compress import RowSpan, build_batches
from kvbench.engine.prefill import prefill
from kvbench.engine.step import Step
from kvbench.kernels import forms
from kvbench.kernels.dev import stub
from kvbench.methods import Budget, Shape, build

PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(150)]


class NoSync(TorchDispatchMode):
    """Raises where a result depends on numbers that the host would have to wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise RuntimeError(f"the host waits: {function}")
        return function(*args, **(kwargs or {}))


@torch.inference_mode()
def main(folder: str, methods: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()
    shape = Shape(len(PROMPT) - 1, 8, model.config.num_hidden_layers, model.config.head_dim)
    snapshot = prefill(model, PROMPT[:-1], 64)
    # scores are whatever memory held
    compress.check_scores = lambda *_: None
    for name in methods:
        method, _, form = name.partition("+")
        cell = build({"method": method, **({"format": form} if form else {})}).resolve(
            shape, Budget(tokens=60)
        )
        with forms.using("triton"), stub.compiling_for(stub.CHIPS["sm_90"]) as compiled:
            (cache,) = build_batches(
                snapshot, [cell], [RowSpan(0, slice(0, 2))], 1, 2, 8, with_dense=False, share=False
            )
            step = Step(model, cache, PROMPT[-1], 2)
            with NoSync():
                step.eager()
                step.eager()
        print(name, *sorted({kernel.metadata.name for kernel in compiled}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
