"""The comparison as the command line runs it, on a small recorded trace."""

import json

import pandas as pd
import pytest

pytest.importorskip("hydra")

from kvbench import cost
from kvbench.claude.rag.config import RagConfig
from kvbench.claude.request import KINDS, TIERS
from kvbench.cli.main import main
from kvbench.config.compose import compose
from kvbench.config.typed import build
from kvbench.experiments.two_layer import report
from kvbench.experiments.two_layer.config import TwoLayerConfig
from kvbench.experiments.two_layer.hosted import PREFIX, Host
from kvbench.experiments.two_layer.sessions import HostedRequest
from kvbench.runs.config import expanded

MIDNIGHT = 1_795_478_400.0


def block(tier, number, tokens):
    return {"tier": TIERS[tier], "kind": KINDS[0], "hash": f"{number:x}", "tokens": tokens, "source": "usage"}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Two sessions of three requests: 3,000 tokens of system prompt, then 2,000 more each time; 40 are answered."""
    path = tmp_path_factory.mktemp("trace") / "sessions.jsonl"
    lines = []
    for session in range(2):
        for turn in range(3):
            blocks = [block(1, 1, 3000)] + [block(2, 10 * session + k + 2, 2000) for k in range(turn + 1)]
            lines.append(
                {
                    "id": f"s{session}/{turn}",
                    "session": f"s{session}",
                    "t": MIDNIGHT + 1000 * session + 60 * turn,
                    "model": "claude-sonnet-4-6",
                    "same": 0,
                    "blocks": blocks,
                    "usage": {"uncached": sum(item["tokens"] for item in blocks), "output": 40},
                }
            )
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(capsys, trace, out, *words):
    code = main(["run", "experiment=two_layer", f"trace={trace}", f"run_dir={out}", *words])
    text = capsys.readouterr()
    return code, text.out, text.err


@pytest.fixture(scope="module")
def both(trace, tmp_path_factory):
    """Rows and text of a run with both layers."""
    out = tmp_path_factory.mktemp("both")
    few = ("placements=[none,tools_system,automatic]", "rents=[1]", "utilisations=[0.4]", "outputs=[1,10]")
    assert main(["run", "experiment=two_layer", f"trace={trace}", f"run_dir={out}", *few]) == 0
    return pd.read_csv(out / "rows.csv").set_index("how"), (out / "table.md").read_text(), out


def test_prices_at_the_api_are_those_of_the_price_list(both):
    """Worked by hand: 5,000 + 7,000 + 9,000 tokens in, 120 out; with a marker at the end each is written once."""
    rows, _, _ = both
    answers = 120 * 15e-6
    assert rows.loc["none", "usd_per_session"] == pytest.approx(21_000 * 3e-6 + answers)
    # the second session begins cold although its system prompt was written before, in the first one
    assert rows.loc["automatic", "usd_per_session"] == pytest.approx(
        9_000 * 3.75e-6 + 12_000 * 0.3e-6 + answers
    )
    assert (
        rows.loc["planner", "usd_per_session"]
        <= rows["usd_per_session"][rows["layer"] == "api"].min() + 1e-12
    )


def test_device_seconds_come_from_the_cost_model(both):
    rows, _, _ = both
    shape, device = cost.model_shape("llama31_8b"), cost.hardware("h100_sxm")

    def seconds(method, cached=(0, 0, 0), **budget):
        found = 0.0
        for prompt, hit in zip((5000, 7000, 9000), cached, strict=True):
            use = cost.account(method, shape, prompt=prompt, new=40, **budget)
            found += cost.estimate(use, device, 8, cached=hit).request_s
        return found

    assert rows.loc["dense", "device_s"] == pytest.approx(seconds("dense"), rel=1e-4)
    assert rows.loc["rocketkv 2048", "device_s"] == pytest.approx(seconds("rocketkv", tokens=2048), rel=1e-4)
    # 5,000 and 7,000 tokens are 312 and 437 pages of 16
    cached = (0, 4992, 6992)
    assert rows.loc["dense" + PREFIX, "device_s_alone"] == pytest.approx(seconds("dense", cached), rel=1e-4)
    assert rows.loc["dense" + PREFIX, "reused"] <= sum(cached) / 21_000 + 1e-6


def test_capacity_and_break_even_follow_from_the_seconds(both):
    rows, _, _ = both
    dense = rows.loc["dense"]
    assert dense["sessions_per_day"] == int(0.4 * 86_400 / dense["device_s"])
    rent = 24 * cost.hardware("h100_sxm").usd_per_hour
    assert dense["usd_per_session"] == pytest.approx(rent / dense["sessions_per_day"], rel=1e-4)
    # the planned placement needs the whole trace, so nothing is compared with it
    cheapest = rows["usd_per_session"][(rows["layer"] == "api") & (rows.index != "planner")].min()
    assert dense["break_even"] == -(-rent // cheapest)
    assert dense["break_even_none"] == -(-rent // rows.loc["none", "usd_per_session"])


def test_methods_that_evict_have_no_prefix_cache(both):
    rows, _, _ = both
    assert {name for name in rows.index if name.endswith(PREFIX)} == {"dense" + PREFIX, "fp8_e4m3" + PREFIX}


def test_the_report_states_limitations_and_sources(both):
    rows, text, out = both
    assert set(rows["basis"]) == {"modelled"}
    assert all(line in text for line in report.LEFT_OUT)
    assert "Quality of the answers, above all" in text
    assert "Tokens counted by: usage" in text
    assert str(out) not in (out / "config.yaml").read_text()
    for name in ("per_day.svg", "per_day.png"):
        assert (out / "figures" / name).stat().st_size > 1000


def test_rent_moves_the_break_even_and_utilisation_decides_whether_there_is_one(trace, tmp_path, capsys):
    words = ("method=[dense]", "outputs=[1]", "plan=false", "rents=[1,2]", "utilisations=[0.001,0.4]")
    code, text, _ = run(capsys, trace, tmp_path, *words, "usd_per_hour=1.0")
    assert code == 0
    table = text.split("## Rent and utilisation")[1].split("## If")[0]
    idle, busy = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "%" in line[:8]
    )
    assert idle[2:] == ["never", "never"]
    price = 9_000 * 3.75e-6 + 12_000 * 0.3e-6 + 120 * 15e-6
    assert busy[2:] == [f"{-int(-24 // price):,}", f"{-int(-48 // price):,}"]


def test_a_measured_throughput_replaces_the_modelled_one_and_is_labelled(trace, tmp_path, capsys):
    rates = "measured={dense_prefix: {prefill: 1000, decode: 100}}"
    assert run(capsys, trace, tmp_path, "method=[dense]", "outputs=[1]", "plan=false", rates)[0] == 0
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("how")
    found = rows.loc["dense" + PREFIX]
    assert (found["basis"], rows.loc["dense", "basis"]) == ("measured", "modelled")
    assert found["device_s_alone"] == pytest.approx((21_000 - 4992 - 6992) / 1000 + 120 / 100)


@pytest.mark.parametrize(
    ("layer", "layers", "missing"), [("api", {"api"}, "device s"), ("model", {"model"}, "range")]
)
def test_one_layer_alone(trace, tmp_path, capsys, layer, layers, missing):
    code, text, _ = run(capsys, trace, tmp_path, f"layer={layer}", "method=[dense]", "plan=false")
    assert code == 0
    assert set(pd.read_csv(tmp_path / "rows.csv")["layer"]) == layers
    assert f"| {missing} |" not in text
    assert "Quality of the answers" in text


def test_defects_of_a_trace_are_in_the_report(trace, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(trace.read_text() + "\n{")
    code, text, _ = run(capsys, broken, tmp_path / "out", "layer=api", "plan=false")
    assert code == 0
    assert "broken.jsonl, line 7" in text.split("## Defects of the trace")[1]


def test_a_model_that_does_not_fit_is_reported(trace, tmp_path, capsys):
    words = ("hosted_model=llama31_70b", "device=l4", "method=[dense]", "outputs=[1]", "plan=false")
    code, text, _ = run(capsys, trace, tmp_path, *words)
    assert code == 0
    assert "does not fit beside the weights" in text
    assert "never breaks even" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer=modell"], "layer"),
        (["hosted_model=llama31_9b"], "llama31_8b"),
        (["device=h1000"], "h100_sxm"),
        (["utilisation=0"], "utilisation: 0.0 is not in (0, 1]"),
        (["utilisations=[0.5,1.5]"], "utilisations: 1.5 is not in (0, 1]"),
        (["usd_per_hour=-1"], "usd_per_hour: -1.0 is not allowed"),
        (["usd_per_hour=inf"], "usd_per_hour: inf is not a finite number"),
        (["weight_element=-1"], "weight_element: -1.0 is not allowed"),
        (["rents=[0]"], "rents: 0.0 is not allowed"),
        (["rents=[]"], "rents: empty, give at least one number"),
        (["outputs=[]"], "outputs: empty, give at least one number"),
        (["batch=0"], "batch: 0 is not allowed"),
        (["placements=[automatic]"], "placements: none is missing"),
        (["placements=[none,automatc]"], "placement=automatc"),
        (["budget.tokens=[512,1024]"], "budget: rocketkv needs one"),
        (["measured={sparse: {prefill: 1, decode: 1}}"], "measured.sparse"),
        (["measured={dense: {prefill: 1}}"], "measured.dense.decode: missing"),
        (["measured={dense: {prefill: 0, decode: 1}}"], "measured.prefill: 0.0 is not allowed"),
        (["trace=/nowhere"], "trace=/nowhere"),
        (["turns=0"], "turns: 0 is not allowed"),
    ],
)
def test_mistakes_are_one_line(trace, tmp_path, capsys, words, message):
    code, _, err = run(capsys, trace, tmp_path, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_prompts_beyond_the_models_context_are_refused():
    cfg = TwoLayerConfig(run_dir="x", method={"dense": {"method": "dense"}}, hosted_model="llama3_8b")
    with pytest.raises(Exception, match="a request has 8201 tokens, llama3_8b takes 8192"):
        Host(cfg).serve([(HostedRequest(0.0, ((1, 8200),), 1),)])


def test_the_yaml_file_repeats_the_defaults():
    data = compose(["experiment=two_layer"])
    methods, budget = expanded(data.data, data.config_dirs)
    names = set(TwoLayerConfig.__dataclass_fields__) - {
        "run_dir",
        "method",
        "budget",
        "conversations",
        "config_dirs",
    }
    assert names <= set(data.data)
    given = {key: data.data[key] for key in names}
    found = build(TwoLayerConfig, {**given, "run_dir": "x", "method": methods, "budget": budget})
    assert found == TwoLayerConfig(run_dir="x", method=methods, budget=found.budget)
    assert issubclass(TwoLayerConfig, RagConfig)
