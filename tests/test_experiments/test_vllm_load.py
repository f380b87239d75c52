"""The experiment `vllm_load` on fake servers, with tasks and with a recorded trace."""

import json

import pytest

from kvbench.config.errors import UserError
from kvbench.experiments.vllm_load import report
from kvbench.runs.store import Store

SMALL = (
    "task.length=[1200]",
    "task.wording=own",
    "task.max_new_tokens=4",
    "load.gap=0.01",
    "load.ttft_limit=5",
)


def loads(folder):
    return {(row["setup"], row["rate"]): row for row in Store(folder).scan()[0] if row["row"] == "load"}


def test_every_load_starts_with_a_cold_cache(experiment, tmp_path):
    options = [*SMALL, "limit=8", "rates=[50,100]", f"run_dir={tmp_path}"]
    text, started = experiment("vllm_load", *options)
    assert started == ["auto", "no_prefix_caching"]
    found = loads(tmp_path)
    assert set(found) == {(setup, rate) for setup in started for rate in (50, 100)}
    for (setup, _), row in found.items():
        # two conversations of four turns
        assert (row["requests"], row["failed"], row["sessions"]) == (8, 0, 2)
        assert (row["cached_tokens"] > 0) == (setup == "auto")
    assert found["auto", 50]["cached_tokens"] == found["auto", 100]["cached_tokens"]
    assert "Load: cpu" in text and (tmp_path / "figures" / "load.cpu.svg").is_file()


@pytest.mark.parametrize(("same", "found"), [(64, 64), (20, 0)])
def test_a_recorded_trace_arrives_as_recorded(experiment, tmp_path, same, found):
    """The third request, in a separate session, is longer than the server's context; blocks have 32 tokens."""
    shared = {"tier": "system", "kind": "text", "type": "text", "hash": "a1", "tokens": same}
    messages = [
        {**shared, "tier": "messages", "message": 0, "hash": f"b{i}", "tokens": tokens}
        for i, tokens in enumerate((20, 20, 5000))
    ]
    lines = [
        {
            "id": f"r{i}",
            "session": f"s{i}",
            "t": 1.7955e9 + 0.1 * i,
            "model": "claude-sonnet-4-6",
            "blocks": [shared, messages[i]],
        }
        for i in range(3)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = [
        "task=[]",
        f"trace.path={trace}",
        "rates=[null]",
        "setups={auto: {}}",
        f"run_dir={tmp_path / 'run'}",
    ]
    text, _ = experiment("vllm_load", *options)
    (row,) = loads(tmp_path / "run").values()
    assert (row["requests"], row["prompt_tokens"], row["cached_tokens"]) == (2, 2 * same + 40, found)
    assert (row["shared_prefix"], row["block"]) == (same, 32)
    assert ("shared prefix of 20 tokens is shorter than a block of 32" in text) == (same == 20)
    assert row["seconds"] >= 0.1
    assert (
        "as recorded" in text
        and "2 sessions of the trace trace.jsonl (1 of its 3 requests left out: beyond" in text
    )


def test_tasks_or_a_trace(experiment):
    with pytest.raises(UserError, match=r"trace\.path: give either"):
        experiment("vllm_load", "task=[]")
    with pytest.raises(UserError, match="rate: -1"):
        experiment("vllm_load", "rates=[-1]")


def test_unknown_numbers_are_dashes():
    row = {
        "setup": "a", "rate": None, "requests": 1, "failed": 1, "good_share": 0.0, "goodput_per_s": 0.0,
        "output_tokens_per_s": 0.0, "cached_tokens": None, "prompt_tokens": 0, "note": "", "model": "m", "vllm": "v",
        "sessions": 1, "most": 1, "ttft_limit_s": 1.0, "source": "x",
        "recorded": False,
    }  # fmt: skip
    row |= {f"{name}_p{p}_s": None for name in ("ttft", "per_token") for p in (50, 90, 99)}
    row |= {f"server_{name}": None for name in ("prefix_hits", "prefix_queries", "preemptions")}
    row |= {f"server_{name}_s": None for name in ("ttft_p50", "ttft_p90", "per_token_p50")}
    (line,) = report.table([row], "cpu").rows
    assert line == ["a", "at once", "1", "1", "0%", "0.000", *"-----", "0.0", *"------", ""]
