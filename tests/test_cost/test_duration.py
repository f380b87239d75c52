"""The lower bound of a run's time, computed by hand, and how it grows."""

import pytest

from kvbench import cost
from kvbench.cli.reproduce import commands
from kvbench.config.errors import UserError
from kvbench.cost.duration import duration, planned
from kvbench.cost.memory import BLOCK_BYTES, PASS_ROWS
from kvbench.cost.roofline import seconds
from kvbench.engine import blocks, forced
from kvbench.runs.config import load

SHAPE = cost.model_shape("llama31_8b")
DEVICE = cost.hardware("h100_sxm")
ONE = ["task=[ruler_niah_single_1]", "task.length=[4096]", "task.samples=1", "task.max_new_tokens=32"]


def of(tmp_path, *overrides, experiment="quickstart"):
    cfg = load([f"experiment={experiment}", *ONE, *overrides, f"run_dir={tmp_path}"])
    return duration(cfg, SHAPE, DEVICE)[0]


def test_dense_alone_is_a_prefill_and_its_steps(tmp_path):
    found = of(tmp_path, "method=[dense]")
    account = cost.account("dense", SHAPE, prompt=4096 - 32, new=32)
    alone = cost.estimate(account, DEVICE)
    assert (found.prompts, found.cells) == (1, 1)
    # and a pass that checks its answer, in which each step reads the cache once more
    read = account.mean_step().bytes
    check = (SHAPE.weights_read() + 32 * read) / DEVICE.bandwidth()
    assert found.seconds == pytest.approx(alone.prefill_s + 32 * alone.step_s + check)
    # beside weights and caches: one query, and the activations and logits of a pass
    held = alone.memory + 32 * 32 * 128 * 2
    assert found.memory == held + PASS_ROWS * (2 * (2 * 4096 + 3 * 14336) + 128256 * 6)
    assert found.usd == pytest.approx(found.seconds * DEVICE.usd_per_hour / 3600)


def test_samples_seeds_and_protocols_multiply_it(tmp_path):
    one = of(tmp_path, "method=[snapkv]", "budget.tokens=[128]")
    many = of(
        tmp_path, "method=[snapkv]", "budget.tokens=[128]", "task.samples=5", "limit=3", "seeds=[0,1]",
        "protocol=[query_aware,query_agnostic]",
    )  # fmt: skip
    assert (many.prompts, many.cells) == (12, 12 * one.cells)
    assert many.seconds == pytest.approx(12 * one.seconds)


def test_more_cells_cost_less_than_more_prompts(tmp_path):
    one = of(tmp_path, "method=[snapkv]", "budget.tokens=[128]")
    ten = of(tmp_path, "method=[snapkv,chunkkv]", "budget.tokens=[64,128,256,512,1024]")
    assert (one.cells, ten.cells) == (2, 11)
    assert one.seconds < ten.seconds < 2 * one.seconds


def test_a_cell_costs_its_share_of_passes_and_its_reads(tmp_path):
    dense, cell = of(tmp_path, "method=[dense]"), of(tmp_path, "method=[quest]", "budget.tokens=[256]")
    account = cost.account("quest", SHAPE, prompt=4096 - 32, new=32, tokens=256)
    more = 32 * (SHAPE.weights_read() / PASS_ROWS + account.mean_step().bytes) / DEVICE.bandwidth()
    compress = seconds(account.compress, DEVICE.bandwidth(), DEVICE.flops())
    assert cell.seconds - dense.seconds == pytest.approx(more + compress)


def test_memory_is_bounded_by_a_block_of_cells(tmp_path):
    def decoding(*overrides):
        cfg = load(["experiment=quickstart", *ONE, *overrides, f"run_dir={tmp_path}"])
        return planned(cfg, SHAPE)[0].memory(cfg).decode

    peaks = [
        decoding("method=[snapkv]", f"budget.tokens=[{','.join(str(2000 + n) for n in range(count))}]")
        for count in (1, 3, 30)
    ]
    # beside what dense alone takes, the queries of SnapKV's window
    alone = decoding("method=[dense]") + 31 * 32 * 32 * 128 * 2
    prompt = SHAPE.kv_bytes(4096 - 32)
    assert 0 < peaks[0] - alone < peaks[1] - alone <= peaks[2] - alone == max(BLOCK_BYTES, prompt)


def test_passes_and_blocks_are_those_of_the_engine():
    assert (PASS_ROWS, BLOCK_BYTES) == (forced.PASS_ROWS, blocks.BLOCK_BYTES)


def test_an_efficiency_run_measures_each_batch_alone(tmp_path):
    settings = ["method=[dense]", "efficiency.batch=[1,4]", "efficiency.warmup=1", "efficiency.steps=9"]
    found = of(tmp_path, *settings, experiment="efficiency")
    account = cost.account("dense", SHAPE, prompt=4096 - 32, new=10)
    alone = [cost.estimate(account, DEVICE, batch) for batch in (1, 4)]
    assert found.cells == 2
    assert found.seconds == pytest.approx(alone[0].prefill_s + 10 * sum(one.step_s for one in alone))


def test_published_rows_have_their_typical_sizes(tmp_path):
    settings = ["task=[gsm8k_shots]", "task.download=true", "task.samples=10", "method=[dense]"]
    cfg = load(["experiment=jsonl", *settings, f"run_dir={tmp_path}"])
    (found,) = duration(cfg, SHAPE, DEVICE)
    one = cost.estimate(cost.account("dense", SHAPE, prompt=8 * 110 + 100, new=256), DEVICE, 1)
    assert found.prompts == 10 == found.cells
    assert found.seconds == pytest.approx(10 * (one.prefill_s + 256 * one.step_s), rel=0.02)


def test_the_rows_of_an_efficiency_run_share_nothing(tmp_path):
    one, four = (
        of(tmp_path, "method=[dense]", f"efficiency.batch=[{n}]", experiment="efficiency").memory
        for n in (1, 4)
    )
    assert four - one > 3 * SHAPE.kv_bytes(4096 - 32)


def test_other_kinds_are_refused(tmp_path):
    cfg = load(["experiment=bench_ablation", f"run_dir={tmp_path}"])
    with pytest.raises(UserError, match="kind: bench_ablation is not one of accuracy, efficiency"):
        duration(cfg, SHAPE, DEVICE)


def test_commands_are_those_of_the_marked_blocks():
    text = "```bash\nkvbench run experiment=a\n```\n```bash gpu\n# first\nkvbench run b 'c=[1,2]' \\\n  d=3\n```\n"
    assert list(commands(text)) == [("first", ["b", "c=[1,2]", "d=3"])]
