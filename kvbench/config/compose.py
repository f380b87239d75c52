"""Hydra composition: experiment, overrides and the user's own folders into plain data.

Hydra's errors span lines and speak of structs and defaults lists; here each becomes one line for the user.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from kvbench.config.errors import UserError
from kvbench.config.typed import unknown

RUNS = Path("results/runs")
_ADVICE = "not of the form key=value, as experiment=quickstart; quote values that hold blanks, commas or ="
# keys under which a user may add names of his own without Hydra's `+`
_OPEN = ("variants", "ablate", "setups", "measured")
# configuration groups of which one option is chosen, and of which several can be
_ONE, _SEVERAL = ("experiment", "model", "budget", "serving"), ("task", "method")


@dataclass(frozen=True)
class Composed:
    """An experiment as composed, not yet validated."""

    name: str
    data: dict[str, Any]
    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...]


def run_dir(composed: Composed) -> Path:
    """The folder of the run: the user's, else one per experiment, so that the same command resumes.

    Raises:
        UserError: it is no folder that can be written.
    """
    given = composed.data.get("run_dir")
    if given is not None and (not isinstance(given, str) or not given):
        raise UserError(f"run_dir: {given!r} is not the path of a folder")
    folder = Path(given or RUNS / composed.name)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        # tried, because file systems as /proc claim that root can write
        with TemporaryFile(dir=there):
            return folder
    except OSError as problem:
        raise UserError(f"run_dir: cannot write in {there}") from problem


def experiment_keys(composed: Composed, cls: type) -> dict[str, Any]:
    """The composed keys that are fields of a dataclass, with `run_dir` resolved.

    Args:
        composed: the composed experiment.
        cls: the experiment's dataclass.

    Raises:
        UserError: a key that is neither a field nor one that all experiments share (method, budget ...).
    """
    names = {field.name for field in dataclasses.fields(cls)}
    text = importlib.resources.files("kvbench.conf").joinpath("config.yaml").read_text(encoding="utf-8")
    shared = {*yaml.safe_load(text), *_ONE, *_SEVERAL}
    for name in composed.data:
        if name not in names | shared:
            raise unknown(name, name, sorted(names), "key")
    chosen = {name: value for name, value in composed.data.items() if name in names}
    return {**chosen, "run_dir": str(run_dir(composed))}


def options(group: str, config_dirs: Sequence[str] = ()) -> list[str]:
    """The names that a configuration group offers, those of the user's folders included."""
    folders = [root.joinpath(group) for root in _roots(config_dirs)]
    entries = [entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return sorted({name.removesuffix(".yaml") for name in entries if name.endswith(".yaml")})


def file(group: str, name: str, config_dirs: Sequence[str] = ()) -> Traversable:
    """The file of one of the options."""
    files = [root.joinpath(group, f"{name}.yaml") for root in _roots(config_dirs)]
    return next(file for file in files if file.is_file())


def _roots(config_dirs: Sequence[str]) -> list[Traversable]:
    return [importlib.resources.files("kvbench.conf"), *map(Path, config_dirs)]


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Composed:
    """Compose `experiment=NAME` and the other overrides.

    `task.KEY=VALUE`, where KEY names no task, is for every chosen task that has the key. So is `KEY: VALUE`
    directly under `task` in an experiment, for tasks whose KEY is not set otherwise.

    Raises:
        UserError: no experiment, an override that cannot be read, or names nothing that exists.
    """
    dirs = checked_dirs(config_dirs)
    parsed = _parse(overrides)
    own = [line for item in parsed if not _for_every_task(item, dirs) for line in _lines(item)]
    data, name = _hydra(own, dirs)
    shared = _every_task(data, dirs)
    lines = list(_shared_lines(shared, data, dirs)) if shared else []
    for item in parsed:
        key = _for_every_task(item, dirs)
        lines += _spread(key, item, data) if key else _lines(item)
    if lines != own:
        data, name = _hydra(lines, dirs)
    if not name:
        known = ", ".join(options("experiment", dirs))
        raise UserError(f"experiment: missing, give experiment=NAME; known: {known}")
    if "experiment" in data:
        raise UserError(f"experiment={name}: its file does not begin with the line '# @package _global_'")
    for key in shared:
        del data["task"][key]
    return Composed(name, data, tuple(overrides), tuple(dirs))


def checked_dirs(config_dirs: Sequence[str]) -> list[str]:
    """The user's folders as absolute paths.

    Raises:
        UserError: there is no such folder, or it hides a file of kvbench.
    """
    return [_checked_dir(folder) for folder in config_dirs]


def _checked_dir(folder: str) -> str:
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--config-dir: there is no folder {folder!r}")
    shipped = importlib.resources.files("kvbench.conf")
    for path in sorted(root.glob("*/*.yaml")):
        name = path.relative_to(root)
        # Hydra would silently take ours
        if shipped.joinpath(*name.parts).is_file():
            raise UserError(f"--config-dir: {path} has the name of a file of kvbench ({name}); rename it")
    return str(root.resolve())


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for text in overrides:
        try:
            item = OverridesParser.create().parse_override(text)
        except HydraException:
            raise UserError(f"{text}: {_ADVICE}") from None
        key = item.key_or_group
        if not key:
            raise UserError(f"{text}: {_ADVICE}")
        if item.is_sweep_override():
            raise UserError(f"{key}: several values are written as a list: {key}=[a,b]")
        if key in (*_ONE, *_SEVERAL) and not item.is_delete():
            _check_choice(key, item.value())
        parsed.append(item)
    return parsed


def _check_choice(group: str, value: Any) -> None:
    """Hydra would speak of config groups, or merge a set of keys."""
    names = value if isinstance(value, list) and group in _SEVERAL else [value]
    for name in names:
        if not isinstance(name, str | QuotedString):
            form = f"{group}=[NAME,NAME]" if group in _SEVERAL else f"{group}=NAME"
            form += " or budget.tokens=[...]" if group == "budget" else ""
            given = "null" if name is None else name
            raise UserError(
                f"{group}: {given} is not a name, give {form}; known: {', '.join(options(group))}"
            )


def _lines(item: Override) -> list[str]:
    text, key = str(item.input_line), item.key_or_group
    if key.split(".")[0] not in _OPEN or text[0] in "+~":
        return [text]
    # Hydra would merge, so that nothing could be taken away
    return [f"~{key}", f"+{text}"] if key in _OPEN else [f"++{text}"]


def _for_every_task(item: Override, dirs: Sequence[str]) -> str | None:
    """KEY of an override `task.KEY=VALUE`, unless KEY is the name of a task."""
    group, _, key = item.key_or_group.partition(".")
    return key if group == "task" and key and "." not in key and key not in options("task", dirs) else None


def _every_task(data: dict[str, Any], dirs: Sequence[str]) -> dict[str, Any]:
    """Settings that an experiment gives directly under `task`."""
    tasks = options("task", dirs)
    entries = data.get("task") or {}
    return {key: value for key, value in entries.items() if not isinstance(value, dict) and key not in tasks}


def _shared_lines(shared: dict[str, Any], data: dict[str, Any], dirs: Sequence[str]) -> Iterator[str]:
    """Those settings as overrides, for each task that has the key and whose value nobody else set."""
    names = options("task", dirs)
    files = {name: yaml.safe_load(file("task", name, dirs).read_text(encoding="utf-8")) for name in names}
    known = sorted({key for entry in files.values() for key in entry})
    for key, value in shared.items():
        if key not in known:
            raise unknown(f"task.{key}", key, [*names, *known], "task or key of a task")
        for label, entry in data["task"].items():
            default = files.get(label, {}).get(key, ...)
            if isinstance(entry, dict) and entry.get(key) == default:
                yield f"task.{label}.{key}={json.dumps(value)}"


def _spread(key: str, item: Override, data: dict[str, Any]) -> list[str]:
    """An override `task.KEY=VALUE` as one for each chosen task that has the key."""
    tasks = {label: entry for label, entry in data.get("task", {}).items() if isinstance(entry, dict)}
    having = [label for label, entry in tasks.items() if key in entry]
    if not having:
        known = [*tasks, *sorted({name for entry in tasks.values() for name in entry})]
        raise unknown(f"task.{key}", key, known, "task or key of a chosen task")
    return [f"task.{label}.{key}={item.get_value_element_as_str()}" for label in having]


def _hydra(lines: Sequence[str], dirs: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Compose; returns the plain data and the name of the experiment."""
    search = ",".join(f"'file://{folder}'" for folder in dirs)
    lines = [f"hydra.searchpath=[{search}]", *lines] if dirs else list(lines)
    try:
        with initialize_config_module("kvbench.conf", version_base="1.3"):
            cfg = hydra_compose("config", overrides=lines, return_hydra_config=True)
        name = cfg.hydra.runtime.choices.get("experiment")
        with open_dict(cfg):
            del cfg["hydra"]
        data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise _no_such_option(error, dirs) from None
    except HydraException as error:
        raise _translate(error, dirs) from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(_one_line(error)) from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}, name


def _no_such_option(error: MissingConfigException, dirs: Sequence[str]) -> UserError:
    group, _, name = (error.missing_cfg_file or "").partition("/")
    if group == "model" and "/" in name:
        return UserError(f"model: {name!r} looks like a folder; give it as model.path={name}")
    return unknown(group, name, options(group, dirs), group)


def _translate(error: HydraException, dirs: Sequence[str]) -> UserError:
    cause = error.__cause__
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return UserError(_one_line(cause or error))
    key, word = str(cause.full_key), str(cause.key)
    group = key.split(".")[0]
    parent = cause.parent_node
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    if key == f"{group}.{word}" and word in options(group, dirs):
        return UserError(f"{key}: {word} is not selected ({group}=[{','.join(siblings)}]); add it there")
    if key == word:
        siblings = sorted({*siblings, "experiment", "method", "task"} - {"hydra"})
    return unknown(key, word, siblings, "key")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"
    return f"config: {' '.join(str(error).split())}"
