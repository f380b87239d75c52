"""`kvbench claude record` and `kvbench claude serve`."""

from __future__ import annotations

import threading
from pathlib import Path

from kvbench.config.text import counted


def record(file: str, port: int, upstream: str | None, contents: bool) -> None:
    """Records until Ctrl-C.

    Raises:
        UserError: see `RecordingProxy`.
    """
    from kvbench.claude.recording.proxy import OFFICIAL, RecordingProxy

    with RecordingProxy(Path(file), port=port, upstream=upstream or OFFICIAL, contents=contents) as proxy:
        print(f"recording into {file}; requests go on to {upstream or OFFICIAL}; Ctrl-C ends it")
        _until_interrupted(proxy.url)
    print(
        f"{counted(proxy.log.lines, 'line')} written to {file}: kvbench run experiment=claude_bill trace={file}"
    )


def serve(port: int, answer: str, prices: str | None) -> None:
    """Serves until Ctrl-C.

    Raises:
        UserError: the port cannot be used, or the prices cannot be read.
    """
    from kvbench.claude.prices import PriceBook
    from kvbench.claude.responder import fixed
    from kvbench.claude.server import Engine, LoopbackServer

    engine = Engine(PriceBook.load(prices), responder=fixed(answer))
    with LoopbackServer(engine, port) as server:
        print(
            "a Messages API on this machine: every answer is the same text, the usage follows the rules; Ctrl-C ends it"
        )
        _until_interrupted(server.url)
    print(f"{counted(len(engine.log), 'request')} answered")


def _until_interrupted(url: str) -> None:
    print(f"export ANTHROPIC_BASE_URL={url}", flush=True)
    try:
        # a wait without end is not woken where another thread takes the signal
        while not threading.Event().wait(0.5):
            pass
    except KeyboardInterrupt:
        print()
