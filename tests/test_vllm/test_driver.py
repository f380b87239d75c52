"""The driver against a fake server on loopback that answers like the real one and fails on demand."""

import asyncio
import math
import socket
import time

import pytest
from kvbench_testing.fake_vllm import FakeVllm, generated, tokenize

from kvbench.vllm import answers, metrics
from kvbench.vllm.answers import Answer
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import BadAnswer, CutOff, NotReady, Rejected, ServingError, TooSlow

PROMPT = "a shared beginning " * 8


@pytest.fixture
def fake():
    with FakeVllm() as server:
        yield server


def ask(fake: FakeVllm, prompt=PROMPT, *, chat=False, driver=None, **options) -> Answer:
    async def go() -> Answer:
        async with Driver(fake.url, **(driver or {})) as d:
            if chat:
                return await d.chat([{"role": "user", "content": prompt}], **{"max_tokens": 6, **options})
            return await d.complete(prompt, **{"max_tokens": 6, **options})

    return asyncio.run(go())


def run(fake: FakeVllm, call, **settings):
    async def go():
        async with Driver(fake.url, **settings) as d:
            return await call(d)

    return asyncio.run(go())


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_complete_answer(fake, chat, stream):
    prompt = f"user: {PROMPT}" if chat else PROMPT
    answer = ask(fake, chat=chat, stream=stream)
    expected = generated(tokenize(prompt), 6)
    assert answer.text == "".join(map(chr, expected))
    assert answer.token_ids == tuple(expected)
    assert (answer.finish_reason, answer.tries) == ("length", 1)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (len(prompt), 0, 6)
    if stream:
        assert 0 < answer.first_token <= answer.last_token <= answer.total
        assert answer.per_token == pytest.approx((answer.last_token - answer.first_token) / 5)
    else:
        assert answer.first_token is answer.per_token is None
    body = fake.bodies[-1]
    assert body["temperature"] == 0 and body["model"] == "fake"
    assert ("stream_options" in body) == stream


def test_cached_tokens_salts_and_reset(fake):
    async def calls(d):
        ids = await d.tokenize(PROMPT)
        assert ids == tokenize(PROMPT)
        found = [(await d.complete(ids, max_tokens=1, salt=salt)).cached_tokens for salt in "aab"]
        assert await d.reset_prefix_cache()
        return [*found, (await d.complete(ids, max_tokens=1, salt="a")).cached_tokens]

    whole = (len(PROMPT) - 1) // 32 * 32
    assert run(fake, calls) == [0, whole, 0, 0]


def test_counters_before_and_after(fake):
    async def calls(d):
        before = await d.metrics()
        for _ in range(2):
            await d.complete(PROMPT, max_tokens=1)
        return metrics.Delta(before, await d.metrics())

    delta = run(fake, calls)
    assert delta.count(metrics.HITS).value == (len(PROMPT) - 1) // 32 * 32
    assert delta.count(metrics.QUERIES).value == 2 * len(PROMPT)


def test_counters_that_are_reset_in_between(fake):
    async def calls(d):
        for _ in range(2):
            await d.complete(PROMPT, max_tokens=1)
        before = await d.metrics()
        fake.restart()
        await d.complete(PROMPT, max_tokens=1)
        return metrics.Delta(before, await d.metrics())

    assert run(fake, calls).count(metrics.QUERIES) == metrics.Count(len(PROMPT), True)


def test_scoring_returns_only_the_prompt(fake):
    scored = run(fake, lambda d: d.score("abcd", top=2))
    assert scored.tokens == tuple(f"token_id:{ord(char)}" for char in "abcd")
    assert scored.logprobs[0] is scored.top[0] is None
    assert len(scored.logprobs) == len(scored.top) == 4
    # for the fake server the text's own token is the most probable one
    for char, logprob, top in zip("bcd", scored.logprobs[1:], scored.top[1:], strict=True):
        assert len(top) == 2 and top[f"token_id:{ord(char)}"] == logprob == max(top.values()) < 0


@pytest.mark.parametrize("value", [math.nan, math.inf, "x"])
@pytest.mark.parametrize("where", ["token", "top"])
def test_log_probabilities_are_finite_numbers(value, where):
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"b": -1.0}]}
    if where == "token":
        logprobs["token_logprobs"][1] = value
    else:
        logprobs["top_logprobs"][1]["b"] = value
    content = {"choices": [{"logprobs": logprobs}], "usage": {"prompt_tokens": 2}}
    with pytest.raises(BadAnswer, match=r"^u: a log probability is not a finite number$"):
        answers.token_logprobs(content, "u")


