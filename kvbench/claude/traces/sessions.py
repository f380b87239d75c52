"""Generates sessions in kv-cache-tester's format, similar in size and shape to real ones.

They replace real sessions in tests and benchmarks; their costs are not representative of real traffic.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvbench.config.files import write

MODELS = (
    "claude-opus-4-5-20251101",
    "claude-sonnet-4-5-20250929",
    "claude-opus-4-6",
    "claude-sonnet-4-20250514",
)
BLOCK = 64

# requests per session and first prompt in tokens: rounded quantiles of typical agent sessions
REQUESTS = (2, 4, 7, 11, 16, 22, 28, 36, 52, 90)
FIRST = (30_000, 45_000, 60_000, 75_000, 90_000, 95_000, 105_000, 120_000, 140_000, 160_000)
GAPS = (6.0, 9.0, 12.0, 15.0, 18.0, 25.0, 40.0, 80.0, 200.0, 900.0)
GROWTH = (64, 150, 250, 350, 500, 700, 1_000, 1_800, 3_200, 7_000)


def write_sessions(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Writes `count` session files into a folder and returns their paths.

    Args:
        folder: output folder; created if missing.
        count: number of sessions.
        seed: the same seed gives the same bytes.
    """
    paths = []
    for number in range(count):
        text = json.dumps(session(number, seed), separators=(",", ":"), allow_nan=False)
        paths.append(write(folder / f"session_{number:04d}.json", text))
    return paths


def session(number: int, seed: int = 0) -> dict[str, Any]:
    """One session as JSON."""
    draw = random.Random(f"{seed}/{number}")
    tools, system = draw.randrange(8_000, 14_000), draw.randrange(2_000, 5_000)
    model = draw.choice(MODELS)
    return {
        "id": f"session_{number:04d}",
        "models": [model],
        "block_size": BLOCK,
        "hash_id_scope": "local",
        "tool_tokens": tools,
        "system_tokens": system,
        "requests": list(_requests(draw, model, REQUESTS[number % len(REQUESTS)], tools + system)),
    }


def _requests(draw: random.Random, model: str, count: int, stable: int) -> Iterator[dict[str, Any]]:
    t, tokens, ids, fresh = 0.0, max(draw.choice(FIRST), stable + 2_000), [], 1
    kind = "text"
    for _ in range(count):
        if draw.random() < 0.08 and ids:
            # part of the history was compacted, the rest is new
            ids = ids[: max(stable // BLOCK, len(ids) * draw.randrange(3, 10) // 10)]
            tokens = BLOCK * len(ids) + draw.choice(GROWTH)
        length = tokens // BLOCK
        ids = ids[:length] + list(range(fresh, fresh + max(0, length - len(ids))))
        fresh = max(ids) + 1
        calls = draw.random() < 0.8
        output = draw.randrange(50, 900)
        api_time = 2.0 + output / 60
        yield {
            "t": round(t, 3),
            "type": "n",
            "model": model,
            "in": tokens,
            "out": output,
            "hash_ids": list(ids),
            "input_types": [kind],
            "output_types": ["text", "tool_use"] if calls else ["text"],
            "stop": "tool_use" if calls else "end_turn",
            "api_time": round(api_time, 2),
        }
        kind = "tool_result" if calls else "text"
        tokens += output + draw.choice(GROWTH)
        t += api_time + draw.choice(GAPS)
