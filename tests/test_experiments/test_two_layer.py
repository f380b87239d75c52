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
from kvbench.experiments.two_layer.hosted import DENSE_PREFIX, PREFIX, Host
from kvbench.experiments.two_layer.sessions import HostedRequest
from kvbench.runs.config import BudgetConfig, expanded

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
    few = (
        "placements=[none,tools_system,automatic]", "rents=[1]", "utilisations=[0.4]", "outputs=[1,10]", "draws=2",
        "claude_models=[claude-sonnet-4-6,claude-sonnet-5-5,claude-sonnet-4]",
    )  # fmt: skip
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


def test_a_session_alone_is_the_cost_models_at_batch_1(both):
    rows, _, _ = both
    shape, device = cost.model_shape("llama31_8b"), cost.hardware("h100_sxm")

    def seconds(method, cached=(0, 0, 0), **budget):
        found = 0.0
        for prompt, hit in zip((5000, 7000, 9000), cached, strict=True):
            use = cost.account(method, shape, prompt=prompt, new=40, **budget)
            found += cost.estimate(use, device, 1, cached=hit).request_s
        return found

    assert rows.loc["dense", "device_s_alone"] == pytest.approx(seconds("dense"), rel=1e-4)
    rocketkv = seconds("rocketkv", tokens=2048)
    assert rows.loc["rocketkv 2048", "device_s_alone"] == pytest.approx(rocketkv, rel=1e-4)
    # 5,000 and 7,000 tokens are 312 and 437 pages of 16
    cached = (0, 4992, 6992)
    assert rows.loc["dense" + PREFIX, "device_s_alone"] == pytest.approx(seconds("dense", cached), rel=1e-4)
    assert rows.loc["dense" + PREFIX, "reused"] <= sum(cached) / 21_000 + 1e-6
    # the whole cache is found although a compressed copy is decoded, which each request makes anew
    copies = seconds("rocketkv", cached, tokens=2048)
    assert rows.loc["rocketkv 2048" + DENSE_PREFIX, "device_s_alone"] == pytest.approx(copies, rel=1e-4)


def test_steps_are_shared_by_as_many_as_the_load_supplies(both):
    """At 40 % of the day a device decodes one to two short answers at a time, not as many as fit."""
    rows, _, _ = both
    served = rows[rows["layer"] == "model"]
    assert served["batch"].between(1, 2.5).all()
    assert (served["batch_limit"] == 8).all()
    plain = served[~served.index.str.contains("cache")]
    assert (plain["device_s"] < plain["device_s_alone"]).all()
    assert (served["low"] <= served["usd_per_session"]).all()
    assert (served["usd_per_session"] <= served["high"]).all()
    assert plain["busy"].between(0.38, 0.4).all()
    # a prefix cache that is pushed out costs time at once, so that the busy share jumps
    assert (served["busy"] <= 0.4).all()
    # a request waits for those before it, so that some need longer than alone
    assert (plain["first_token_p95_s"] > 0.2).all()


