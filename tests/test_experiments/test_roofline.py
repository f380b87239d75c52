"""The experiment `roofline`."""

import io
import itertools
from pathlib import Path

import pandas as pd
import pytest

from kvbench import cost
from kvbench.cli import main as cli
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.experiments import run
from kvbench.experiments.roofline import run as roofline_run
from kvbench.experiments.roofline.config import RooflineConfig
from kvbench.experiments.roofline.report import markdown
from kvbench.runs.config import BudgetConfig
from kvbench.runs.progress import Progress
from kvbench.runs.store import Store

COMMITTED = Path(__file__).parents[2] / "results" / "roofline"
SMALL = {
    "run_dir": "unused", "models": ("llama31_8b",), "devices": ("l4", "h100_sxm"), "lengths": (4096, 65_536),
    "method": {"dense": {"method": "dense"}, "snapkv": {"method": "snapkv"}},
}  # fmt: skip


def scan(cfg):
    return roofline_run.scan(cfg, Progress)


def config(**changes):
    return RooflineConfig(**{**SMALL, "budget": BudgetConfig(tokens=(1024,)), **changes})


@pytest.fixture(scope="module")
def small():
    return scan(config())


def test_a_row_per_model_device_length_method_and_budget(small):
    assert len(small) == 2 * 2 * 2 and set(small["how"]) == {"modelled"}
    assert list(dict.fromkeys(small["device"])) == ["l4", "h100_sxm"]
    row = small[
        (small["device"] == "h100_sxm") & (small["length"] == 65_536) & (small["method"] == "snapkv")
    ].iloc[0]
    shape, device = cost.model_shape("llama31_8b"), cost.hardware("h100_sxm")
    account = cost.account("snapkv", shape, prompt=65_536, tokens=1024)
    largest = cost.max_batch(account, device)
    assert row["max_batch"] == largest
    assert row["step_ms"] == pytest.approx(1e3 * cost.estimate(account, device).step_s)
    found = cost.estimate(account, device, largest)
    assert row["usd_per_million_decode_max"] == pytest.approx(found.usd_per_million_decode)
    assert row["usd_per_million_whole_max"] == pytest.approx(found.usd_per_million_whole)
    assert row["usd_per_million_whole"] == pytest.approx(cost.estimate(account, device).usd_per_million_whole)
    assert row["usd_per_request_max"] == pytest.approx(found.usd_per_request)


def test_what_does_not_fit_has_no_price(small):
    lost = small[(small["device"] == "l4") & (small["length"] == 65_536)]
    assert set(lost["max_batch"]) == {0} and lost["usd_per_million_decode_max"].isna().all()
    assert lost["usd_per_million_whole"].isna().all() and lost["usd_per_million_whole_max"].isna().all()
    # decoding fits, but the prefill before it does not
    assert dict(zip(lost["method"], lost["fits"], strict=True)) == {"dense": False, "snapkv": True}
    assert "| 65536 | dense |  | 8,607 | 8,598 | does not fit | 0 | - | - | - | - | - |" in markdown(small)


def test_a_budget_that_covers_everything_is_dense_and_left_out():
    frame = scan(config(lengths=(512,), budget=BudgetConfig(tokens=(64, 1024))))
    assert set(frame["budget"]) == {"", "64"}


def test_a_price_in_the_configuration_overrides_the_devices():
    cheap, dear = (scan(config(usd_per_hour=price)) for price in (1.0, 2.0))
    both = cheap["usd_per_request_max"].notna()
    assert (dear["usd_per_request_max"][both] == 2 * cheap["usd_per_request_max"][both]).all()


def test_decode_alone_is_not_the_price_of_a_request():
    """Worked by hand: SnapKV at 1,024 of 98,304 tokens on an A40, 128 new ones: factor 580 between the two."""
    frame = scan(config(devices=("a40",), lengths=(98_304,), method={"snapkv": {"method": "snapkv"}}))
    row = frame.iloc[0]
    decode = row["usd_per_hour"] / 3600 * row["step_ms_max"] / 1e3 / row["max_batch"] * 1e6
    assert row["usd_per_million_decode_max"] == pytest.approx(decode)
    whole = row["usd_per_hour"] / 3600 * (row["prefill_s"] + row["compress_s"]) / 128 * 1e6 + decode
    assert row["usd_per_million_whole_max"] == pytest.approx(whole)
    assert whole / decode == pytest.approx(584, abs=5)
    # alone, its steps are not shared
    alone = (
        row["usd_per_hour"]
        / 3600
        * (row["prefill_s"] + row["compress_s"] + 0.128 * row["step_ms"])
        / 128
        * 1e6
    )
    assert row["usd_per_million_whole"] == pytest.approx(alone)


def test_the_table_names_what_its_dollars_contain_and_whose_rent_it_is(small):
    text = markdown(small)
    assert "128 new tokens per request" in text
    assert "| $ per million, decode only, largest batch | $ per million, whole, largest batch |" in text
    assert "| $ per million, whole, batch 1 |" in text and "$ per million tokens" not in text
    assert "on h100_sxm, $2.29 per hour (Verda, 2026-11-24; others $1.99 to $5.00, May 2026)" in text
    assert "on l4, $0.39 per hour (RunPod, mid 2026; other offers not known)" in text
    assert "$2.00 per hour (as given)" in markdown(scan(config(usd_per_hour=2.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "lengths: empty"),
        ({"lengths": (0,)}, "lengths: 0"),
        ({"lengths": (131_072,)}, r"exceed the 131072 positions of llama31_8b"),
        ({"new": 0}, "new: 0"),
        ({"usable": 1.5}, "usable: 1.5"),
        ({"usd_per_hour": 0.0}, "usd_per_hour: 0.0"),
        ({"devices": ("h100",)}, "no device 'h100'"),
        ({"models": ("gpt",)}, "no model shape 'gpt'"),
    ],
)
def test_mistakes_name_the_key(changes, message):
    with pytest.raises(UserError, match=message):
        scan(config(**changes))


