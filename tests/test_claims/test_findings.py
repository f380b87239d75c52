"""What the claims table says: every verdict, and the numbers behind the findings that people will quote."""

import re
from pathlib import Path

import pytest
import yaml

from kvbench.claims import table
from kvbench.claims.claim import (
    BY_MODEL,
    CONTRADICTED,
    DEPENDS,
    NEEDS_GPU,
    NOT_DERIVABLE,
    REPRODUCED,
    UNDECIDED,
    VERDICTS,
    YES_OR_NO,
)

EXPECTED = yaml.safe_load((Path(__file__).parent / "verdicts.yaml").read_text())


def values(result):
    return [reading.value for reading in result.finding.readings]


def test_every_verdict_is_the_expected_one(by_id):
    assert {name: result.verdict for name, result in by_id.items()} == {
        name: verdict for verdict, names in EXPECTED.items() for name in names
    }


def test_every_source_has_claims_and_every_verdict_but_undecided_occurs(results):
    papers = [result.source.paper for result in results]
    assert len(results) >= 60 and len(set(papers)) == 8
    assert {result.verdict for result in results} == set(VERDICTS) - {UNDECIDED}


def test_only_published_numbers_are_claims(results):
    """Runs of our own, numbers printed nowhere, and prices typed from the page that they check are none."""
    ids = {result.claim.id for result in results}
    assert not ids & {
        *(f"vllm.{name}" for name in ("bytes_per_token", "capacity_fp32", "capacity_bf16", "capacity_fp8")),
        *(
            "vllm.hit_128",
            "vllm.hit_32",
            "rocketkv.split_ceiling",
            "rocketkv.storage",
            "rocketkv.storage_snapkv",
        ),
        *(
            "rocketkv.longbench_loss_512",
            "rocketkv.scbench_mt",
            "rocketkv.first_stage",
            "chunkkv.latency_4096_1024",
        ),
        *("anthropic.sonnet_base", "anthropic.write_5m", "anthropic.read_fable", "chunkkv.average_full"),
    }
    for result in results:
        claim = result.claim
        assert claim.where and claim.printed
        assert claim.unit != YES_OR_NO or claim.value == 1
        assert not (
            "second-hand" in claim.known and claim.id.startswith(("rocketkv", "trtllm", "quest", "snapkv"))
        )


def test_the_articles_words_are_those_of_the_article(results):
    """Every quotation of the article names its number as the article writes it."""
    quoted = {
        result.claim.id: result.claim.printed for result in results if result.source.paper == "The article"
    }
    assert "利用できません" in quoted["article.fp8_ampere"] and "$0.0858" in quoted["article.total_cached"]


def test_400x_is_traffic_and_not_memory(by_id):
    paper, article = by_id["rocketkv.compression_400x"], by_id["article.compression_400x"]
    assert (paper.verdict, article.verdict) == (BY_MODEL, CONTRADICTED)
    traffic, memory = values(paper)
    assert values(article) == [memory, traffic]
    assert 400 < traffic < 430 and 50 < memory < 70


def test_the_memory_saving_holds_by_the_papers_own_definition(by_id):
    """Weights 16.06, K and V 12.62, mask 9.28 GB: 37.96 against 25.58; 28.68 against 16.30 without the mask."""
    result = by_id["rocketkv.memory_saving"]
    assert result.verdict == BY_MODEL
    assert values(result) == pytest.approx([32.61, 43.15], abs=0.01)
    assert "9.3 GB" in result.finding.readings[0].name and result.finding.readings[1].beside


@pytest.mark.parametrize("name", ["rocketkv.speedup_a100", "rocketkv.speedup_h100"])
def test_the_speedup_exceeds_what_removing_all_kv_traffic_gives(by_id, name):
    result = by_id[name]
    assert result.verdict == DEPENDS
    assert values(result) == pytest.approx([1.84, 4.36], abs=0.01)
    assert all(reading.limit for reading in result.finding.readings)


def test_scbench_averages_are_printed_over_eleven(by_id):
    result = by_id["rocketkv.scbench_average"]
    assert result.verdict == CONTRADICTED
    assert values(result) == pytest.approx([45.8, 49.9], abs=0.06)
    assert result.finding.readings[1].name == "their sum divided by 11"
    assert result.finding.note.startswith("29 of 29")


