"""Composition and validation: what is accepted, and the one line for everything that is not."""

import dataclasses
import sys
from pathlib import Path

import pytest
import yaml

from kvbench import methods, tasks
from kvbench.cli.main import main
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.config.typed import build
from kvbench.models.load import ModelConfig
from kvbench.runs import config
from kvbench.runs.config import RunConfig

CONF = Path(__file__).parents[2] / "conf"
GROUPS = Groups()
EXPERIMENT = """\
# @package _global_
defaults:
  - override /task: [needle]
  - override /method: [dense, snapkv]
task: {samples: 3, wording: ruler}
method: {snapkv: {window: 16}}
variants: {wide: {method: snapkv, kernel: 63}}
"""
NEEDLE = "# @package task.needle\nfamily: niah\nlength: [2048]\nsamples: 20\nwording: own\n"
OWN = "# @package task.own\nfamily: jsonl\npath: null\nsamples: 20\n"


@pytest.fixture
def user_dir(tmp_path: Path) -> Path:
    """A user's configuration folder with one experiment and two tasks."""
    files = {"experiment/mine": EXPERIMENT, "task/needle": NEEDLE, "task/own": OWN}
    for name, text in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def load(user_dir: Path):
    """`load("limit=2", ...)`: the user's experiment with overrides."""

    def load(*overrides: str) -> RunConfig:
        return config.load(["experiment=mine", *overrides], [str(user_dir)])

    return load


# --- what the package ships


@pytest.mark.parametrize("name", GROUPS.options("experiment"))
def test_every_experiment_composes(name: str) -> None:
    composed = config.compose([f"experiment={name}"])
    entries = composed.data.get("task", {}).values()
    # what the user gives
    given = ["task.path=questions.jsonl"] if any("path" in entry for entry in entries) else []
    if any("data" in entry for entry in entries):
        given = ["task.data=rows"]
    if any(entry.get("shots", 0) > 8 for entry in entries):
        given.append("task.train=rows")
    if given:
        composed = config.compose([f"experiment={name}", *given])
    if composed.data["kind"] in ("accuracy", "efficiency", "bench"):
        cfg = config.validate(composed)
        assert cfg.run_dir == f"results/runs/{name}"
        assert config.from_yaml(config.resolved_yaml(cfg)) == cfg


@pytest.mark.parametrize("name", GROUPS.options("experiment"))
def test_every_experiment_file_begins_with_its_command(name: str) -> None:
    package, command, purpose = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[:3]
    assert package == "# @package _global_"
    assert command.startswith(f"# kvbench run experiment={name}")
    assert purpose.startswith("# ")


@pytest.mark.parametrize(
    "file", sorted(CONF.glob("method/*")) + sorted(CONF.glob("task/*")), ids=lambda f: f.stem
)
def test_every_method_and_task_file_places_itself(file: Path) -> None:
    assert file.read_text().startswith(f"# @package {file.parent.name}.{file.stem}\n")


@pytest.mark.parametrize("name", GROUPS.options("method"))
def test_every_method_builds(name: str) -> None:
    assert methods.build(GROUPS.entry("method", name)).describe()


@pytest.mark.parametrize("name", GROUPS.options("task"))
def test_every_task_builds(name: str) -> None:
    entry = GROUPS.entry("task", name)
    if "path" in entry:
        entry["path"] = "questions.jsonl"
    if "data" in entry:
        entry["data"] = "rows.jsonl"
    if entry.get("family") == "lm_eval":
        entry["name"] = "gsm8k_cot"
    assert tasks.build(name, entry).label == name


@pytest.mark.parametrize("name", GROUPS.options("model"))
def test_every_model_file_builds(name: str) -> None:
    assert build(ModelConfig, GROUPS.entry("model", name), "model").name == name


@pytest.mark.parametrize("name", GROUPS.options("budget"))
def test_every_budget_file_builds(name: str) -> None:
    build(config.BudgetConfig, GROUPS.entry("budget", name), "budget")


def test_primary_config_spells_out_the_defaults() -> None:
    data = yaml.safe_load((CONF / "config.yaml").read_text())
    for field in dataclasses.fields(RunConfig):
        if field.name in ("decode", "efficiency", "snapshots"):
            assert build(type(field.default), data[field.name]) == field.default
            assert set(data[field.name]) == {f.name for f in dataclasses.fields(field.default)}
        elif field.name in data and field.default is not dataclasses.MISSING:
            value = data[field.name]
            assert (tuple(value) if isinstance(value, list) else value) == field.default


