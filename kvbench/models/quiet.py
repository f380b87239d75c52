"""Loading without transformers' progress bars, which would interfere with the run's own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Disable progress bars of transformers inside the context; pass on its warnings after it, one line each.

    After an exception they are dropped: its text takes their place.
    """
    from transformers.utils import logging as library

    held = _Held(logging.WARNING)
    enabled = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    library.disable_default_handler()
    library.add_handler(held)
    try:
        yield
    finally:
        library.remove_handler(held)
        library.enable_default_handler()
        if enabled:
            library.enable_progress_bar()
    for line in held.lines:
        log.warning("transformers: %s", line)


class _Held(logging.Handler):
    """Keeps messages, each as one line, in the order of their first appearance."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[" ".join(record.getMessage().split())] = None