def test_longbench_averages_leave_passage_count_out(by_id):
    result = by_id["rocketkv.longbench_average"]
    assert result.verdict == CONTRADICTED
    assert values(result) == pytest.approx([49.47, 52.21], abs=0.01)
    assert result.finding.note == "36 of 36 rows are the mean of 15 tasks, 0 that of 16"


def test_rocketkvs_statements_about_its_own_table_and_its_devices(by_id):
    best, hsa = by_id["rocketkv.longbench_best"], by_id["rocketkv.hsa_best"]
    assert best.verdict == hsa.verdict == CONTRADICTED
    assert best.finding.note.startswith("SparQ at 4096: longbench 52.3 against 51.9; besides")
    assert "HSA at 512" in best.finding.note and "Exact-TopK at 256" in best.finding.note
    ratio = by_id["rocketkv.bandwidth_to_compute"]
    # 2039 GB/s over 312 TFLOP/s, 3352 over 989.5
    assert ratio.verdict == CONTRADICTED
    assert "a100_80gb 6.54" in table.ours(ratio) and "h100_sxm 3.39" in table.ours(ratio)
    size = by_id["rocketkv.kv_320gb"]
    assert size.verdict == REPRODUCED and values(size) == pytest.approx([320, 343.6], abs=0.01)


def test_index_reuse_is_a_small_part_of_the_throughput(by_id):
    result = by_id["chunkkv.throughput_26_5"]
    assert result.verdict == DEPENDS and result.claim.axis == "baseline"
    assert values(result) == pytest.approx([1.76, 26.57], abs=0.01)


def test_chunkkvs_tables_against_themselves(by_id):
    latency, itself = by_id["chunkkv.latency_20_7"], by_id["chunkkv.latency_itself"]
    assert latency.verdict == DEPENDS and values(latency)[0] == pytest.approx(7.1, abs=0.05)
    # 43.60 - (46.48 - 43.60) = 40.72 s for no prompt, ChunkKV takes 37.83 s for 8,192 tokens
    assert itself.verdict == CONTRADICTED and values(itself) == pytest.approx([12.39], abs=0.01)
    assert "40.72 s" in table.ours(itself)
    step = by_id["chunkkv.step_time"]
    assert step.verdict == CONTRADICTED and values(step) == pytest.approx([44.613], abs=0.001)
    assert "10.6 % are saved, not 13.2 %" in step.finding.note
    assert by_id["chunkkv.two_models"].verdict == CONTRADICTED
    assert by_id["chunkkv.throughput_definition"].verdict == NOT_DERIVABLE
    share = by_id["chunkkv.kv_share_70"]
    assert share.claim.axis == "batch" and values(share) == pytest.approx([51.7, 81.1, 56.0], abs=0.05)


def test_tensorrts_blog_against_itself(by_id):
    latency = by_id["trtllm.latency_32k"]
    assert latency.verdict == DEPENDS and latency.claim.axis == "batch"
    assert values(latency) == pytest.approx([1.30, 1.61, 2.08, 3.43], abs=0.006)
    drop = by_id["trtllm.accuracy_drop"]
    assert drop.verdict == CONTRADICTED and values(drop) == pytest.approx([2.17], abs=0.005)
    assert by_id["trtllm.most_throughput"].verdict == CONTRADICTED
    assert "0 of 12" in table.ours(by_id["trtllm.speedups"])


def test_quest_and_snapkv(by_id):
    limit = by_id["quest.attention_7_03"]
    assert limit.verdict == NOT_DERIVABLE and values(limit) == [8.0]
    assert values(by_id["quest.load_8x"]) == pytest.approx([16 / 17, 8.0])
    latency = by_id["quest.latency_2_23"]
    assert (latency.verdict, latency.claim.axis) == (DEPENDS, "precision")
    assert values(latency) == pytest.approx([1.736, 2.226], abs=0.001)
    speed, memory = by_id["snapkv.speed_3_6"], by_id["snapkv.memory_8_2"]
    assert (speed.claim.axis, memory.claim.axis) == ("baseline", "accounting")
    assert values(speed) == pytest.approx([2.32, 1.66, 4.96], abs=0.01)
    assert values(memory) == pytest.approx([1.93, 131 / 16], abs=0.01)


def test_pages_and_versions_are_judged_by_their_day(by_id):
    read = by_id["anthropic.read"]
    assert read.verdict == REPRODUCED and values(read)[0] == pytest.approx(0.1)
    assert sorted(values(read)[1:]) == pytest.approx([0.025, 0.05, 0.1, 0.12])
    assert all(reading.beside for reading in read.finding.readings[1:])
    for name in ("article.kv_scales", "article.middleware"):
        then, now = by_id[name].finding.readings
        assert (then.value, then.beside, now.value, now.beside) == (1, False, 0, True)
    double = by_id["article.write_double"]
    assert (double.verdict, double.claim.axis) == (DEPENDS, "baseline")
    assert values(double) == pytest.approx([1.6, 2.0])


