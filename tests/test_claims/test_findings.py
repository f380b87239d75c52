"""What the claims table says: every verdict, and the numbers behind the findings that people will quote."""

from pathlib import Path

import pytest
import yaml

from kvbench.claims.claim import BY_MODEL, CONTRADICTED, DEPENDS, NEEDS_GPU, VERDICTS

EXPECTED = yaml.safe_load((Path(__file__).parent / "verdicts.yaml").read_text())


def values(result):
    return [reading.value for reading in result.finding.readings]


def test_every_verdict_is_the_expected_one(by_id):
    assert {name: result.verdict for name, result in by_id.items()} == {
        name: verdict for verdict, names in EXPECTED.items() for name in names
    }


def test_there_are_enough_claims_of_every_source(results):
    papers = [result.source.paper for result in results]
    assert len(results) >= 60 and len(set(papers)) == 5
    assert all(papers.count(paper) >= 5 for paper in papers)
    assert {result.verdict for result in results} == set(VERDICTS)


def test_400x_is_traffic_and_not_memory(by_id):
    paper, article = by_id["rocketkv.compression_400x"], by_id["article.compression_400x"]
    assert (paper.verdict, article.verdict) == (BY_MODEL, CONTRADICTED)
    traffic, memory = values(paper)
    assert values(article) == [memory, traffic]
    assert 400 < traffic < 430 and 50 < memory < 70


def test_the_memory_saving_holds_only_with_the_mask(by_id):
    result = by_id["rocketkv.memory_saving"]
    assert result.verdict == DEPENDS
    assert values(result) == pytest.approx([43.2, 32.6], abs=0.1)
    assert "9.3 GB" in result.finding.readings[1].name


@pytest.mark.parametrize("name", ["rocketkv.speedup_a100", "rocketkv.speedup_h100"])
def test_the_speedup_exceeds_what_removing_all_kv_traffic_gives(by_id, name):
    result = by_id[name]
    assert result.verdict == DEPENDS
    assert values(result) == pytest.approx([1.84, 4.36], abs=0.01)
    assert all(reading.limit for reading in result.finding.readings)


@pytest.mark.parametrize(
    ("name", "average", "printed"), [("scbench_full", 45.8, 49.9), ("scbench_mt", 40.6, 44.3)]
)
def test_scbench_averages_are_printed_over_eleven(by_id, name, average, printed):
    result = by_id[f"rocketkv.{name}"]
    assert result.verdict == CONTRADICTED
    assert values(result) == pytest.approx([average, printed], abs=0.06)
    assert result.finding.readings[1].name == "their sum divided by 11"
    assert result.finding.note.startswith("29 of 29")


def test_longbench_averages_leave_passage_count_out(by_id):
    assert values(by_id["rocketkv.longbench_average"]) == [0, 100]


def test_index_reuse_is_a_small_part_of_the_throughput(by_id):
    result = by_id["chunkkv.throughput_26_5"]
    assert result.verdict == DEPENDS
    assert values(result) == pytest.approx([1.76, 26.57], abs=0.01)


def test_chunkkv_latencies_exceed_what_removing_all_kv_traffic_gives(by_id):
    for name, limit in (("20_7", 7.1), ("4096_1024", 3.9), ("4096_4096", 5.1), ("8192_4096", 8.2)):
        result = by_id[f"chunkkv.latency_{name}"]
        assert result.verdict == DEPENDS
        assert values(result)[0] == pytest.approx(limit, abs=0.05)
        assert limit < result.claim.value


def test_the_article_is_off_by_ten(by_id):
    result = by_id["article.kv_memory"]
    assert result.verdict == CONTRADICTED
    assert values(result) == pytest.approx([488.3, 61.0], abs=0.05)
    assert "20k tokens" in result.finding.note


def test_the_article_saves_nothing_when_the_context_changes(by_id):
    total, saving = by_id["article.total_cached"], by_id["article.saving_78"]
    assert (total.verdict, saving.verdict) == (CONTRADICTED, DEPENDS)
    assert values(total) == pytest.approx([0.08385], abs=1e-9)
    assert "0.22 of the uncached" in total.finding.note
    new, as_coded, same = values(saving)
    assert (new, as_coded, same) == pytest.approx((-1.115, -25, 78.5), abs=0.01)


def test_the_real_bill_comes_out_to_the_last_digit(by_id):
    for ttl, dollars in (("5m", 0.189827), ("1h", 0.113432)):
        result = by_id[f"anthropic.real_run_{ttl}"]
        assert result.verdict == BY_MODEL
        assert values(result) == pytest.approx([dollars], abs=5e-7)


def test_claims_that_need_a_gpu_have_no_readings(results):
    for result in results:
        if result.verdict == NEEDS_GPU:
            assert result.claim.hardware != "any" and not result.finding.readings
