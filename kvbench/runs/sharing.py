"""Deals the prompts of a run among all workers on its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvbench.runs.claims import Claims
from kvbench.runs.config import RunConfig
from kvbench.runs.follow import Follow
from kvbench.runs.progress import ProgressDisplay, ProgressFactory
from kvbench.runs.stopping import Stop
from kvbench.runs.store import Store, digest

T = TypeVar("T")
#: longest time between two looks at the folder, in seconds
LOOK = 2.0


@dataclass(frozen=True)
class Item(Generic[T]):
    """What is worked on in one piece.

    Attributes:
        key: names it in the folder.
        cells: ids of its cells.
        what: anything of the caller's.
        name: its name for people.
    """

    key: str
    cells: frozenset[str]
    what: T
    name: str = ""


def part_of(items: Sequence[Item[T]], cfg: RunConfig) -> list[Item[T]]:
    """The items of this command's shard."""
    number, parts = cfg.part
    return list(items[number::parts])


@contextmanager
def dealt(
    items: Sequence[Item[T]], skipped: Set[str], store: Store, follow: Follow, cfg: RunConfig, stop: Stop,
    progress: ProgressFactory,
) -> Iterator[tuple[Sharing[T], ProgressDisplay]]:  # fmt: skip
    """The items that are left, and the progress display, for the time of a block.

    Args:
        items: from `part_of`.
        skipped: cells that are left out.
        store: of the run's folder; names this worker.
        follow: of the same.
        cfg: the configuration.
        stop: whether the run is to stop.
        progress: makes the display.
    """
    pending = [item for item in items if item.cells - follow.done - skipped]
    cells = sum(len(item.cells - follow.done - skipped) for item in pending)
    with Claims(store.run_dir, store.worker, cfg.lease) as claims, progress(cells, len(pending)) as display:

        def pause(seconds: float) -> None:
            display.stage("waiting for prompts that other workers have")
            stop.check_between()
            time.sleep(seconds)

        claims.facts["done"] = 0
        yield Sharing(pending, follow, skipped, claims, display.cells_done, pause), display


def key_of(model: str, prompt: str, protocol: str) -> str:
    """The key of a prompt: cells with the same one share a prefill.

    Args:
        model: the model's fingerprint.
        prompt: the prompt's hash.
        protocol: whether the question is compressed too.
    """
    return digest({"model": model, "prompt": prompt, "protocol": protocol})


class Sharing(Generic[T]):
    """The items that are left, for this worker.

    Args:
        items: all of them, those of other workers too.
        follow: of the folder.
        skipped: cells that are left out.
        claims: of the folder.
        elsewhere: called with the number of cells that other workers did, when that is noticed.
        pause: called where all that is left is in the hands of others, with the seconds to wait.
        clock: monotonic seconds.
    """

    def __init__(
        self, items: Sequence[Item[T]], follow: Follow, skipped: Set[str], claims: Claims,
        elsewhere: Callable[[int], None], pause: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._clock, self._began = clock, clock()
        self._items, self._follow, self._claims = items, follow, claims
        self._skipped, self._elsewhere, self._pause = skipped, elsewhere, pause
        #: cells that failed in any worker since this one began
        self._failed: set[str] = set()
        self._open = {cell for item in items for cell in self.left(item)}
        self._done = 0
        #: those of them that are done, or in this worker's hands
        self._counted: set[str] = set()

    def tell(self, tokens: int, memory: int) -> None:
        """What others see of this worker's progress.

        Args:
            tokens: prefilled and generated since the last call.
            memory: bytes that it held at most.
        """
        facts = self._claims.facts
        facts["tokens"] = facts.get("tokens", 0) + tokens
        facts["seconds"] = round(self._clock() - self._began, 1)
        facts["memory"] = memory

    def left(self, item: Item[T]) -> frozenset[str]:
        """Cells of an item that nobody has done, and that did not fail in any worker since this one began."""
        return item.cells - self._follow.done - self._skipped - self._failed

    def __iter__(self) -> Iterator[tuple[T, frozenset[str]]]:
        """Items with their cells that are left; each is this worker's until the next one is asked for.

        Ends when nothing is left, in the hands of other workers neither.
        """
        items = [item for item in self._items if self.left(item)]
        while items:
            waiting, before, listed = [], len(self._counted), self._claims.listed()
            known = self._follow.taken_back
            for item in items:
                if not self.left(item):
                    continue
                self._claims.facts["prompt"] = item.name
                with self._claims.taken(item.key, listed) as have:
                    if not have:
                        waiting.append(item)
                        continue
                    # the last owner may have stored rows before it let go
                    self._look()
                    cells = self.left(item)
                    self._counted |= cells
                    if cells:
                        yield item.what, cells
                        self._done += len(cells)
                        self._claims.facts["done"] = self._done
                if cells:
                    # time has passed
                    listed = self._claims.listed()
            self._look()
            if self._follow.taken_back > known:
                # rows were there and are gone
                waiting = self._items
            items = [item for item in waiting if self.left(item)]
            if items and len(self._counted) == before:
                self._pause(min(LOOK, self._claims.lease / 4))

    def _look(self) -> None:
        done, failed = self._follow.look()
        self._failed |= failed
        if others := ((done | failed) & self._open) - self._counted:
            self._counted |= others
            self._elsewhere(len(others))