# --- what the user may write


def test_an_experiment_with_nothing_else(load) -> None:
    cfg = load()
    assert (cfg.name, cfg.kind, cfg.run_dir) == ("mine", "accuracy", "results/runs/mine")
    assert cfg.task == {"needle": {"family": "niah", "length": [2048], "samples": 3, "wording": "ruler"}}
    assert list(cfg.method) == ["dense", "snapkv", "wide"]
    assert cfg.method["snapkv"] == methods.filled(GROUPS.entry("method", "snapkv") | {"window": 16})
    assert cfg.method["wide"] == {"method": "snapkv", "kernel": 63}


def test_overrides_win_over_the_experiment(load) -> None:
    cfg = load(
        "method=[rocketkv,chunkkv]",
        "method.rocketkv.window=64",
        "budget.tokens=[64,128]",
        "budget.ratio=0.1",
        "model.path=/some/model",
        "kl=false",
        "task=[needle]",
        "seeds=[0,1]",
        "protocol=query_agnostic",
        "limit=2",
        "run_dir=/elsewhere",
        "decode.ignore_eos=true",
    )
    assert list(cfg.method) == ["rocketkv", "chunkkv", "wide"]
    assert cfg.method["rocketkv"]["window"] == 64
    assert cfg.budget == config.BudgetConfig(tokens=(64, 128), ratio=(0.1,))
    assert (cfg.model.path, cfg.kl, cfg.seeds, cfg.limit) == ("/some/model", False, (0, 1), 2)
    assert (cfg.protocol, cfg.run_dir, cfg.decode.ignore_eos) == (("query_agnostic",), "/elsewhere", True)


def test_an_experiments_settings_of_names_that_are_not_chosen_are_dropped(load) -> None:
    assert list(load("method=quest").method) == ["quest", "wide"]
    assert load("task=own", "task.path=x").task == {"own": {"family": "jsonl", "path": "x", "samples": 3}}


def test_a_setting_for_every_task_and_one_for_one_task(load) -> None:
    cfg = load("task=[needle,own]", "task.samples=9", "task.needle.samples=2", "task.path=/a/b.jsonl")
    assert cfg.task["needle"]["samples"] == 2
    assert cfg.task["own"] == {"family": "jsonl", "path": "/a/b.jsonl", "samples": 9}
    later = load("task=[needle,own]", "task.needle.samples=2", "task.samples=9", "task.path=x")
    assert later.task["needle"]["samples"] == 9
    assert load("task=own", "task.path='/a b/c,d=e.jsonl'").task["own"]["path"] == "/a b/c,d=e.jsonl"


def test_an_experiments_setting_for_every_task_yields_to_one_for_a_task(load, user_dir: Path) -> None:
    assert load("task.needle.samples=2").task["needle"]["samples"] == 2
    path = user_dir / "experiment" / "mine.yaml"
    path.write_text(EXPERIMENT.replace("samples: 3", "samples: 3, needle: {samples: 4}"))
    assert load().task["needle"]["samples"] == 4
    assert load("task.samples=5").task["needle"]["samples"] == 5


def test_variants_are_added_or_replaced(load) -> None:
    added = load("variants.both={eviction: {name: chunkkv}, selection: {name: quest}}")
    assert list(added.method) == ["dense", "snapkv", "wide", "both"]
    replaced = load("variants={narrow: {method: snapkv, kernel: 3}}")
    assert list(replaced.method) == ["dense", "snapkv", "narrow"]
    assert list(load("variants={}").method) == ["dense", "snapkv"]


@pytest.mark.parametrize(
    "override",
    [
        "ablate.snapkv.kernel=[5,7]",
        "ablate.method.snapkv.kernel=[5,7]",
        "ablate={method.snapkv.kernel: [5,7]}",
    ],
)
def test_ablation_replaces_the_method_by_a_product(load, override: str) -> None:
    cfg = load(override, "ablate.wide.window=[8]")
    assert list(cfg.method) == ["dense", "snapkv[kernel=5]", "snapkv[kernel=7]", "wide[window=8]"]
    expected = GROUPS.entry("method", "snapkv") | {"window": 16, "kernel": 5}
    assert cfg.method["snapkv[kernel=5]"] == methods.filled(expected)
    assert cfg.method["wide[window=8]"] == {"method": "snapkv", "kernel": 63, "window": 8}