def test_a_method_without_a_budget(capsys):
    assert cli.main(["run", "experiment=roofline", "budget.tokens=[]"]) == 2
    assert "budget: snapkv needs one" in capsys.readouterr().err


def test_the_whole_experiment(tmp_path):
    device_file = tmp_path / "mine" / "hardware" / "mine.yaml"
    device_file.parent.mkdir(parents=True)
    device_file.write_text(
        "title: mine\nmemory_mib: 40000\nmemory_source: M\nbandwidth_gb_s: {attainable: 30, source: M}\n"
        "tflops: {attainable: 0.4, source: M}\nsources: {M: measured}\n"
    )
    overrides = [
        "experiment=roofline", "devices=[mine]", "lengths=[4096]", "method=[dense,snapkv]",
        f"run_dir={tmp_path / 'out'}", "ablate.snapkv.heads=[kv_head,query_head]",
    ]  # fmt: skip
    printed = run(compose(overrides, [str(tmp_path / "mine")]), Progress)
    assert "llama31_8b on mine" in printed and "| 4096 | snapkv[heads=query_head] | 1024 | ≤ " in printed
    frame = pd.read_csv(tmp_path / "out" / "roofline.csv")
    assert frame["usd_per_million_decode_max"].isna().all()
    # without a price there is no figure of dollars
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "step.llama31_8b.png", "step.llama31_8b.svg",
    }  # fmt: skip


@pytest.fixture
def judged(tmp_path):
    """A run of 60 samples in which SnapKV loses nothing from 512 tokens on, and ChunkKV loses all."""
    from kvbench.methods import build

    cells = []
    for name, budgets in {"dense": [""], "snapkv": ["256", "512", "1024"], "chunkkv": ["512"]}.items():
        described = build({"method": name}).describe()
        for budget, sample in itertools.product(budgets, range(60)):
            good = name == "dense" or (name == "snapkv" and int(budget) > 256)
            cells.append(
                {
                    "cell": f"{name} {budget} {sample}", "model": "m", "model_fingerprint": "f", "dtype": "float32",
                    "attention": "sdpa", "protocol": "query_aware", "length": 2048, "task": "needle", "task_version": 1,
                    "wording": "own", "metric": "exact", "max_new_tokens": 8, "method": name, **described,
                    "budget_requested": budget, "budget_covers_prompt": False, "timing": "amortised", "seed": 0,
                    "sample": sample, "sample_hash": str(sample), "score": float(good), "kl_to_dense": 0.01 * sample,
                    "bytes_resident": int(budget or 2000), "bytes_read_per_step": float(budget or 2000),
                    "device": "cpu",
                    "kept_tokens": float(budget or 2000), "output_ids": [1], "output": "1", "gold": ["1"], "meta": {},
                    "prefill_s": 1.0, "compress_s": 0.0, "decode_ms_per_token": 1.0, "stop": "eos",
                }
            )  # fmt: skip
    Store(tmp_path / "judged").extend(cells)
    return str(tmp_path / "judged")


def test_dollars_at_matched_accuracy_take_the_smallest_budget_that_is_good_enough(judged):
    methods = {name: {"method": name} for name in ("dense", "snapkv", "chunkkv", "quest")}
    frame = scan(config(method=methods, matched=judged))
    # ChunkKV has no such budget, and Quest was not run
    assert set(zip(frame["method"], frame["budget"], strict=True)) == {("dense", ""), ("snapkv", "512")}
    plain = scan(config(method={"snapkv": {"method": "snapkv"}}, budget=BudgetConfig(tokens=(512,))))
    column = "usd_per_request_max"
    assert frame.loc[frame["method"] == "snapkv", column].dropna().tolist() == plain[column].dropna().tolist()
    text = markdown(frame)
    assert f"loses less than 0.05 of dense's score in the run {judged}; methods without one" in text
    assert "is an assumption" in text and "Budgets are nominal" not in text
    # another variant of SnapKV was not run
    other = methods | {"snapkv": {"method": "snapkv", "window": 16}}
    for changes in ({"method": other}, {"within": 0.001}):
        with pytest.raises(
            UserError, match=r"^matched: no method here has a budget within 0.\d+ of dense in "
        ):
            scan(config(**{"method": methods, "matched": judged} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matched": "nowhere"}, "^run: nowhere is not a run folder"),
        ({"within": 0}, "^within: 0 is not allowed"),
    ],
)
def test_a_matched_run_that_cannot_be_used(judged, changes, message):
    with pytest.raises(UserError, match=message):
        scan(config(**{"matched": judged} | changes))


def test_the_committed_table_is_the_models():
    composed = compose(["experiment=roofline", "run_dir=unused"])
    from kvbench.config.typed import build
    from kvbench.runs.config import expanded

    methods, budget = expanded(composed.data, [])
    keys = {
        key: composed.data[key] for key in ("models", "devices", "lengths", "new", "batch", "usable", "peak")
    }
    fresh = scan(build(RooflineConfig, {**keys, "run_dir": "unused", "method": methods, "budget": budget}))
    assert (COMMITTED / "table.md").read_text(encoding="utf-8") == markdown(fresh)
    text = io.StringIO()
    fresh.to_csv(text, index=False, float_format="%.6g")
    assert (COMMITTED / "roofline.csv").read_text(encoding="utf-8") == text.getvalue()
