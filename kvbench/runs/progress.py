"""How far a run is: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Live


class Progress:
    """Cells done, prompts done, time left and what is running; a context manager.

    A prompt is one sample with one protocol; its cells are done together.

    Args:
        total_cells: cells that will be done.
        total_prompts: prompts that they belong to.
        console: where to write; the default is stdout.
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
        """A prompt begins; `desc` says which, as `niah_single_1 2048 #3`."""
        self._prompt += 1
        self._running = desc
        if self._live:
            prompts = f"prompt {self._prompt}/{self.total_prompts}"
            self._live.update(self._task, description=desc, prompts=prompts)
        else:
            self._line()

    def stage(self, name: str) -> None:
        """What is being done for the prompt, as `prefill`; shown on a terminal only."""
        if self._live:
            self._live.update(self._task, description=f"{self._running}: {name}")

    def cells_done(self, n: int) -> None:
        """`n` more cells are stored."""
        self._cells += n
        if self._live:
            self._live.advance(self._task, n)

    def _line(self) -> None:
        elapsed = time.monotonic() - self._started
        per_cell = elapsed / self._cells if self._cells else 0
        left = f", {_clock(per_cell * (self.total_cells - self._cells))} left" if self._cells else ""
        # not by rich, which makes a block of HTML of every line in a notebook
        print(
            f"cells {self._cells}/{self.total_cells}, prompt {self._prompt}/{self.total_prompts},"
            f" {_clock(elapsed)}{left}: {self._running}",
            file=self._console.file,
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
