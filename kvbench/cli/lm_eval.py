"""`kvbench lm-eval`: lm-eval with a method's cache as its model. Thin on purpose: lm-eval does the rest."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.config.text import one_line

WARNING = (
    "lm-eval: every method prefills every prompt anew, and the first token of an answer is dense's: one-token answers "
    "show no compression; task=[lm_eval] has neither limit"
)


def run(args: argparse.Namespace) -> str:
    """Evaluate; the text is a table of scores, with what the method kept.

    Args:
        args: of the command.

    Raises:
        UserError: a package, model, method or task is missing, or lm-eval refuses.
    """
    from kvbench.config.typed import unknown
    from kvbench.methods import registry
    from kvbench.tasks.rows import required

    for package in ("lm_eval", "datasets", "evaluate", "sacrebleu"):
        required(package, "lm-eval")
    if args.method not in registry():
        raise unknown("--method", args.method, registry(), "method")
    if args.method != "dense" and (args.tokens is None) == (args.ratio is None):
        raise UserError("--tokens, --ratio: give one of both")
    parameters = _parameters(args.overrides)
    from kvbench.models.load import ModelConfig, locate

    folder = args.model if Path(args.model).is_dir() else locate(ModelConfig(name=args.model))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    names = [name for name in args.tasks.split(",") if name]
    try:
        model = _model(str(folder), args.method, args.tokens, args.ratio, parameters)
        manager = TaskManager(include_defaults=args.include_path is None, include_path=args.include_path)
        found = simple_evaluate(
            model=model, tasks=names, task_manager=manager, limit=args.limit, bootstrap_iters=0
        )
    except UserError:
        raise
    # lm-eval and its tasks raise whatever they like
    except Exception as error:
        raise UserError(f"--tasks: lm-eval fails ({type(error).__name__}: {one_line(error)[:240]})") from None
    assert found is not None
    compressed = model.compressed()
    if args.output:
        stored = {"results": found["results"], "versions": found["versions"], "compression": compressed}
        write(Path(args.output), json.dumps(stored, indent=1, default=str), "--output")
    lines = [f"{args.method}: {compressed['text']}"]
    for task, scores in found["results"].items():
        values = [f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, float)]
        lines.append(f"{task}: {', '.join(values)}")
    return "\n".join(lines)


def _parameters(overrides: list[str]) -> dict[str, Any]:
    import yaml

    pairs = [word.partition("=") for word in overrides]
    if wrong := [key for key, mark, _ in pairs if not mark]:
        raise UserError(f"{wrong[0]}: give KEY=VALUE, as window=16")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def _model(
    folder: str, method: str, tokens: int | None, ratio: float | None, parameters: dict[str, Any]
) -> Any:
    """An lm-eval model whose every request gets a fresh cache of the method."""
    import torch
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    import kvbench

    class Compressed(HFLM):  # pyright: ignore[reportUntypedBaseClass]
        """lm-eval's Hugging Face model with a kvbench cache."""

        def __init__(self) -> None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            super().__init__(pretrained=folder, batch_size=1, dtype="auto", device=device)
            self.prompts: list[int] = []
            self.bytes: list[int] = []
            self.dense_bytes: list[int] = []

        def _model_generate(self, context: Any, max_length: int, stop: Any, **options: Any) -> Any:
            length = context.shape[1]
            new = max_length - length
            cache = None
            if method != "dense":
                cache = kvbench.cache(
                    self.model, method, tokens=tokens, ratio=ratio, max_new_tokens=new, **parameters
                )
                options["past_key_values"] = cache
            out = super()._model_generate(context, max_length, stop, **options)
            if cache is not None:
                config = self.model.config.get_text_config()
                head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
                per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head
                self.prompts.append(length)
                self.bytes.append(cache.resident_bytes(0))
                self.dense_bytes.append(per_token * (out.shape[1] - 1) * self.model.dtype.itemsize)
            return out

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise UserError(
                "--tasks: a task is scored by likelihoods: one forward pass over prompt and text is a dense prefill "
                "that no method touches; task=[choices] feeds the texts behind the compressed prompt"
            )

        loglikelihood_rolling = loglikelihood

        def compressed(self) -> dict[str, Any]:
            """What was measured of the caches, the proof that they were compressed."""
            if not self.bytes:
                return {"text": "no cache of a method was used"}
            mean, dense = statistics.mean(self.bytes), statistics.mean(self.dense_bytes)
            text = (
                f"{len(self.bytes)} prompts of {statistics.mean(self.prompts):.0f} tokens, {mean / 1e6:.2f} MB of keys "
                f"and values at the end, {mean / dense:.0%} of dense's {dense / 1e6:.2f} MB"
            )
            return {
                "text": text,
                "prompts": self.prompts,
                "bytes": self.bytes,
                "dense_bytes": self.dense_bytes,
            }

    return Compressed()
