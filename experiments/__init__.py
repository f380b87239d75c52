"""One module per kind of experiment; the command line calls them.

Each has `main(composed, progress) -> str`: it runs what was composed and says what the user should read next.
"""

import importlib
import pkgutil
from typing import Any

from kvbench.config.compose import Composed
from kvbench.config.typed import unknown


def run(composed: Composed, progress: Any) -> str:
    """Run an experiment by the module that its `kind` names.

    Args:
        composed: the experiment.
        progress: the class that shows progress, `kvbench.runs.progress.Progress` or one with its methods.

    Returns:
        What to tell the user at the end.
    """
    kinds = [module.name for module in pkgutil.iter_modules(__path__)]
    kind = composed.data.get("kind")
    if kind not in kinds:
        raise unknown("kind", kind, kinds, "kind of experiment")
    return importlib.import_module(f"{__name__}.{kind}").main(composed, progress)
