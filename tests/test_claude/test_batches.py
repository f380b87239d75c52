"""Batches through the recorder and the proxy: one line per item, with what was posted and what was billed."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

anthropic = pytest.importorskip("anthropic")
httpx2 = pytest.importorskip("httpx2")

from kvbench.claude.assumptions import Assumptions  # noqa: E402
from kvbench.claude.recording.proxy import RecordingProxy  # noqa: E402
from kvbench.claude.recording.recorder import Recorder  # noqa: E402
from kvbench.claude.traces.recorded import RecordedTrace  # noqa: E402
from kvbench.claude.usage.open import read_calls  # noqa: E402

START = 1.7955e9
MODEL = "claude-sonnet-4-6"
PARAMS = {
    "model": MODEL,
    "max_tokens": 5,
    "system": [{"type": "text", "text": "rule " * 2000, "cache_control": {"type": "ephemeral"}}],
}
ITEMS = [
    {"custom_id": f"item-{n}", "params": {**PARAMS, "messages": [{"role": "user", "content": f"ask {n}"}]}}
    for n in range(3)
]
ANSWER = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [],
    "stop_reason": "end_turn",
}
USAGE = {
    "input_tokens": 10,
    "output_tokens": 4,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 0},
    "service_tier": "batch",
}
ERROR = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}, "request_id": "r"}
RESULTS = [
    {"custom_id": "item-2", "result": {"type": "errored", "error": ERROR}},
    {"custom_id": "item-1", "result": {"type": "succeeded", "message": {**ANSWER, "usage": USAGE}}},
    {"custom_id": "item-0", "result": {"type": "succeeded", "message": {**ANSWER, "usage": USAGE}}},
    {"custom_id": "item-3", "result": {"type": "expired"}},
]
LINES = "".join(json.dumps(row) + "\n" for row in RESULTS).encode()
BATCH = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "ended",
    "request_counts": {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 1},
    "created_at": "2026-11-24T00:00:00Z",
    "expires_at": "2026-11-25T00:00:00Z",
    "results_url": "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results",
}


def api(request):
    if request.url.path.endswith("/results"):
        return httpx2.Response(200, content=LINES, headers={"content-type": "application/x-jsonl"})
    return httpx2.Response(200, json=BATCH)


def client(recorder):
    transport = recorder.transport(httpx2.MockTransport(api))
    http = anthropic.DefaultHttpxClient(transport=transport)
    return anthropic.Anthropic(api_key="k", max_retries=0, http_client=http)


@pytest.fixture
def recorded(tmp_path):
    ticks = iter(range(100))
    return tmp_path / "t.jsonl", Recorder(tmp_path / "t.jsonl", clock=lambda: START + 60 * next(ticks))


def test_every_item_is_a_line_with_its_prompt_and_its_bill(recorded, prices):
    path, recorder = recorded
    sdk = client(recorder)
    sdk.messages.batches.create(requests=ITEMS)
    assert not path.exists()
    for _ in range(2):
        # fetched twice, written once
        assert [row.custom_id for row in sdk.messages.batches.results("msgbatch_1")] == [
            row["custom_id"] for row in RESULTS
        ]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in rows] == [
        ("msgbatch_1/item-2", 400),
        ("msgbatch_1/item-1", 200),
        ("msgbatch_1/item-0", 200),
    ]
    found = list(RecordedTrace(path, prices).requests(Assumptions()))
    assert {(r.batch, r.batch_id, r.session, r.head.index) for r in found} == {
        (True, "msgbatch_1", "msgbatch_1", 2)
    }
    # 10 at 3, 2,000 at 3.75 dollars per million, at half price
    calls = read_calls(path, prices)
    assert [prices.cost(call, call.usage)[0] for call in calls.calls] == [
        (10 * 3_000 + 2_000 * 3_750) // 2
    ] * 2
    assert calls.problems.lines == []


def test_results_of_a_batch_that_was_posted_elsewhere_are_a_bill_without_prompts(recorded, prices):
    path, recorder = recorded
    list(client(recorder).messages.batches.results("msgbatch_1"))
    assert len(read_calls(path, prices).calls) == 2
    trace = RecordedTrace(path, prices)
    assert list(trace.requests(Assumptions())) == []
    assert [line.split(": ")[1] for line in trace.problems.lines] == [
        "the request has no blocks; this request is left out"
    ] * 2


def test_an_item_that_two_recorders_wrote_is_counted_once(recorded, prices):
    path, recorder = recorded
    for each in (recorder, Recorder(path, clock=lambda: START)):
        sdk = client(each)
        sdk.messages.batches.create(requests=ITEMS)
        list(sdk.messages.batches.results("msgbatch_1"))
    calls, trace = read_calls(path, prices), RecordedTrace(path, prices)
    assert len(calls.calls) == len(list(trace.requests(Assumptions()))) == 2
    for lines in (calls.problems.lines, trace.problems.lines):
        assert len(lines) == 2 and all("stands on an earlier line" in line for line in lines)


class Upstream(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(json.dumps(BATCH).encode())

    def do_GET(self):
        self.answer(LINES if self.path.endswith("/results") else json.dumps(BATCH).encode())

    def answer(self, data):
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


def test_the_proxy_writes_them_where_results_come_through_it(tmp_path, prices):
    upstream = HTTPServer(("127.0.0.1", 0), Upstream)
    Thread(target=upstream.serve_forever, args=(0.02,), daemon=True).start()
    path = tmp_path / "t.jsonl"
    with (
        RecordingProxy(
            path, upstream=f"http://127.0.0.1:{upstream.server_port}", clock=lambda: START
        ) as proxy,
        httpx2.Client(base_url=proxy.url, trust_env=False) as http,
    ):
        http.post("/v1/messages/batches", json={"requests": ITEMS})
        assert http.get("/v1/messages/batches/msgbatch_1").json()["id"] == "msgbatch_1"
        assert http.get("/v1/messages/batches/msgbatch_1/results").content == LINES
    upstream.shutdown()
    upstream.server_close()
    assert proxy.log.lines == 3
    assert len(list(RecordedTrace(path, prices).requests(Assumptions()))) == 2
