"""The display of a run's progress."""

import io

from rich.console import Console

from kvbench.runs.progress import Progress, staged


def test_plain_lines_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with Progress(6, 2, console) as progress:
        progress.start_prompt("a [long] name of a task that no narrow line holds #0")
        progress.stage("prefill")
        progress.cells_done(3)
        progress.start_prompt("needle 2048 #1")
        progress.cells_done(3)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "cells 0/6, prompt 1/2, 0:00: a [long] name of a task that no narrow line holds #0",
        "cells 3/6, prompt 2/2, 0:00, 0:00 left: needle 2048 #1",
    ]


def test_a_live_line_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(6, 2, console) as progress:
        progress.start_prompt("needle [2048] #0")
        progress.stage("prefill")
        progress.cells_done(3)
        progress._live.refresh()  # type: ignore[union-attr]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "cells 3/6" in text and "prompt 1/2" in text and "needle [2048] #0: prefill" in text


def test_names_of_others_are_shown_and_not_obeyed() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with Progress(6, 2, console) as progress:
            progress.start_prompt("a\x1b]0;b\x07 #0")
            progress.stage("c\x07")
            if terminal:
                progress._live.refresh()  # type: ignore[union-attr]
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "a\\u001b]0;b\\u0007 #0" in text and "\x07" not in text


def test_nothing_to_do() -> None:
    for terminal in (True, False):
        with Progress(0, 0, Console(file=io.StringIO(), force_terminal=terminal)):
            pass


def test_stages_have_a_line_each_with_the_time_left(monkeypatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    now = iter(range(0, 100, 10))
    monkeypatch.setattr("kvbench.runs.progress.time.monotonic", lambda: next(now))
    with staged(lambda *totals: Progress(*totals, console), ["plan", "prices", "tables"]) as begin:
        for _ in range(3):
            begin()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["1/3, 0:10: plan", "2/3, 0:20, 0:40 left: prices", "3/3, 0:30, 0:15 left: tables"]


def test_all_stages_are_counted() -> None:
    class Counting(Progress):
        def __exit__(self, *_) -> None:
            assert self._cells == self.total_cells == 2

    with staged(Counting, ["one", "two"]) as begin:
        begin()
        begin()
