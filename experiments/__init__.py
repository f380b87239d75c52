"""The experiments: a package each, named as the `kind` of its configuration.

Each has `main(composed, progress) -> str`: it runs the composed experiment and returns the text to print.
"""

import importlib
import pkgutil

from kvbench.config.compose import Composed
from kvbench.config.errors import UserError
from kvbench.config.typed import unknown
from kvbench.runs.progress import ProgressFactory

# a kind of earlier configurations, by the workload beside it
_PROMPT_CACHE = {"rag": "claude_rag_cost", "replay": "claude_replay"}

# kinds whose prompts several workers share, and the settings of that with their defaults
_SHARED = ("accuracy", "efficiency")
_OF_SHARED = {
    "workers": 1,
    "launcher": None,
    "shard": None,
    "stop_after": None,
    "snapshots": {"keep": False, "folder": None, "max_gb": 100},
    "report": True,
}


def run(composed: Composed, progress: ProgressFactory) -> str:
    """Run an experiment by the package that its `kind` names.

    Args:
        composed: the experiment.
        progress: the class that shows progress, `kvbench.runs.progress.Progress` or one with its methods.

    Returns:
        The text to print at the end.

    Raises:
        UserError: no such kind, or whatever the experiment refuses.
    """
    kinds = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    kind = composed.data.get("kind")
    if kind == "prompt_cache":
        workload = composed.data.pop("workload", None)
        if workload not in _PROMPT_CACHE:
            raise unknown("workload", workload, _PROMPT_CACHE, "workload")
        kind = _PROMPT_CACHE[workload]
    if kind not in kinds:
        raise unknown("kind", kind, kinds, "kind of experiment")
    if kind not in _SHARED:
        for key, default in _OF_SHARED.items():
            if composed.data.get(key, default) != default:
                raise UserError(f"{key}: is for experiments of kind {' or '.join(_SHARED)}, not {kind}")
    return importlib.import_module(f"{__name__}.{kind}").main(composed, progress)
