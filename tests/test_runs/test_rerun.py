"""The command that reruns a cell, read back by the parser it is meant for."""

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvbench.runs import config
from kvbench.runs.config import RunConfig
from kvbench.runs.rerun import Rerun, text

RECORD = {
    "cell": "0123456789abcdef",
    "task": "ruler_niah_single_2",
    "length": 1024,
    "sample": 2,
    "seed": 1,
    "protocol": "query_agnostic",
}
OVERRIDES = [
    "experiment=quickstart",
    "task.length=[1024,2048]",
    "method=[snapkv,rocketkv]",
    "method.rocketkv.window=64",
    "ablate.snapkv.kernel=[5,7]",
    "variants.both={eviction: {name: chunkkv}, selection: quest}",
    "budget.ratio=[0.1]",
    "seeds=[0,1]",
    "model.dtype=float32",
    "kl=false",
    "run_dir=elsewhere",
]


def repeated(cfg: RunConfig, **record: Any) -> RunConfig:
    words = shlex.split(Rerun(cfg).command(RECORD | record))
    assert words[:2] == ["kvbench", "run"]
    return config.load(words[2:])


@pytest.mark.parametrize("label", ["dense", "rocketkv", "snapkv[kernel=5]", "both"])
def test_one_cell_and_what_surrounds_it(label: str) -> None:
    cfg = config.load(OVERRIDES)
    again = repeated(cfg, method=label, budget_requested="" if label == "dense" else "128")
    assert again.method == {label: cfg.method.get(label, {"method": "dense"})}
    assert again.task == {"ruler_niah_single_2": cfg.task["ruler_niah_single_2"] | {"length": [1024]}}
    assert again.budget.tokens == (() if label == "dense" else (128,))
    assert (again.budget.ratio, again.seeds, again.protocol, again.limit) == (
        (),
        (1,),
        ("query_agnostic",),
        3,
    )
    assert (again.model, again.kl) == (cfg.model, False)
    assert again.run_dir == "results/runs/cell-0123456789abcdef"


def test_a_ratio() -> None:
    again = repeated(config.load(OVERRIDES), method="rocketkv", budget_requested="0.1x")
    assert (again.budget.tokens, again.budget.ratio) == ((), (0.1,))


@pytest.mark.parametrize(
    "value",
    [
        1,
        0.5,
        True,
        None,
        "",
        "a b",
        "it's",
        "back\\slash",
        "end\\",
        "1",
        [1, "x,y"],
        {"a": {"b[c=1,d]": [1]}},
    ],
)
def test_values_survive_hydras_grammar(value: Any) -> None:
    assert OverridesParser.create().parse_override(f"key={text(value)}").value() == value
