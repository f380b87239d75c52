"""Options of the configuration groups: shipped files and registered classes, a user's files and plugins."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench import methods, tasks
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups

# every entry as conf/method and conf/task had it when each option was a file
SHIPPED = json.loads(Path(__file__).with_name("shipped_entries.json").read_text())
PLAIN = "# @package _global_\ndefaults:\n  - override /method: []\n"
PLUGIN = """\
from dataclasses import dataclass, field
from kvbench.methods import register
from kvbench.methods.streaming_llm import StreamingLLM
from kvbench.tasks import Family
from kvbench.tasks import register as task

SIZE = 9


@register("own_sinks")
@dataclass(frozen=True, kw_only=True)
class Own(StreamingLLM):
    '''Sinks of my own. And more.'''

    sinks: int = SIZE
    share: float = field(default=0.5)


@register("own_computed")
@dataclass(frozen=True, kw_only=True)
class Computed(StreamingLLM):
    sinks: int = 3 + 4


@register("own_" + "name")
@dataclass(frozen=True, kw_only=True)
class Named(StreamingLLM):
    pass


@task("own_task")
@dataclass(frozen=True, kw_only=True)
class Mine(Family):
    answers: tuple[str, ...] = ("yes", "no")
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's folder with an experiment without settings; the plugin `own_plugin` is in the working folder."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "plain.yaml").write_text(PLAIN)
    (tmp_path / "own_plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "mine")


def composed(plain: str, *overrides: str) -> dict:
    return compose(["experiment=plain", *overrides], [plain]).data


@pytest.mark.parametrize("group", SHIPPED)
def test_every_shipped_entry_composes_as_when_it_was_a_file(plain: str, group: str) -> None:
    names = list(SHIPPED[group])
    assert set(names) <= set(Groups().options(group))
    found = composed(plain, f"{group}=[{','.join(names)}]")[group]
    assert {name: Groups().entry(group, name) for name in names} == found
    if group == "method":
        found = {name: methods.filled(entry) for name, entry in found.items()}
    assert found == SHIPPED[group]


@pytest.mark.parametrize(("group", "registry"), [("method", methods.registry), ("task", tasks.registry)])
def test_source_and_imported_classes_agree(group: str, registry) -> None:
    shipped = {name: cls for name, cls in registry().items() if cls.__module__.startswith("kvbench.")}
    # native is what dense stores anyway; families without is_task are named by files
    expected = {
        option: name
        for name, cls in shipped.items()
        if name != "native"
        for option in ([name] if getattr(cls, "is_task", True) else [])
        + [f"{name}_{one}" for one in getattr(cls, "names", {})]
    }
    declared = Groups().declared(group)
    assert set(declared) == set(expected)
    composition = {"eviction", "selection", "format", "keep"}
    for name, one in declared.items():
        cls = shipped[expected[name]]
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.name not in composition}
        if name != expected[name]:
            defaults["name"] = name.removeprefix(f"{expected[name]}_")
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
        assert {key: value for key, value in one.parameters.items() if key not in composition} == lists
        assert one.unread <= composition | ({"name"} if name != expected[name] else set())
        for key in ("family", "source", "budget_meaning", "bytes_formula") if group == "method" else ():
            assert one.constants[key] == getattr(cls, key)


def test_a_parameter_of_a_method_without_a_file(plain: str) -> None:
    entry = composed(plain, "method=[rocketkv]", "method.rocketkv.window=64")["method"]["rocketkv"]
    assert entry == SHIPPED["method"]["rocketkv"] | {"window": 64}
    with pytest.raises(
        UserError, match=r"^method.rocketkv.wndow: there is no key 'wndow' \(did you mean window"
    ):
        composed(plain, "method=[rocketkv]", "method.rocketkv.wndow=64")


def test_a_plugins_method_and_task_compose_without_an_import(plain: str) -> None:
    data = composed(plain, "plugins=[own_plugin]", "method=[own_sinks]", "task=[own_task]")
    assert data["method"] == {
        "own_sinks": {"method": "own_sinks", "sinks": 9, "positions": "reindexed", "share": 0.5}
    }
    assert data["task"]["own_task"]["answers"] == ["yes", "no"]
    assert "own_plugin" not in sys.modules
    groups = Groups((), ("own_plugin",))
    assert groups.description("method", "own_sinks") == "Sinks of my own."
    assert {"own_sinks", "snapkv"} <= set(groups.options("method"))
    with pytest.raises(UserError, match=r"there is no method 'own_snks' \(did you mean own_sinks\?\)"):
        composed(plain, "plugins=[own_plugin]", "method=[own_snks]")
    with pytest.raises(UserError, match=r"^method: there is no method 'own_sinks'"):
        composed(plain, "method=[own_sinks]")


def test_plugins_that_an_experiment_names(plain: str) -> None:
    path = Path(plain) / "experiment" / "plain.yaml"
    path.write_text(PLAIN.replace("method: []", "method: [own_sinks]") + "plugins: [own_plugin]\n")
    assert list(composed(plain)["method"]) == ["own_sinks"]


def test_a_default_that_only_running_the_code_tells(plain: str) -> None:
    words = ("plugins=[own_plugin]", "method=[own_computed]")
    assert composed(plain, *words)["method"]["own_computed"] == {
        "method": "own_computed",
        "positions": "reindexed",
    }
    entry = composed(plain, *words, "method.own_computed.sinks=3")["method"]["own_computed"]
    assert entry["sinks"] == 3


def test_a_users_file_wins_over_the_plugins_class(plain: str) -> None:
    (Path(plain) / "method").mkdir()
    file = Path(plain) / "method" / "own_sinks.yaml"
    file.write_text("# @package method.own_sinks\n# sinks of a file\nmethod: own_sinks\nsinks: 5\n")
    entry = composed(plain, "plugins=[own_plugin]", "method=[own_sinks]")["method"]["own_sinks"]
    assert entry == {"method": "own_sinks", "sinks": 5}
    assert Groups((plain,)).description("method", "own_sinks") == "sinks of a file"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no_such_plugin", None, "plugins: cannot import 'no_such_plugin': there is no such module"),
        ("torn", "def (", "plugins: cannot import 'torn': SyntaxError: "),
    ],
)
def test_a_plugin_that_cannot_be_read(plain: str, name: str, text: str | None, message: str) -> None:
    if text is not None:
        Path(f"{name}.py").write_text(text)
    with pytest.raises(UserError) as error:
        composed(plain, f"plugins=[{name}]", "method=[own]")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["ls", "methods"],
        ["run", "experiment=quikstart"],
        ["run", "experiment=quickstart", "method=[rocketk]"],
        ["run", "experiment=quickstart", "method.snapkv.wndow=3"],
        ["run", "experiment=quickstart", "task=[ruler_cw]"],
    ],
)
def test_names_and_mistakes_import_no_torch(argv: list[str]) -> None:
    code = f"import sys, kvbench.cli.main\nkvbench.cli.main.main({argv})\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stdout + done.stderr
