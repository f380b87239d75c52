"""Speed of the prompt-cache simulator, loading included; without a trace, on generated sessions."""

import json
import tempfile
from pathlib import Path
from typing import Any

from kvbench.compose import Composed, run_dir
from kvbench.errors import UserError
from kvbench.promptcache.bench import measure
from kvbench.promptcache.traces import sessions


def main(composed: Composed, progress: Any) -> str:
    """Measure on whole turns and on 64-token blocks; returns the lines to print."""
    trace, count = composed.data.get("trace"), composed.data.get("sessions", 40)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"sessions: {count!r} is not allowed, give a positive whole number")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(trace or scratch)
        if trace is None:
            sessions.write(folder, count)
        found = [measure(folder, blocks="types"), measure(folder, blocks="hash")]
    out = run_dir(composed)
    out.mkdir(parents=True, exist_ok=True)
    rows = [{**vars(speed), "generated": trace is None} for speed in found]
    (out / "bench.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return "\n".join(map(str, found))
