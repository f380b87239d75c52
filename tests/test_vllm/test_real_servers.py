"""The real vLLM, end to end: greedy text, hits, capacity, rejected settings, and no process that outlives its parent.

Needs `make vllm`; `make test-vllm` runs it and writes results/runs/test-vllm/table.md.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvbench.cli import doctor_vllm
from kvbench.config.cpuinfo import processor
from kvbench.experiments.vllm_prefix_caching.random_prompts import TEXT, predicted_hits
from kvbench.report.format import Table
from kvbench.vllm import environment, metrics
from kvbench.vllm.answers import Answer
from kvbench.vllm.config import ServerConfig
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import ServingError
from kvbench.vllm.launcher import Server, entry, serve
from kvbench.vllm.servers import CPU_FP8

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ServerConfig.python
SLOW = {"timeout": 600.0, "start_timeout": 1800.0, "python": str(PYTHON)}
PREFIX, OUTPUT = 300, 24
QUESTIONS = ("What did the men wait for?", "Who opened the window, and why?", "What colour was the cloth?")


class Checks:
    """Expected and measured results; the table of the run."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.facts: dict = {}
        self.started, self.load = time.monotonic(), os.getloadavg()[1]

    def note(self, what: str, expected: object, measured: object, remark: str = "") -> None:
        self.rows.append([what, str(expected), str(measured), remark])

    def write(self, folder: Path) -> None:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        versions = ", ".join(f"{name} {version}" for name, version in self.facts["versions"].items())
        caption = (
            f"{datetime.date.today().isoformat()}, {self.facts['model']} on {self.facts['package']} ({versions}), "
            f"{self.facts['device']}: {processor()}, {self.facts['variables'].get('OMP_NUM_THREADS', '-')} thread; "
            f"{time.monotonic() - self.started:.0f} s in all, {used.ru_utime + used.ru_stime:.0f} s of CPU time "
            f"(without the server whose parent is killed), load average {self.load:.1f} before and "
            f"{os.getloadavg()[1]:.1f} after. Flags: {self.facts['flags']}."
        )
        table = Table("make test-vllm", caption, ["check", "expected", "measured", "remark"], self.rows)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
        print(f"\n{table.markdown()}")


@pytest.fixture(scope="module")
def checks() -> Iterator[Checks]:
    if not PYTHON.exists():
        pytest.skip("no vLLM: make vllm")
    found = Checks()
    yield found
    if found.facts:
        found.write(ROOT / "results" / "runs" / "test-vllm")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def caching(checks: Checks, logs: Path) -> Iterator[Server]:
    """The unquantised server with prefix caching."""
    with serve(ServerConfig(**SLOW), logs / "caching.log") as server:
        checks.facts = dict(server.facts)
        yield server


async def prompts(driver: Driver) -> list[list[int]]:
    shared = (await driver.tokenize(TEXT * 8))[:PREFIX]
    assert len(shared) == PREFIX
    return [shared + await driver.tokenize(f"\n{question}\n") for question in QUESTIONS]


async def ask(driver: Driver, ids: list[int]) -> Answer:
    return await driver.complete(ids, max_tokens=OUTPUT, ignore_eos=True)


async def both_ways(server: Server) -> tuple[list[Answer], list[Answer], metrics.Delta]:
    """Each prompt first with an empty cache, then again."""
    async with server.driver() as driver:
        prompt_ids = await prompts(driver)
        before = await driver.metrics()
        cold = []
        for ids in prompt_ids:
            assert await driver.reset_prefix_cache()
            cold.append(await ask(driver, ids))
        warm = [await ask(driver, ids) for ids in prompt_ids]
        return cold, warm, metrics.Delta(before, await driver.metrics())


def test_hits_are_the_whole_blocks_of_the_prefix(checks: Checks, caching: Server) -> None:
    block = caching.facts["capacity"]["block_size"]

    async def found() -> dict[int, int | None]:
        async with caching.driver() as driver:
            ids = (await driver.tokenize(TEXT * 8))[:200]
            hits = {}
            for shared in (block - 1, block, block + 1, 2 * block, 3 * block + 5, 150):
                for last in (1, 2):
                    prompt = [*ids[:shared], last, last, last]
                    given = await driver.complete(prompt, max_tokens=1, salt=f"grain {shared}")
                hits[shared] = given.cached_tokens
            return hits

    hits = asyncio.run(found())
    expected = {shared: predicted_hits(shared, 3, block) for shared in hits}
    checks.note(f"hits by shared tokens, blocks of {block}", expected, hits)
    assert hits == expected


