"""A mode sets what its source sets, except for what the user gives, wherever the mode is given."""

import itertools

import pytest
import torch
import yaml

import kvbench
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.methods import build, filled, registry
from kvbench.runs import config

# kvpress 0.5.5: SnapKVPress, PyramidKVPress, AdaKVPress(SnapKVPress) and ChunkKVPress(SnapKVPress)
KVPRESS = {
    "snapkv": {"window": 64, "pool": "avg", "kernel": 5},
    "pyramidkv": {"window": 64, "pool": "avg", "kernel": 5, "beta": 20},
    "adakv": {"window": 64, "pool": "avg", "kernel": 5, "alpha": 0.2},
    "chunkkv": {"window": 64, "chunk": 20, "kernel": 5},
}
PAPER = {
    "snapkv": {"window": 32, "pool": "max", "kernel": 7},
    "pyramidkv": {"window": 8, "pool": "max", "kernel": 7, "beta": 20},
    "adakv": {"window": 32, "pool": "max", "kernel": 7, "alpha": 0.2},
    "chunkkv": {"window": 32, "chunk": 10, "kernel": 1},
}
BY_MODE = {name: cls for name, cls in registry().items() if cls.source_defaults}


def used(entry):
    """The parameters in the row of a cell."""
    return build(entry).describe()["params"]


def shipped_run(*overrides):
    words = ["experiment=quickstart", "method=[snapkv,chunkkv,pyramidkv,adakv]", *overrides]
    return config.load(words)


@pytest.mark.parametrize("name", KVPRESS)
def test_a_mode_sets_the_defaults_of_its_source(name):
    for entry, expected in (({}, PAPER), ({"mode": "paper"}, PAPER), ({"mode": "kvpress"}, KVPRESS)):
        assert expected[name].items() <= used({"method": name, **entry}).items()
    # of shipped options too, whose entries hold every parameter
    cfg = shipped_run(f"method.{name}.mode=kvpress")
    assert KVPRESS[name].items() <= used(cfg.method[name]).items()
    for other in set(PAPER) - {name}:
        assert PAPER[other].items() <= used(cfg.method[other]).items()


def test_every_method_with_a_mode_of_a_source_is_compared():
    # RocketKV's baseline is SnapKV with another budget
    assert set(BY_MODE) == {*KVPRESS, "snapkv_rocketkv"}


@pytest.mark.parametrize("name", KVPRESS)
def test_what_is_given_wins_over_the_mode(name):
    cfg = shipped_run(f"method.{name}.mode=kvpress", f"method.{name}.window=32")
    expected = KVPRESS[name] | {"window": 32}
    assert expected.items() <= used(cfg.method[name]).items()
    assert expected.items() <= used({"method": name, "mode": "kvpress", "window": 32}).items()
    # the paper's own value counts as given, too
    assert used({"method": name, "mode": "kvpress", "kernel": PAPER[name]["kernel"]})["window"] == 64
    assert BY_MODE[name](mode="kvpress", window=32).params()["window"] == 32  # type: ignore[call-arg]


def test_variants_and_ablations():
    cfg = config.load(
        [
            "experiment=quickstart", "method=[snapkv]", "ablate.snapkv.mode=[paper,kvpress]",
            "ablate.composed.eviction.mode=[paper,kvpress]",
            "variants={peer: {method: chunkkv, mode: kvpress}, composed: {eviction: chunkkv, selection: quest}}",
        ]
    )  # fmt: skip
    assert PAPER["snapkv"].items() <= used(cfg.method["snapkv[mode=paper]"]).items()
    assert KVPRESS["snapkv"].items() <= used(cfg.method["snapkv[mode=kvpress]"]).items()
    assert KVPRESS["chunkkv"].items() <= used(cfg.method["peer"]).items()
    eviction = used(cfg.method["composed[eviction.mode=kvpress]"])["eviction"]
    assert KVPRESS["chunkkv"].items() <= eviction.items()


