"""The experiment `vllm_prefix_caching` on the fake server: hits, ways, resume, table and figures."""

import pytest
from kvbench_testing.fake_vllm import FakeVllm

from kvbench.cli.main import main
from kvbench.experiments.vllm_prefix_caching import report as prefix_report
from kvbench.experiments.vllm_prefix_caching.random_prompts import RandomPrompts, predicted_hits
from kvbench.runs.store import Store

SMALL = ("prefix=[40,96]", "suffix=[7]", "concurrency=[1,3]", "gap=[0.0]", "grain=[31,32,70]", "requests=4")


def run(capsys, fake: FakeVllm, folder, *words: str) -> tuple[int, str, str]:
    where = (f"serving.base_url={fake.url}/v1", f"run_dir={folder}")
    code = main(["run", "experiment=vllm_prefix_caching", *where, *SMALL, *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def rows(folder, kind="grid"):
    return [row for row in Store(folder).scan()[0] if row["row"] == kind]


@pytest.mark.parametrize(
    ("shared", "suffix", "block", "expected"),
    [
        (31, 5, 32, 0),
        (32, 5, 32, 32),
        (33, 5, 32, 32),
        (2000, 16, 128, 1920),
        (2000, 16, 32, 1984),
        # the last token of a prompt is always computed
        (64, 0, 32, 32),
        (65, 0, 32, 64),
    ],
)
def test_prediction(shared, suffix, block, expected):
    assert predicted_hits(shared, suffix, block) == expected


def test_prompts_share_exactly_the_prefix():
    prompts = RandomPrompts(list(range(100, 160)), seed=3)
    requests = [prompts.prefix("a", 50) + prompts.suffix(number, 4) for number in range(20)]
    assert len({tuple(ids[:50]) for ids in requests}) == 1
    assert len({ids[50] for ids in requests}) == 20
    assert prompts.prefix("a", 50) == prompts.prefix("a", 50) != prompts.prefix("b", 50)


def test_hits_times_and_tables(tmp_path, capsys):
    with FakeVllm(prefill_s=0.0005) as fake:
        code, text, _ = run(capsys, fake, tmp_path)
        assert code == 0
        by_way = {
            way: [row for row in rows(tmp_path) if row["way"] == way] for way in ("own", "shared", "warm")
        }
        assert {way: len(found) for way, found in by_way.items()} == dict.fromkeys(by_way, 4)
        for row in by_way["own"]:
            assert row["cached"] == [0] * 4 and row["hits"] == 0
        for row in by_way["warm"]:
            assert row["cached"] == [row["prefix"] // 32 * 32] * 4 == [row["predicted"]] * 4
            # the request that fills the cache is not counted
            assert (row["hits"], row["queries"]) == (sum(row["cached"]), 4 * row["prompt_tokens"])
        for row in by_way["shared"]:
            assert 0 in row["cached"]
            if row["concurrency"] == 1:
                assert row["cached"][1:] == [row["predicted"]] * 3
        # a separate prefix per setting, so that none hits the cache entries of another
        sent = [body["prompt"] for body in fake.bodies if isinstance(body["prompt"], list)]
        assert len({tuple(ids[:31]) for ids in sent if len(ids) in (47, 103)}) == 4
        assert {row["prefix"]: row["cached"] for row in rows(tmp_path, "grain")} == {
            31: [0],
            32: [32],
            70: [64],
        }
        for own, warm in zip(by_way["own"], by_way["warm"], strict=True):
            assert own["answers"] == warm["answers"]
        sent_before = len(fake.bodies)

        # the same command measures nothing again; with a further length only the new cases
        code, again, _ = run(capsys, fake, tmp_path)
        assert (code, len(fake.bodies)) == (0, sent_before)
        assert again.splitlines()[-30:] == text.splitlines()[-30:]
        assert run(capsys, fake, tmp_path, "prefix=[40,96,128]")[0] == 0
    assert len(rows(tmp_path)) == 18
    assert (
        "| 1       | 0       | 96     | 7      | 4        | 96        | 96        | 3/4          | yes"
        in text
    )
    assert "4/4" in text and "Load average" in text
    assert (
        text.count("A shared prefix of 31 tokens is shorter than a block of 32: nothing of it can be found.")
        == 1
    )
    for name in ("ttft", "hits"):
        assert (tmp_path / "figures" / f"{name}.svg").stat().st_size > 1000


def test_a_failed_request_makes_no_row(tmp_path, capsys):
    with FakeVllm() as fake:
        fake.faults.extend(["cut"])
        # the first streamed request is the warm-up
        code, _, err = run(capsys, fake, tmp_path)
        assert code == 2 and "the answer broke off" in err and err.count("\n") == 1
        assert rows(tmp_path) == []
        assert run(capsys, fake, tmp_path)[0] == 0
    assert len(rows(tmp_path)) == 12


def test_a_failure_keeps_the_finished_rows(tmp_path, capsys):
    with FakeVllm() as fake:
        plain = fake.prefill

        def prefill(ids, salt):
            if len(fake.bodies) > 15:
                fake.faults.extend(["no_usage"])
                fake.prefill = plain
            return plain(ids, salt)

        fake.prefill = prefill
        code, _, err = run(capsys, fake, tmp_path)
        assert code == 2 and "1 of 4 requests failed, the first with: BadAnswer" in err
        done = rows(tmp_path)
        assert done and all(len(row["cached"]) == 4 for row in done)
        assert run(capsys, fake, tmp_path)[0] == 0
    found = rows(tmp_path)
    assert len(found) == 12 and all(row in found for row in done)
    # the second try does not hit the cache entries of the failed one
    assert all(row["cached"] == [0] * 4 for row in found if row["way"] == "own")


def test_another_run_on_the_same_server_starts_cold(tmp_path, capsys):
    with FakeVllm() as fake:
        for folder in ("one", "two"):
            assert run(capsys, fake, tmp_path / folder)[0] == 0
            found = rows(tmp_path / folder)
            assert all(row["cached"] == [0] * 4 for row in found if row["way"] == "own")
            # of concurrent requests any may be served first
            assert all(0 in row["cached"] for row in found if row["way"] == "shared")


def test_without_reported_hits_the_counters_are_used(tmp_path, capsys):
    with FakeVllm() as fake:
        fake.faults.extend(["no_details"] * 1000)
        code, text, _ = run(capsys, fake, tmp_path)
    assert code == 0
    assert "96 (mean)" in text
    assert all(row["cached"] == [None] * 4 for row in rows(tmp_path))


def test_without_prefix_caching(tmp_path, capsys):
    with FakeVllm(prefix_caching=False) as fake:
        code, _, err = run(capsys, fake, tmp_path)
    assert code == 2 and "the server has no prefix caching" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prefix=[0]"], "prefix: [0] is not allowed"),
        (["suffix=[]"], "suffix: empty"),
        (["gap=[-1.0]"], "gap: [-1.0] is not allowed"),
        (["requests=0"], "requests, output: give 1 or more"),
        (["requests=500"], "requests: 500 is not allowed, give at most"),
        (["serving.base_url=localhost"], "serving.base_url: 'localhost' is not of the form"),
        (["serving.base_url=null", "prefix=[5000]"], "more than serving.max_model_len=4096"),
        (["serving.base_url=null", "serving.python=/no"], "serving.python: there is no /no; make one with"),
        (["serving.kv_dtype=fp8"], "serving.kv_dtype"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    with FakeVllm() as fake:
        code, _, err = run(capsys, fake, tmp_path, *words)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_report_leaves_out_settings_without_all_ways():
    row = {"concurrency": 1, "gap": 0.0, "suffix": 1, "prefix": 2}
    assert prefix_report.by_setting([{**row, "way": "own"}, {**row, "way": "warm"}]) == {}