@pytest.mark.parametrize("raw", [b'{"a": NaN}', b'{"a": [Infinity]}', b'{"a": 1e999}'])
def test_numbers_that_json_does_not_have_are_no_json(raw):
    with pytest.raises(BadAnswer, match=r"^u: not JSON: "):
        answers.json_object(raw, "u")


def test_a_server_without_development_mode_cannot_reset(fake):
    fake.dev_mode = False
    assert run(fake, lambda d: d.reset_prefix_cache()) is False


def test_the_version_may_be_absent(fake):
    assert run(fake, lambda d: d.version()) == "0.30.0"
    fake.version = None
    assert run(fake, lambda d: d.version()) is None


def test_unreported_cached_tokens_are_unknown_not_zero(fake):
    fake.faults.extend(["no_details"] * 2)
    assert ask(fake).cached_tokens is None
    assert ask(fake, driver={"reports_cached": True}).cached_tokens == 0


@pytest.mark.parametrize("fault", ["loading", "busy"])
def test_a_request_that_is_not_accepted_is_sent_again(fake, fault):
    fake.faults.extend([fault] * 3)
    answer = ask(fake, driver={"model": "fake"})
    assert answer.tries == 4 and answer.waited > 0.1
    assert answer.output_tokens == 6
    # the time to the first token is that of the accepted try
    assert answer.first_token < answer.waited


def test_patience_ends(fake):
    fake.faults.extend(["loading"] * 100)
    with pytest.raises(
        NotReady, match=r"/v1/completions: not ready after 0\.3 s: .*503: the server is loading"
    ):
        ask(fake, driver={"patience": 0.3, "model": "fake"})


def test_no_server_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

        async def go():
            async with Driver(url, "m", patience=0.2) as d:
                await d.complete("x", max_tokens=1)

        with pytest.raises(NotReady, match="no server listens there"):
            asyncio.run(go())


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("cut", CutOff, "the answer broke off"),
        ("no_end", CutOff, "the answer broke off"),
        ("error_event", Rejected, "EngineCore encountered an issue."),
        ("not_json", BadAnswer, "an event is not JSON"),
        ("no_usage", BadAnswer, "the answer has no usage"),
        ("drop", CutOff, "no answer"),
    ],
)
def test_an_incomplete_answer_is_an_error_and_not_repeated(fake, fault, error, message, chat):
    fake.faults.append(fault)
    with pytest.raises(error, match=message) as caught:
        ask(fake, chat=chat)
    assert "\n" not in str(caught.value)
    assert not fake.faults and len(fake.bodies) == 1


@pytest.mark.parametrize(("fault", "message"), [("not_json", "not JSON"), ("no_usage", "has no usage")])
def test_a_bad_answer_without_a_stream(fake, fault, message):
    fake.faults.append(fault)
    with pytest.raises(BadAnswer, match=message):
        ask(fake, stream=False)


def test_a_stalled_server_does_not_block_the_driver(fake):
    fake.faults.append("stall")
    started = time.monotonic()
    with pytest.raises(TooSlow, match=r"no whole answer within 0\.5 s"):
        ask(fake, driver={"timeout": 0.5, "patience": 0.0})
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"driver": {"model": "smo"}}, 404, "The model `smo` does not exist."),
        ({"max_tokens": 300_000}, 400, "max_tokens=300000 is too large"),
        ({"salt": "a/b"}, 400, "'cache_salt' must be at most 128 characters"),
    ],
)
def test_errors_contain_the_servers_message(fake, options, status, message):
    with pytest.raises(Rejected, match=message) as caught:
        ask(fake, **options)
    assert caught.value.status == status


def test_concurrent_requests(fake):
    async def calls(d):
        return await asyncio.gather(*(d.complete(f"{n:04} {PROMPT}", max_tokens=2) for n in range(30)))

    answers = run(fake, calls)
    assert [a.token_ids for a in answers] == [
        tuple(generated(tokenize(f"{n:04} {PROMPT}"), 2)) for n in range(30)
    ]


def test_base_url_with_and_without_v1(fake):
    for url in (fake.url, f"{fake.url}/", f"{fake.url}/v1", f"{fake.url}/v1/"):
        assert Driver(url).url == fake.url
    with pytest.raises(ServingError, match=r"serving\.base_url: 'localhost:8000' is not of the form"):
        Driver("localhost:8000")