def test_ablation_of_two_settings_and_of_a_part(load) -> None:
    cfg = load(
        "variants={b: {eviction: {name: snapkv}, selection: quest}}",
        "method=[]",
        "ablate.b.eviction.window=[8,16]",
        "ablate.b.selection.page=[4]",
        "ablate.budget.tokens=[9]",
    )
    assert list(cfg.method) == [f"b[eviction.window={w},selection.page=4]" for w in (8, 16)]
    assert cfg.method["b[eviction.window=8,selection.page=4]"] == {
        "eviction": {"name": "snapkv", "window": 8},
        "selection": {"name": "quest", "page": 4},
    }
    assert cfg.budget.tokens == (9,)


def test_yaml_of_a_run_reads_back(load) -> None:
    cfg = load("ablate.snapkv.kernel=[5,7]", "budget.ratio=[0.1,0.25]", "model.path=/some/model")
    assert config.from_yaml(config.resolved_yaml(cfg)) == cfg


def test_plugins_register_methods(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_method.py").write_text(
        "from dataclasses import dataclass\n"
        "from kvbench.methods import register\n"
        "from kvbench.methods.streaming_llm import StreamingLLM\n"
        "@register('own_sinks')\n@dataclass(frozen=True, kw_only=True)\n"
        "class Own(StreamingLLM):\n    sinks: int = 9\n"
    )
    with pytest.raises(UserError, match="own_sinks"):
        load("variants.a={method: own_sinks}")
    try:
        assert "a" in load("variants.a={method: own_sinks}", "plugins=[own_method]").method
        # neither a file nor a variant is needed
        chosen = ("method=[own_sinks]", "plugins=[own_method]")
        assert load(*chosen, "method.own_sinks.sinks=3").method["own_sinks"]["sinks"] == 3
        with pytest.raises(UserError, match=r"snks: there is no key 'snks' \(did you mean sinks\?\)"):
            load(*chosen, "method.own_sinks.snks=3")
        # a default that only running the code tells: the class checks the keys
        file = tmp_path / "own_method.py"
        file.write_text(file.read_text().replace("sinks: int = 9", "sinks: int = 4 + 5"))
        with pytest.raises(UserError, match=r"snks: there is no key 'snks' \(did you mean sinks\?\)"):
            load(*chosen, "method.own_sinks.snks=3")
    finally:
        sys.modules["kvbench.methods.registry"]._CLASSES.pop("own_sinks", None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/0", r"ZeroDivisionError: division by zero \(.*/broken_plugin.py, line 1\)$"),
        ("def (", r"SyntaxError: [^\n]*\(broken_plugin.py, line 1\)$"),
    ],
)
def test_a_broken_plugin_is_one_line(load, tmp_path, monkeypatch, text: str, message: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_plugin.py").write_text(text)
    with pytest.raises(UserError, match="^plugins: cannot import 'broken_plugin': " + message):
        load("plugins=[broken_plugin]")


# --- what the user may get wrong

MISTAKES = {
    # names that do not exist
    "experiment=quikstart": "experiment: there is no experiment 'quikstart' (did you mean quickstart?)",
    "method=chunkv": "method: there is no method 'chunkv' (did you mean chunkkv?); known: ",
    "method=[dense,chunkv]": "method: there is no method 'chunkv' (did you mean chunkkv?)",
    "task=[needel]": "task: there is no task 'needel' (did you mean needle?); known: ",
    "model=lama31_8b": "model: there is no model 'lama31_8b' (did you mean llama31_8b?); known: llama31_8b, ",
    "model=/a/folder": "model: '/a/folder' looks like a folder; give it as model.path=/a/folder",
    "budget=64": "budget: 64 is not a name, give budget=NAME or budget.tokens=[...]; known: none, ratio, ",
    "budget=[64]": "budget: [64] is not a name, give budget=NAME or budget.tokens=[...]; known: none, ",
    "model=null": "model: null is not a name, give model=NAME; known: llama31_8b, ",
    "method=3": "method: 3 is not a name, give method=[NAME,NAME]; known: adakv, ",
    "method={}": "method: {} is not a name, give method=[NAME,NAME]; known: adakv, ",
    "experiment=null": "experiment: null is not a name, give experiment=NAME; known: ",
    "budget=tokns": "budget: there is no budget 'tokns' (did you mean tokens?)",
    # keys that do not exist
    "experment=quickstart": "experment: there is no key 'experment' (did you mean experiment?); known: ",
    "methd=[snapkv]": "methd: there is no key 'methd' (did you mean method?)",
    "bugdet.tokens=[64]": "bugdet: there is no key 'bugdet' (did you mean budget?)",
    "budget.token=[64]": "budget.token: there is no key 'token' (did you mean tokens?); known: tokens, ratio",
    "method.snapkv.wndow=3": "method.snapkv.wndow: there is no key 'wndow' (did you mean window?); known: ",
    "+method.snapkv.wndow=3": "method.snapkv.wndow: there is no key 'wndow' (did you mean window?); known: ",
    "method.chunkkv.chunk=3": "method.chunkkv: chunkkv is not selected (method=[dense,snapkv]); ",
    "task.sample=3": "task.sample: there is no task or key of a chosen task 'sample' (did you mean ",
    "task.needle.sample=3": "task.needle.sample: there is no key 'sample' (did you mean samples?)",
    "model.dtyp=float32": "model.dtyp: there is no key 'dtyp' (did you mean dtype?)",
    "kl.x=3": "kl.x: there is no key 'x'",
    "+foo=3": "foo: there is no key 'foo'; known: name, kind, model, ",
    "variants.wide.window.x=3": "method.wide.window: {'x': 3} is not a whole number",
    # values
    "budget.tokens=[0]": "budget.tokens: 0 is not allowed, give positive whole numbers",
    "budget.tokens=-64": "budget.tokens: -64 is not allowed, give positive whole numbers",
    "budget.tokens=[64.5]": "budget.tokens: 64.5 is not a whole number",
    "budget.tokens=[lots]": "budget.tokens: 'lots' is not a whole number",
    "budget.tokens=[64,64]": "budget.tokens: 64 is given twice",
    "method=[snapkv,quest,snapkv]": "method: snapkv is given twice",
    "task=[needle,needle]": "task: needle is given twice",
    "ablate.method.snapkv.window=[8,16,8]": "ablate.method.snapkv.window: 8 is given twice",
    "task.samples=null": "task.needle.samples: null is not allowed, give a positive number",
    "budget.ratio=[0]": "budget.ratio: 0.0 is not allowed, give fractions above 0 and up to 1",
    "budget.ratio=[1.01]": "budget.ratio: 1.01 is not allowed, give fractions above 0 and up to 1",
    "budget.ratio=half": "budget.ratio: 'half' is not a number",
    "budget=none": "budget: snapkv needs one, give budget.tokens=[...] or budget.ratio=[...]",
    "run_dir=3": "run_dir: 3 is not the path of a folder",
    "run_dir=''": "run_dir: '' is not the path of a folder",
    "run_dir=/etc/passwd/run": "run_dir: cannot write in /etc/passwd",
    "budget.ratio=[nan]": "budget.ratio: nan is not a finite number",
    "limit=0": "limit: 0 is not allowed, give a positive whole number or null",
    "limit=few": "limit: 'few' is not a whole number",
    "limit=true": "limit: True is not a whole number",
    "limit=???": "limit: ",
    "limit=${foo}": "limit: Interpolation key 'foo' not found",
    "seeds=[-1]": "seeds: -1 is not allowed, give 0 or positive whole numbers",
    "seeds=[]": "seeds: empty, give seeds=[...]",
    "kl=maybe": "kl: 'maybe' is not true or false",
    "protocol=query_awar": "protocol: there is no choice 'query_awar' (did you mean query_aware?); ",
    "model.dtype=fp8": "model.dtype: there is no choice 'fp8'; known: auto, float32, bfloat16, float16",
    "model.device=tpu": "model.device=tpu: not one of auto, cpu, cuda, cuda:N",
    "decode.block_rows=0": "decode.block_rows: 0 is not allowed",
    "decode.first_token=late": "decode.first_token: there is no choice 'late'; known: compressed, dense",
    "efficiency.batch=[0]": "efficiency.batch: 0 is not allowed",
    "efficiency.batch=[]": "efficiency.batch: empty, give efficiency.batch=[...]",
    "efficiency.steps=0": "efficiency.steps: 0 is not allowed",
    "efficiency.warmup=-1": "efficiency.warmup: -1 is not allowed",
    "method.snapkv.window=wide": "method.snapkv.window: 'wide' is not a whole number",
    "method.snapkv.mode=papr": "method.snapkv.mode: there is no choice 'papr' (did you mean paper?); known: ",
    "method.snapkv.window=0": "method.snapkv.window: 0 is not allowed, give 1 or more",
    "method.snapkv.kernel=4": "method.snapkv.kernel: 4 is not allowed, give an odd number",
    "method=[quest] | method.quest.page=0": "method.quest.page: 0 is not allowed, give 1 or more",
    "method=[hsa] | method.hsa.pin_recent=-1": "method.hsa.pin_recent: -1 is not allowed, give 0 or more",
    "method=[chunkkv] | method.chunkkv.chunk=0": "method.chunkkv.chunk: 0 is not allowed, give 1 or more",
    "method=[adakv] | method.adakv.window=-1": "method.adakv.window: -1 is not allowed, give 1 or more",
    "method=[rocketkv_mt] | method.rocketkv_mt.window=0": "method.rocketkv_mt.window: 0 is not allowed, give 1 ",
    "method=[random] | method.random.seed=4294967296": "method.random.seed: 4294967296 is not allowed",
    "method=[expected_attention] | method.expected_attention.epsilon=inf": "method.expected_attention.epsilon: inf ",
    "variants.a={method: chunkkv, kepp: 9}": "method.a.kepp: there is no key 'kepp' (did you mean keep?)",
    "variants.a={method: chunkkv, keep: 9}": "method.a.keep: needs an eviction and a selection",
    "variants.a={method: chunkkv, selection: hsa, keep: 0}": "method.a.keep: 0 is not allowed, give 1 or more tokens",
    "method.snapkv=3": "method.snapkv: 3 is not a set of keys",
    "task.needle=3": "task.needle: 3 is not a set of keys",
    "task.length=[512,512]": "task.needle.length: [512, 512] is not allowed, give each only once",
    "task.length=[-5]": "task.needle.length: ",
    "method=[] | variants={}": "method: empty, give method=[...]",
    "method=[rocketkv] | method.rocketkv.split=2": "method.rocketkv.split: 2.0 is neither adaptive nor in ",
    "method=[rocketkv] | method.rocketkv.split=no": "method.rocketkv.split: ",
    "task=own": "task.own.path: give a file",
    # variants and ablations
    "variants=3": "variants: 3 is not a set of keys",
    "variants.wide=3": "variants.wide: 3 is not a set of keys",
    "variants.a={method: snapv}": "method.a.method: there is no method 'snapv' (did you mean snapkv?)",
    "variants.snapkv={method: snapkv}": "variants.snapkv: snapkv is the name of a chosen method",
    "variants.a={method: snapkv, kernel: 63}": "method.a: the same as wide, leave one of them out",
    "variants.a={method: [snapkv]}": "method.a.method: there is no method ['snapkv']",
    "variants.a={eviction: {name: [snapkv]}}": "method.a.eviction.name: there is no eviction ['snapkv']",
    "method=[snapkv] | variants={dense: {method: quest}}": "variants.dense: dense is the reference of every method",
    "variants.a={window: 3}": "method.a: give method: NAME",
    "ablate.snapv.kernel=[3]": "ablate.snapv.kernel: there is no chosen method or variant 'snapv' (",
    "ablate.snapkv.kernel=3": "ablate.snapkv.kernel: 3 is not a list of values",
    "ablate.snapkv.kernl=[3]": "method.snapkv[kernl=3].kernl: there is no key 'kernl' (did you mean kernel?)",
    "ablate.snapkv.kernel=[]": "ablate.snapkv.kernel: empty, give one or more values",
    "ablate.snapkv.kernel.x=[3]": "ablate.snapkv.kernel.x: kernel has no keys",
    "ablate.snapkv=[3]": "ablate.snapkv: give one of its keys, ablate.snapkv.PARAMETER=[...]",
    "ablate.budget=[3]": "ablate.budget: give one of its keys, ablate.budget.tokens=[...]",
    "ablate.snapkv.kernel=[x]": "method.snapkv[kernel=x].kernel: 'x' is not a whole number",
    # form
    "limit": "limit: not of the form key=value",
    "limit=[1": "limit=[1: not of the form key=value",
    "limit=1,2": "limit: several values are written as a list: limit=[a,b]",
    "model.path=a=b": "model.path=a=b: not of the form key=value",
    "budget.tokens.x=3": "config: ",
    "=3": "=3: not of the form key=value",
    "plugins=[3]": "plugins: 3 is not the name of a Python module",
    "plugins=[.x]": "plugins: '.x' is not the name of a Python module",
    "plugins=[no.such.module]": "plugins: cannot import 'no.such.module'",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_the_key(load, mistake: str) -> None:
    with pytest.raises(UserError) as error:
        load(*mistake.split(" | "))
    message = str(error.value)
    assert message.startswith(MISTAKES[mistake])
    assert "\n" not in message


def test_no_experiment_lists_what_there_is() -> None:
    with pytest.raises(
        UserError,
        match=r"^experiment: missing, give its name first, as kvbench run quickstart; known: .*quickstart",
    ):
        config.load([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bugdet: {tokens: [3]}", "bugdet: there is no key 'bugdet' (did you mean budget?)"),
        ("budget: {token: [3]}", "budget.token: there is no key 'token' (did you mean tokens?)"),
        ("defaults: [override /method: [snapv]]", "method: there is no method 'snapv' (did you mean "),
        ("defaults: [override /methd: [snapkv]]", "config: "),
        ("method: {snapv: {window: 3}}", "method.snapv: there is no method 'snapv' (did you mean snapkv?)"),
        ("task: {smples: 3}", "task.smples: there is no task or key of a task 'smples' (did "),
        ("limit: [", "config: while parsing"),
        ("- a list", "config: "),
        (
            "# @package experiment\nlimit: 3",
            "experiment=bad: its file does not begin with the line '# @package",
        ),
        ("kind: acuracy", None),
    ],
)
def test_a_mistake_in_a_users_file(user_dir: Path, text: str, message: str | None) -> None:
    (user_dir / "experiment" / "bad.yaml").write_text(
        f"{text}\n" if "@package" in text else f"# @package _global_\n{text}\n"
    )
    overrides = ["experiment=bad"] + ([] if "defaults" in text else ["task=[needle]"])
    if message is None:
        assert config.load(overrides, [str(user_dir)]).kind == "acuracy"  # the command line knows the kinds
        return
    with pytest.raises(UserError) as error:
        config.load(overrides, [str(user_dir)])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_users_folders(user_dir: Path) -> None:
    with pytest.raises(UserError, match="--config-dir: there is no folder"):
        config.load(["experiment=mine"], [str(user_dir / "nowhere")])
    (user_dir / "method").mkdir()
    (user_dir / "method" / "snapkv.yaml").write_text("# @package method.snapkv\nmethod: snapkv\n")
    with pytest.raises(UserError, match="has the name of a method of kvbench"):
        config.load(["experiment=mine"], [str(user_dir)])
    (user_dir / "method" / "snapkv.yaml").unlink()
    (user_dir / "method" / "deep.yaml").write_text("method: " + "[" * 100_000)
    with pytest.raises(UserError, match=r"^--config-dir: .*/method/deep\.yaml: nested too deeply$"):
        config.load(["experiment=mine"], [str(user_dir)])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "name: x", "[" * 100_000])
def test_a_broken_config_of_a_run(text: str) -> None:
    with pytest.raises(UserError) as error:
        config.from_yaml(text)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_file_system_without_new_files_is_no_folder_for_a_run(capsys):
    # os.access claims that root may write there
    assert main(["run", "experiment=roofline", "run_dir=/proc/run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "kvbench: error: run_dir: cannot write in /proc"


@pytest.mark.parametrize(
    "value", ["${oc.env:KVB_SECRET}", "x/${oc.env:KVB_SECRET,other}", "${oc.env:KVB_UNSET}"]
)
def test_the_environment_is_not_read_into_a_configuration(load, monkeypatch, tmp_path, value):
    monkeypatch.setenv("KVB_SECRET", "hunter2-hunter2")
    with pytest.raises(
        UserError, match=r"^model\.path: \$\{oc\.env:KVB_\w+\} reads the environment"
    ) as error:
        load(f"model.path='{value}'")
    assert "hunter2" not in str(error.value)
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\nkind: accuracy\nmodel:\n  system: '{value}'\n")
    with pytest.raises(UserError, match=r"^model\.system: .* reads the environment"):
        config.load(["mine", "method=[]", "task=[]"], [str(folder.parent)])