def test_a_printed_pool_size_is_rounded(by_id):
    """Blocks of 16 x 114,688 bytes in 69.655 to 69.665 GiB."""
    (reading,) = by_id["vllm.capacity_a100"].finding.readings
    assert (reading.low, reading.high) == (69.655 * 2**30 // 1_835_008 * 16, 69.665 * 2**30 // 1_835_008 * 16)
    assert by_id["vllm.capacity_a100"].verdict == REPRODUCED


def test_the_announcements_latency_is_not_that_of_its_table(by_id):
    result = by_id["anthropic.latency_85"]
    assert result.verdict == CONTRADICTED and values(result) == pytest.approx([100 * (1 - 2.4 / 11.5)])


def test_the_article_is_off_by_ten(by_id):
    result = by_id["article.kv_memory"]
    assert result.verdict == CONTRADICTED
    assert values(result) == pytest.approx([488.3, 61.0], abs=0.05)
    assert "20k tokens" in result.finding.note


def test_the_article_saves_what_it_says_only_in_its_ideal_case(by_id):
    total, saving = by_id["article.total_cached"], by_id["article.saving_78"]
    assert (total.verdict, saving.verdict) == (CONTRADICTED, BY_MODEL)
    assert not total.claim.headline
    assert values(total) == pytest.approx([0.08385], abs=1e-9)
    assert "0.22 of the uncached" in total.finding.note
    same, *besides = saving.finding.readings
    assert same.value == pytest.approx(78.5) and all(reading.beside for reading in besides)
    # tools of 1,024 tokens are cached: (13,024 x 1.25 + 9 x (1,024 x 0.1 + 12,000 x 1.25)) / (10 x 13,024)
    with_tools = 100 * (1 - (13024 * 1.25 + 9 * (102.4 + 15000)) / 130240)
    assert [reading.value for reading in besides] == pytest.approx([-1.115, -25, with_tools], abs=0.01)
    assert with_tools == pytest.approx(-16.9, abs=0.05)


def test_the_real_bill_comes_out_to_the_last_digit(by_id):
    for ttl, dollars in (("5m", 0.189827), ("1h", 0.113432)):
        result = by_id[f"anthropic.real_run_{ttl}"]
        assert result.verdict == BY_MODEL
        assert values(result) == pytest.approx([dollars], abs=5e-7)


def test_claims_that_need_a_gpu_have_no_readings(results):
    for result in results:
        if result.verdict == NEEDS_GPU:
            assert result.claim.hardware != "any" and not result.finding.readings


def test_what_the_verdicts_rest_on_stands_above_the_table(results):
    above, _, below = table.headlines(results).partition("|  | claim |")
    assert table.bases(results) in above and table.bases(results) in table.brief(results)
    reproduced = [r for r in results if r.verdict in (REPRODUCED, BY_MODEL)]
    bases = [r.finding.readings[0].basis for r in reproduced]
    unmeasured = len(reproduced) - bases.count("measured")
    assert f"Of the {len(reproduced)} claims reproduced, {unmeasured} rest on arithmetic" in above
    assert f"{bases.count('printed')} only recompute" in above
    independent = [r for r in results if r.finding.readings and r.finding.readings[0].basis == "measured"]
    assert f"{len(independent)} independent checks against measurements" in above
    assert {r.claim.id for r in independent} == {
        "rocketkv.traffic_measured", "anthropic.minimum_launch", "anthropic.minimum_spring",
    }  # fmt: skip
    assert below.rstrip().splitlines()[-1].endswith(f"| {len(independent)} |")


def test_the_lines_of_the_readme_count_every_claim_once(results):
    first = table.brief(results).partition("\n")[0]
    total, *counts = map(int, re.findall(r"\d+", first))
    assert total == len(results) == sum(counts)
    assert f"{len([r for r in results if r.verdict == REPRODUCED])} reproduced, " in first


def test_slips_are_no_headlines(results):
    slips = {"article.total_cached", "chunkkv.averages", "chunkkv.step_time", "trtllm.accuracy_drop"}
    assert not slips & {result.claim.id for result in results if result.claim.headline}