def test_a_saved_configuration_and_a_rerun_say_what_was_used():
    cfg = shipped_run("method.snapkv.mode=kvpress", "method.chunkkv.mode=kvpress", "method.chunkkv.window=16")
    text = config.resolved_yaml(cfg)
    saved = yaml.safe_load(text)["method"]
    assert KVPRESS["snapkv"].items() <= saved["snapkv"].items()
    assert (KVPRESS["chunkkv"] | {"window": 16}).items() <= saved["chunkkv"].items()
    assert None not in itertools.chain(*(entry.values() for entry in saved.values()))
    again = config.from_yaml(text)
    assert [used(entry) for entry in again.method.values()] == [used(entry) for entry in cfg.method.values()]


def test_a_saved_configuration_of_earlier_code_keeps_its_numbers():
    saved = {
        "method": "snapkv",
        "mode": "kvpress",
        "heads": "kv_head",
        "window": 32,
        "pool": "max",
        "kernel": 7,
    }
    assert used(saved) == {key: value for key, value in saved.items() if key != "method"}


def test_filled_reaches_parts_and_leaves_other_nulls_alone():
    entry = {
        "eviction": {"name": "snapkv", "mode": "kvpress", "window": None}, "selection": "quest", "keep": None,
    }  # fmt: skip
    assert filled(entry) == entry | {"eviction": {"name": "snapkv", "mode": "kvpress", "window": 64}}


@pytest.mark.parametrize("folder", ["method", "experiment"])
def test_no_shipped_file_gives_what_a_mode_sets(folder):
    def given(data):
        if isinstance(data, dict):
            for name, value in data.items():
                method = value.get("method", name) if isinstance(value, dict) else None
                cls = BY_MODE.get(method) if isinstance(method, str) else None
                if cls is not None:
                    yield from ((name, key) for key in value if key in cls.source_defaults["paper"])
                yield from given(value)

    for name in Groups().options(folder):
        file = Groups().file(folder, name)
        data = yaml.safe_load(file.read_text()) if file is not None else {}
        assert not list(given({name: data})), f"{folder}/{name}"


@pytest.mark.parametrize("name", KVPRESS)
@pytest.mark.parametrize("settings", [{}, {"window": 24}])
def test_kept_tokens_of_a_mode_are_those_of_its_settings_spelt_out(name, settings):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, 400, 16, generator=generator) for heads in (4, 2, 2))
    spelt = {"mode": "kvpress", **KVPRESS[name], **settings}
    kept, expected = (
        kvbench.keep(name, q, k, v, ratio=0.4, layer=1, num_layers=4, **params)
        for params in ({"mode": "kvpress", **settings}, spelt)
    )
    assert all(torch.equal(*pair) for pair in zip(kept[0], expected[0], strict=True))
    papers = kvbench.keep(name, q, k, v, ratio=0.4, layer=1, num_layers=4, **PAPER[name])
    assert [row.tolist() for row in kept[0]] != [row.tolist() for row in papers[0]]


def test_settings_that_a_score_does_not_use_do_not_depend_on_the_mode():
    modes = [
        used({"method": "adakv", "scorer": "expected_attention", "mode": mode})
        for mode in ("paper", "kvpress")
    ]
    assert modes[0] | {"mode": "kvpress"} == modes[1]


def test_null_and_unknown_modes():
    assert used({"method": "snapkv", "mode": "kvpress", "window": None})["window"] == 64
    data = compose(["experiment=quickstart", "method=[snapkv]", "method.snapkv.window=null"]).data
    assert used(data["method"]["snapkv"])["window"] == 32
    with pytest.raises(UserError, match=r"^mode: there is no choice 'official'; known: paper, kvpress$"):
        BY_MODE["snapkv"](mode="official")  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^method.sinks: None is not a whole number$"):
        build({"method": "streaming_llm", "sinks": None})
