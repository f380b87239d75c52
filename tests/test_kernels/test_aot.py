"""Every Triton kernel compiles for several GPUs, none of them present, without spills and within shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from kvbench_testing.triton import needs_triton

pytestmark = needs_triton
TABLE = Path(__file__).parents[2] / "results" / "kernels" / "aot.csv"
# kernels that multiply matrices
DOTS = {"sparse_decode_pieces", "window_lse", "window_sums", "quest_bounds"}
# 16-bit kernels with fewer than four blocks per multiprocessor on sm_100, where products go through tensor memory:
# window_sums runs once per prompt; decoding e4m3 in registers leaves room for three
FEW = {("sm_100", "window_sums"), ("sm_100", "sparse_decode_pieces")}
# gfx942, whose wavefronts have 64 lanes: three blocks, two of window_sums, which runs once per prompt
FEW |= {("gfx942", kernel) for kernel in ("sparse_decode_pieces", "window_lse", "window_sums")}
# a choice of tokens: few programs, each walking pages one block after the other, so that large blocks are faster
FEW |= {
    (target, kernel)
    for target in ("sm_80", "sm_90", "sm_100", "gfx942")
    for kernel in ("hsa_choose", "hsa_choose_chunks", "top_k_merge")
}


def compiled(folder, *arguments):
    """The table of a run in another process, where the interpreter is off."""
    done = subprocess.run(
        [sys.executable, "-m", "kvbench.kernels.dev.aot", "--csv", folder / "aot.csv", "--check", TABLE, *arguments],
        env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "aot.csv")


def check(frame):
    assert not frame["spills"].any()
    # the launch itself fails where a block's shared memory is more than the chip gives
    assert (frame["blocks_per_sm"] >= 1).all()
    few = frame[(frame["dtype"] != "fp32") & (frame["blocks_per_sm"] < 4)]
    assert set(zip(few["target"], few["kernel"], strict=True)) <= FEW
    halves = frame[frame["dtype"] != "fp32"]
    assert (halves.loc[halves["kernel"].isin(DOTS), "mma"] > 0).all()
    # for gfx942 hsa_logits is compiled to narrower ones
    wide = frame["kernel"].isin(DOTS) | ((frame["kernel"] == "hsa_logits") & (frame["target"] != "gfx942"))
    assert (frame.loc[wide, "loads_16_bytes"] > 0).all()


def test_bf16(tmp_path):
    check(compiled(tmp_path, "--targets", "sm_90", "--dtypes", "bf16"))


@pytest.mark.slow
def test_every_target_and_dtype(tmp_path):
    frame = compiled(tmp_path)
    check(frame)
    assert set(frame["target"]) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert len(frame) == len(pd.read_csv(TABLE)), "renew results/kernels/aot.csv"


def test_a_regression_is_reported():
    # not at the top: it imports the kernels
    from kvbench.kernels.dev.aot import regressions

    old = pd.read_csv(TABLE)
    assert regressions(old, old) == []
    new = old.copy()
    new.loc[0, "registers"] = int(old.loc[0, "registers"] * 1.1) + 1
    new.loc[1, "spills"] = 3
    found = regressions(new.drop(index=2), old)
    assert len(found) == 3 and "spills" in found[0] and "before" in found[1] and "missing" in found[2]
    assert regressions(new.assign(triton="0.0", spills=0), old) == []


def test_an_unknown_target_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "kvbench.kernels.dev.aot", "--targets", "sm_12"],
        env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "sm_12" in done.stderr and "sm_90" in done.stderr


def steps(form, folder, *methods):
    """What each method launches while its steps decode; fails where the host would wait."""
    script = Path(__file__).parents[1] / "kvbench_testing" / "no_sync.py"
    done = subprocess.run(
        [sys.executable, "-P", script, form, folder, *methods],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(script.parents[1])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}


def test_no_step_of_the_engine_waits_for_the_gpu(tiny_model_dir):
    methods = ["dense", "quest", "hsa", "rocketkv", "sparq", "snapkv+fp8_e4m3"]
    launched = steps("triton", tiny_model_dir("llama"), *methods)
    assert set(launched) == set(methods)
    assert {"hsa_logits", "hsa_choose", "sparse_decode_pieces", "window_sums"} <= launched["rocketkv"]
    assert {"quest_bounds", "top_k_select", "page_bounds_update"} <= launched["quest"]
    assert {"hsa_logits", "top_k_select"} <= launched["sparq"]
    assert {"fp8_encode", "sparse_decode_pieces"} <= launched["snapkv+fp8_e4m3"]


@pytest.mark.parametrize("form", ["portable", pytest.param("triton", marks=pytest.mark.slow)])
def test_no_method_selection_or_format_waits_for_the_gpu(tiny_model_dir, form):
    launched = steps(form, tiny_model_dir("llama"))
    assert {"h2o", "rocketkv_mt", "sparq", "behind:topk_oracle", "snapkv+int2"} <= set(launched)
    assert len(launched) > 40


def test_a_selection_that_waits_is_found(tiny_model_dir, tmp_path):
    # what a user's own selection may do
    script = tmp_path / "waiting.py"
    script.write_text(
        "import sys\n"
        "from kvbench.methods.quest import Quest\n"
        "from kvbench_testing import no_sync\n"
        "chosen = Quest.select\n"
        "def select(self, q, k, k_tail, length, *rest):\n"
        "    return chosen(self, q, k, k_tail, length, *rest)[..., : max(1, int(length))]\n"
        "Quest.select = select\n"
        "no_sync.main('portable', sys.argv[1], ['quest'])\n"
    )
    done = subprocess.run(
        [sys.executable, script, tiny_model_dir("llama")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "waits: __int__ in waiting.py, line 6" in done.stdout, (
        done.stdout + done.stderr
    )
