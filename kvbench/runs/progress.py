"""Progress of a run: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Live

from kvbench.config.text import counted, printable


class ProgressDisplay(Protocol):
    """Shows the progress of one run, inside a `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    def start_prompt(self, desc: str, /) -> None:
        """A prompt begins; `desc` names it, as `niah_single_1 2048 #3`."""

    def stage(self, name: str, /) -> None:
        """A stage of the prompt begins, as `prefill`."""

    def cells_done(self, n: int, /) -> None:
        """`n` more cells are stored."""


class ProgressFactory(Protocol):
    """Makes the display of a run: `Progress`, or any callable with its first two arguments."""

    def __call__(self, total_cells: int, total_prompts: int, /) -> ProgressDisplay: ...


@contextmanager
def staged(progress: ProgressFactory, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Progress of a run that has stages and no cells; yields a function that says that the next stage begins.

    Args:
        progress: makes the display.
        names: the stages, in order; each counts as a prompt with one cell.
    """
    with progress(len(names), len(names)) as display:
        waiting = list(names)

        def begin() -> None:
            if len(waiting) < len(names):
                display.cells_done(1)
            display.start_prompt(waiting.pop(0))

        yield begin
        if len(waiting) < len(names):
            display.cells_done(1)


def nothing_to_do(planned: int, failed: int = 0) -> None:
    """Say that a command found everything done.

    Args:
        planned: cells of the plan.
        failed: those of them that failed before and are left as they are.
    """
    if failed:
        told = f"nothing to do: {planned - failed} of {counted(planned, 'cell')} are done, {failed} failed before"
    else:
        told = f"nothing to do: all {counted(planned, 'cell')} are done already"
    print(told, flush=True)


class Progress:
    """A `ProgressDisplay` with cells and prompts done, the time left and the current prompt.

    A prompt is one sample with one protocol; its cells are done together.

    Args:
        total_cells: number of cells to run.
        total_prompts: number of prompts they belong to.
        console: output; stdout by default.
    """

    def __init__(self, total_cells: int, total_prompts: int, console: Console | None = None) -> None:
        self.total_cells = total_cells
        self.total_prompts = total_prompts
        self._console = console or Console(highlight=False)
        self._prompt = 0
        self._cells = 0
        self._running = ""
        self._started = time.monotonic()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                TextColumn("cells {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[prompts]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task("", total=total_cells, prompts=f"prompt 0/{total_prompts}")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def start_prompt(self, desc: str) -> None:
        """A prompt begins; `desc` names it, as `niah_single_1 2048 #3`."""
        self._prompt += 1
        desc = self._running = printable(desc)
        if self._live:
            prompts = f"prompt {self._prompt}/{self.total_prompts}"
            self._live.update(self._task, description=desc, prompts=prompts)
        else:
            self._line()

    def stage(self, name: str) -> None:
        """A stage of the prompt begins, as `prefill`; shown on a terminal only."""
        if self._live:
            self._live.update(self._task, description=f"{self._running}: {printable(name)}")

    def cells_done(self, n: int) -> None:
        """`n` more cells are stored."""
        self._cells += n
        if self._live:
            self._live.advance(self._task, n)

    def _line(self) -> None:
        elapsed = time.monotonic() - self._started
        per_cell = elapsed / self._cells if self._cells else 0
        left = f", {clock(per_cell * (self.total_cells - self._cells))} left" if self._cells else ""
        # of a cell per prompt one count is enough
        cells = (
            f"cells {self._cells}/{self.total_cells}, prompt "
            if self.total_cells != self.total_prompts
            else ""
        )
        # without rich, which turns every line into an HTML block in a notebook
        print(
            f"{cells}{self._prompt}/{self.total_prompts}, {clock(elapsed)}{left}: {self._running}",
            file=self._console.file,
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as `1:02:03`, or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