def test_greedy_text_is_the_same_with_and_without_prefix_caching(
    checks: Checks, caching: Server, logs: Path
) -> None:
    cold, warm, delta = asyncio.run(both_ways(caching))
    block = caching.facts["capacity"]["block_size"]
    assert [answer.cached_tokens for answer in cold] == [0] * len(cold)
    # the last prompt is cached completely, of the others only the shared prefix
    whole = predicted_hits(warm[-1].prompt_tokens, 0, block)
    assert [a.cached_tokens for a in warm] == [*[predicted_hits(PREFIX, 1, block)] * (len(warm) - 1), whole]
    assert delta.count(metrics.HITS).value == sum(answer.cached_tokens for answer in warm)
    checks.note(
        "hits by vLLM's counters", sum(a.cached_tokens for a in warm), int(delta.count(metrics.HITS).value)
    )

    with orphaned(logs) as (url, kill):

        async def without() -> list[Answer]:
            async with Driver(url, timeout=600.0, reports_cached=True) as driver:
                assert not (await driver.metrics()).capacity().prefix_caching
                return [await ask(driver, ids) for ids in await prompts(driver) * 2]

        off = asyncio.run(without())
        group, members = kill()
    assert [answer.cached_tokens for answer in off] == [0] * len(off)
    texts = [[a.token_ids for a in answers] for answers in (cold, warm, off[: len(cold)], off[len(cold) :])]
    same = sum(one == first for answers in texts[1:] for one, first in zip(answers, texts[0], strict=True))
    checks.note(
        f"greedy answers of {OUTPUT} tokens, caching on (cold, hit) and off (twice): same",
        "9 of 9",
        f"{same} of 9",
    )
    assert same == 9
    checks.note("processes of a server whose parent is killed (SIGKILL)", 0, len(group), f"{members} before")
    assert members >= 2 and not group


def test_fp8_quadruples_the_capacity(checks: Checks, caching: Server, logs: Path) -> None:
    plain = caching.facts["capacity"]
    with serve(ServerConfig(**SLOW, kv_cache_dtype="fp8"), logs / "fp8.log") as server:
        fp8 = server.facts["capacity"]
        cold, warm, delta = asyncio.run(both_ways(server))
    remark = CPU_FP8 if server.facts["device"] == "cpu" else ""
    times = fp8["tokens"] / plain["tokens"]
    note = f"{plain['tokens']:,} to {fp8['tokens']:,} tokens"
    checks.note(
        "capacity of FP8 over that of the model's dtype", 4 if remark else 2, f"{times:g} ({note})", remark
    )
    assert fp8["memory_bytes"] == plain["memory_bytes"]
    # a CPU server runs in float32, a GPU's in 16 bits
    assert times == (4 if server.facts["device"] == "cpu" else 2)
    hits = sum(answer.cached_tokens for answer in warm)
    checks.note("hits with FP8", hits, int(delta.count(metrics.HITS).value), remark)
    assert hits == delta.count(metrics.HITS).value > 0
    same = sum(a.token_ids == b.token_ids for a, b in zip(cold, warm, strict=True))
    checks.note("greedy answers with FP8, cold and hit: same", "-", f"{same} of {len(cold)}", remark)


@pytest.mark.parametrize("dtype", ["nvfp4", "int8_per_token_head", "bfloat16"])
def test_a_wrong_dtype_is_rejected_before_the_start(checks: Checks, logs: Path, dtype: str) -> None:
    if environment.find(PYTHON).device != "cpu":
        pytest.skip("on a CPU only")
    log = logs / "rejected.log"
    started = time.monotonic()
    with pytest.raises(ServingError) as caught, serve(ServerConfig(**SLOW, kv_cache_dtype=dtype), log):
        raise AssertionError
    assert "allowed: auto, fp8, fp8_e4m3, fp8_e5m2" in str(caught.value)
    assert not log.exists()
    checks.note(
        f"kv_cache_dtype {dtype}",
        "refused",
        f"refused, {time.monotonic() - started:.1f} s, nothing started",
    )


def test_the_articles_command_line_fails_as_the_doctor_says(checks: Checks) -> None:
    env = environment.find(PYTHON)
    if doctor_vllm.SCALES in env.engine_flags:
        pytest.skip("this vLLM still has the flag")
    assert f"ERROR: not known to {env.package} {env.version}" in doctor_vllm.report(str(PYTHON))
    command = [str(env.python), *entry(env, Path("nowhere")), doctor_vllm.SCALES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    words = f"unrecognized arguments: {doctor_vllm.SCALES}"
    checks.note(
        f"the article's {doctor_vllm.SCALES}", words, done.stderr.splitlines()[-1].rpartition("error: ")[2]
    )
    assert done.returncode == 2 and words in done.stderr


@contextmanager
def orphaned(logs: Path) -> Iterator[tuple[str, Callable[[], tuple[list[int], int]]]]:
    """A server without prefix caching, started by another process: its address, and a function that kills that process.

    The function returns the server's processes that are left afterwards, and how many there were.
    """
    settings = {**SLOW, "prefix_caching": False}
    code = (
        "import time; from pathlib import Path\n"
        "from kvbench.vllm.config import ServerConfig; from kvbench.vllm.launcher import serve\n"
        f"with serve(ServerConfig(**{settings!r}), Path({str(logs / 'off.log')!r})) as server:\n"
        "    print(server.url, flush=True); time.sleep(3600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def kill() -> tuple[list[int], int]:
        supervisor = next(pid for pid, (above, _) in processes().items() if above == parent.pid)
        group = next(group for above, group in processes().values() if above == supervisor)
        before = [pid for pid, (_, its_group) in processes().items() if its_group == group]
        parent.kill()
        parent.wait()
        until = time.monotonic() + 120
        while (left := [pid for pid, (_, g) in processes().items() if g == group or pid in before]) and (
            time.monotonic() < until
        ):
            time.sleep(0.5)
        return left, len(before)

    try:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert url, "the server did not start"
        yield url, kill
    finally:
        parent.kill()


def processes() -> dict[int, tuple[int, int]]:
    """Parent and group of every running process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent), int(group)
    return found
