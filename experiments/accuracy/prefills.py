"""Keeps a prefill where the next prompts compress the same tokens: questions about one context, turns, repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvbench.engine.prefill import Snapshot, needed
from kvbench.methods import Method

#: what these need is added to a snapshot and differs from prompt to prompt
_OWN = frozenset({"answer", "repeat"})


class Prefills:
    """The last snapshot that further prompts may share; there is never more than one."""

    def __init__(self) -> None:
        self._ids: tuple[int, ...] = ()
        self._needs: frozenset[str] = frozenset()
        self._window = 0
        self._snapshot: Snapshot | None = None

    def get(
        self, ids: Sequence[int], methods: Sequence[Method], shared: bool, make: Callable[[], Snapshot]
    ) -> Snapshot:
        """The kept snapshot of the same tokens, if it holds all that the methods need; otherwise a new one.

        Args:
            ids: the compressed tokens.
            methods: of the cells.
            shared: whether neighbouring prompts compress the same tokens.
            make: prefills; what was kept has been let go before.
        """
        needs, window = needed(methods)
        shared = shared and not needs & _OWN
        # the whole text's queries hold every window
        enough = needs <= self._needs and (window <= self._window or "queries" in self._needs)
        if self._snapshot is not None and shared and enough and self._ids == tuple(ids):
            return self._snapshot
        self._snapshot = None
        snapshot = make()
        if shared:
            self._ids, self._needs, self._window, self._snapshot = tuple(ids), needs, window, snapshot
        return snapshot