def test_capacity_and_break_even_follow_from_the_seconds(both):
    rows, _, _ = both
    dense = rows.loc["dense"]
    assert dense["sessions_per_day"] == pytest.approx(0.4 * 86_400 / dense["device_s"], rel=0.015)
    rent = 24 * cost.hardware("h100_sxm").usd_per_hour
    assert dense["usd_per_session"] == pytest.approx(rent / dense["sessions_per_day"], rel=1e-4)
    # the planned placement needs the whole trace, so nothing is compared with it
    cheapest = rows["usd_per_session"][(rows["layer"] == "api") & (rows.index != "planner")].min()
    assert dense["break_even"] == -(-rent // cheapest)
    assert dense["break_even_none"] == -(-rent // rows.loc["none", "usd_per_session"])


def test_methods_that_evict_can_keep_the_whole_prefix_and_decode_from_a_copy(trace, tmp_path, capsys):
    words = ("outputs=[1]", "plan=false", "draws=2", "rents=[1]", "sessions_per_day=100")
    code, text, _ = run(capsys, trace, tmp_path, *words)
    assert code == 0
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("how")
    assert {name for name in rows.index if name.endswith(PREFIX)} == {"dense" + PREFIX, "fp8_e4m3" + PREFIX}
    copies = {"rocketkv 2048" + DENSE_PREFIX, "chunkkv 2048" + DENSE_PREFIX}
    assert {name for name in rows.index if name.endswith(DENSE_PREFIX)} == copies
    for name in copies:
        # what is reused is not prefilled
        plain = rows.loc[name.removesuffix(DENSE_PREFIX)]
        assert rows.loc[name, "reused"] == pytest.approx(rows.loc["dense" + PREFIX, "reused"], abs=0.01)
        assert plain["reused"] == 0 and rows.loc[name, "reused"] > 0.5
        assert rows.loc[name, "device_s"] < 0.8 * plain["device_s"]
    assert "## What a dense prefix cache beside copies takes" in text


def host(**methods):
    return Host(TwoLayerConfig(run_dir="x", method=methods, budget=BudgetConfig(tokens=(512,))))


def test_the_cost_of_a_copy():
    """8,000 tokens of Llama-3.1-8B take 131,072 bytes each; the copy has 512 and the 40 new ones."""
    recorded = [(HostedRequest(0.0, ((1, 8000),), 40),)]
    (copy,) = host(chunkkv={"method": "chunkkv"}).copies(recorded)
    assert (copy.prompt, copy.fresh, copy.whole) == (8000, 32, 8000 * 131_072)
    # positions of the kept tokens are stored beside them
    assert copy.copy == pytest.approx(552 * 131_072, rel=0.01)
    assert copy.read == pytest.approx(532 * 131_072, rel=0.01)
    assert copy.read_whole == pytest.approx(8020 * 131_072, rel=0.001)
    assert copy.choose_s > 0
    # RocketKV's multi-turn form keeps the whole prompt itself; here it lies in the prefix cache, once
    multi, plain = host(mt={"method": "rocketkv_mt"}, rocketkv={"method": "rocketkv"}).copies(recorded)
    assert multi.copy == plain.copy < 0.5 * multi.whole


def test_methods_that_need_all_queries_cannot_reuse_a_prefix():
    found = host(
        h2o={"method": "h2o"}, expected_attention={"method": "expected_attention"}, knorm={"method": "knorm"}
    )
    reasons = found.without_prefix
    assert [line.split()[0] for line in reasons] == ["h2o", "expected_attention"]
    assert "attention_sum" in reasons[0] and "queries" in reasons[1]


def test_the_claude_model_is_one_of_the_sensitivities(both):
    """Worked by hand from the price list: written at 2.5, read at 0.1, answers at 10 USD per million."""
    rows, text, _ = both
    table = text.split("## Another Claude model")[1]
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| claude")}
    price = 9_000 * 2.5e-6 + 12_000 * 0.1e-6 + 120 * 10e-6
    rent = 24 * cost.hardware("h100_sxm").usd_per_hour
    assert f"| {price:.4f} |" in lines["claude-sonnet-5-5"]
    assert f"| {-int(-rent // price):,} |" in lines["claude-sonnet-5-5"]
    assert "2 / 0.1 / 10 since 2026-10-07" in lines["claude-sonnet-5-5"]
    assert f"| {rows.loc['automatic', 'usd_per_session']:.4f} |" in lines["claude-sonnet-4-6"]


def test_a_model_younger_than_the_trace_says_so(trace, tmp_path, capsys):
    old = tmp_path / "old.jsonl"
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    old.write_text("\n".join(json.dumps(line | {"t": line["t"] - 90 * 86_400}) for line in lines))
    words = ("method=[dense]", "outputs=[1]", "utilisations=[0.4]", "plan=false", "draws=1")
    code, text, _ = run(capsys, old, tmp_path, *words)
    assert code == 0
    assert (
        "| claude-sonnet-5-5 |" in text and "its first price is of 2026-09-28, the request is earlier" in text
    )


def test_a_load_of_ones_own(trace, tmp_path, capsys):
    words = (
        "method=[dense]",
        "outputs=[1]",
        "plan=false",
        "draws=2",
        "rents=[1]",
        "claude_models=[claude-sonnet-5]",
    )
    code, text, _ = run(capsys, trace, tmp_path / "some", *words, "sessions_per_day=1000")
    assert code == 0 and "with 1,000 sessions per day and device" in text
    rows = pd.read_csv(tmp_path / "some" / "rows.csv").set_index("how")
    rent = 24 * cost.hardware("h100_sxm").usd_per_hour
    assert rows.loc["dense", "usd_per_session"] == pytest.approx(rent / 1000, rel=1e-4)
    assert rows.loc["dense", "busy"] == pytest.approx(1000 * rows.loc["dense", "device_s"] / 86_400, rel=1e-4)
    code, text, _ = run(capsys, trace, tmp_path / "many", *words, "sessions_per_day=1000000")
    assert code == 0
    line = next(line for line in text.splitlines() if line.startswith("| model | dense |"))
    assert "overloaded: 1,000,000 sessions per day ask for" in line and line.count("|") == 7


def test_rents_name_their_provider(both):
    _, text, _ = both
    assert "at 2.29 USD per hour (Verda, 2026-11-24; others $1.99 to $5.00, May 2026)" in text


def test_the_report_states_limitations_and_sources(both):
    rows, text, out = both
    assert set(rows["basis"]) == {"modelled"}
    assert all(line in text for line in report.LEFT_OUT)
    assert "Quality of the answers, above all" in text
    assert "Tokens counted by: usage" in text
    assert str(out) not in (out / "config.yaml").read_text()
    for name in ("per_session.svg", "per_session.png"):
        assert (out / "figures" / name).stat().st_size > 1000


def test_rent_moves_the_break_even_and_utilisation_decides_whether_there_is_one(trace, tmp_path, capsys):
    words = (
        "method=[dense]",
        "outputs=[1]",
        "plan=false",
        "rents=[1,2]",
        "utilisations=[0.001,0.4]",
        "draws=2",
    )
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
    assert (
        run(capsys, trace, tmp_path, "method=[dense]", "outputs=[1]", "plan=false", "draws=1", rates)[0] == 0
    )
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("how")
    found = rows.loc["dense" + PREFIX]
    assert (found["basis"], rows.loc["dense", "basis"]) == ("measured", "modelled")
    assert found["device_s_alone"] == pytest.approx((21_000 - 4992 - 6992) / 1000 + 120 / 100)


@pytest.mark.parametrize(
    ("layer", "layers", "missing"),
    [("api", {"api"}, "device s"), ("model", {"model"}, "with no cache_control")],
)
def test_one_layer_alone(trace, tmp_path, capsys, layer, layers, missing):
    code, text, _ = run(capsys, trace, tmp_path, f"layer={layer}", "method=[dense]", "plan=false", "draws=1")
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
        (["draws=0"], "draws: 0 is not allowed"),
        (["sessions_per_day=0"], "sessions_per_day: 0 is not allowed"),
        (["claude_models=[]"], "claude_models: empty"),
        (["claude_models=[claude-sonet-5]"], "claude-sonnet-5"),
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
