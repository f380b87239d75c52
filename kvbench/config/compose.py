"""Hydra composition: an experiment, overrides and the user's folders become plain data.

Hydra's errors span several lines and mention structs and defaults lists; each becomes one line here.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from omegaconf.resolvers import oc

from kvbench.config.errors import UserError
from kvbench.config.groups import Groups, module_names
from kvbench.config.reading import LimitError, file_text, read_yaml
from kvbench.config.typed import unknown

RUNS = Path("results/runs")
# values of a user's file; Hydra takes a second for each thousand
_MOST = 5000
# characters and levels of brackets of an override
_LONGEST, _DEEPEST = 20_000, 40
_FORM = "not of the form key=value, as experiment=quickstart; quote values with blanks, commas or ="
# keys that accept new names without Hydra's `+`
_EXTENSIBLE = ("variants", "ablate", "setups", "measured", "launch")
# configuration groups with one chosen option, and those with any number
_SINGLE_CHOICE, _MULTIPLE_CHOICE = ("experiment", "model", "budget", "serving"), ("task", "method")


@dataclass(frozen=True)
class Composed:
    """An experiment as composed, not yet validated."""

    name: str
    data: dict[str, Any]
    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...]


def run_dir(composed: Composed) -> Path:
    """The run's folder: the user's choice, else one per experiment, so that the same command resumes.

    Raises:
        UserError: it is not a writable folder.
    """
    given = composed.data.get("run_dir")
    if given is not None and (not isinstance(given, str) or not given):
        raise UserError(f"run_dir: {given!r} is not the path of a folder")
    folder = Path(given or RUNS / composed.name)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        # writing is the only test: os.access lets root write in /proc
        with TemporaryFile(dir=existing):
            return folder
    except OSError as problem:
        raise UserError(f"run_dir: cannot write in {existing}") from problem


def experiment_keys(composed: Composed, cls: type) -> dict[str, Any]:
    """The composed keys that are fields of a dataclass, with `run_dir` resolved.

    Args:
        composed: the composed experiment.
        cls: the experiment's dataclass.

    Raises:
        UserError: a key that is neither a field nor shared by all experiments (method, budget ...).
    """
    names = {field.name for field in dataclasses.fields(cls)}
    text = importlib.resources.files("kvbench.conf").joinpath("config.yaml").read_text(encoding="utf-8")
    shared = {*yaml.safe_load(text), *_SINGLE_CHOICE, *_MULTIPLE_CHOICE}
    for name in composed.data:
        if name not in names | shared:
            raise unknown(name, name, sorted(names), "key")
    chosen = {name: value for name, value in composed.data.items() if name in names}
    return {**chosen, "run_dir": str(run_dir(composed))}


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Composed:
    """Compose `experiment=NAME` and the other overrides.

    `task.KEY=VALUE`, where KEY is not the name of a task, applies to every chosen task that has the key. So does
    `KEY: VALUE` directly under `task` in an experiment, for tasks that do not set KEY otherwise.

    Raises:
        UserError: no experiment, or an override that is malformed or names something that does not exist.
    """
    overrides = named(overrides)
    dirs = checked_dirs(config_dirs)
    parsed = _parse(overrides)
    groups = Groups(dirs, _plugins(parsed, Groups(dirs)))
    with groups.nodes():
        own = [line for item in parsed if not _key_of_every_task(item, groups) for line in _lines(item)]
        data, name = _hydra(own, groups)
        shared = _shared_settings(data, groups)
        lines = list(_shared_lines(shared, data, groups)) if shared else []
        for item in parsed:
            key = _key_of_every_task(item, groups)
            lines += _spread(key, item, data) if key else _lines(item)
        if lines != own:
            data, name = _hydra(lines, groups)
    if not name:
        known = ", ".join(groups.options("experiment"))
        raise UserError(
            f"experiment: missing, give its name first, as kvbench run quickstart; known: {known}"
        )
    if "experiment" in data:
        raise UserError(f"experiment={name}: its file does not begin with the line '# @package _global_'")
    for key in shared:
        del data["task"][key]
    return Composed(name, data, overrides, dirs)


def checked_dirs(config_dirs: Sequence[str]) -> tuple[str, ...]:
    """The user's folders as absolute paths.

    Raises:
        UserError: a folder does not exist, or has an option with the name of a shipped one.
    """
    return tuple(_checked_dir(folder) for folder in config_dirs)


def _checked_dir(folder: str) -> str:
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--config-dir: there is no folder {folder!r}")
    for path in sorted([*root.glob("*.yaml"), *root.glob("*/*.yaml"), *root.glob("*/*/*.yaml")]):
        group = path.parent.name
        # Hydra would silently take the shipped one
        if path.parent.parent == root and path.stem in Groups().options(group):
            raise UserError(f"--config-dir: {path} has the name of a {group} of kvbench; rename it")
        _check_depth(path)
    return str(root.resolve())


def named(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides; a first word that is only a name stands for `experiment=NAME`.

    Raises:
        UserError: both are given.
    """
    first = overrides[0] if overrides else ""
    if not first.isidentifier():
        return tuple(overrides)
    for text in overrides[1:]:
        if text.startswith("experiment="):
            other = text.removeprefix("experiment=")
            raise UserError(f"experiment: given twice, as {first} and {other}; give one")
    return (f"experiment={first}", *overrides[1:])


def _check_depth(path: Path) -> None:
    """Refuse a file that no YAML reader can follow; other faults are told where the file is used."""
    try:
        read_yaml(file_text(path), _MOST)
    except LimitError as error:
        raise UserError(f"--config-dir: {path}: {error}") from None
    except (OSError, ValueError):
        return


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for text in overrides:
        _check_size(text)
        try:
            item = OverridesParser.create().parse_override(text)
        except (HydraException, RecursionError):
            raise UserError(f"{text}: {_FORM}") from None
        key = item.key_or_group
        if not key:
            raise UserError(f"{text}: {_FORM}")
        if item.is_sweep_override():
            raise UserError(f"{key}: several values are written as a list: {key}=[a,b]")
        if key in (*_SINGLE_CHOICE, *_MULTIPLE_CHOICE) and not item.is_delete():
            _check_choice(key, item.value())
        parsed.append(item)
    return parsed


def _check_size(text: str) -> None:
    """Refuses what Hydra's parser would read for minutes, or not at all."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if len(text) > _LONGEST or deepest > _DEEPEST:
        fault = f"more than {_LONGEST:,} characters" if len(text) > _LONGEST else "nested too deeply"
        raise UserError(f"{text.partition('=')[0][:80]}: {fault}; give it in a YAML file (--config-dir)")


def _check_choice(group: str, value: Any) -> None:
    """Refuses what is not a name; Hydra would mention config groups, or merge a set of keys."""
    names = value if isinstance(value, list) and group in _MULTIPLE_CHOICE else [value]
    for name in names:
        if not isinstance(name, str | QuotedString):
            form = f"{group}=[NAME,NAME]" if group in _MULTIPLE_CHOICE else f"{group}=NAME"
            form += " or budget.tokens=[...]" if group == "budget" else ""
            given = "null" if name is None else name
            known = ", ".join(Groups().options(group))
            raise UserError(f"{group}: {given} is not a name, give {form}; known: {known}")
        if names.count(name) > 1:
            raise UserError(f"{group}: {name} is given twice")


def _plugins(parsed: Sequence[Override], groups: Groups) -> tuple[str, ...]:
    """The modules under `plugins`, of the overrides or else of the experiment's file."""
    given = {item.key_or_group: item.value() for item in parsed if not item.is_delete()}
    names = given.get("plugins")
    if names is None and (file := groups.file("experiment", str(given.get("experiment")))):
        try:
            data = read_yaml(file_text(file))
        except (OSError, ValueError):
            return ()
        names = data.get("plugins") if isinstance(data, dict) else None
    return module_names(names)


def _lines(item: Override) -> list[str]:
    text, key = str(item.input_line), item.key_or_group
    if key.split(".")[0] not in _EXTENSIBLE or text[0] in "+~":
        return [text]
    # Hydra would merge, so that no name could be removed
    return [f"~{key}", f"+{text}"] if key in _EXTENSIBLE else [f"++{text}"]


def _key_of_every_task(item: Override, groups: Groups) -> str | None:
    """KEY of an override `task.KEY=VALUE`, unless KEY is the name of a task."""
    group, _, key = item.key_or_group.partition(".")
    return key if group == "task" and key and "." not in key and key not in groups.options("task") else None


def _shared_settings(data: dict[str, Any], groups: Groups) -> dict[str, Any]:
    """Settings that an experiment gives directly under `task`."""
    tasks = groups.options("task")
    entries = data.get("task") or {}
    return {key: value for key, value in entries.items() if not isinstance(value, dict) and key not in tasks}


def _shared_lines(shared: dict[str, Any], data: dict[str, Any], groups: Groups) -> Iterator[str]:
    """Those settings as overrides, for each task that has the key at its default."""
    entries = {name: groups.entry("task", name) for name in groups.options("task")}
    known = sorted({key for entry in entries.values() for key in entry})
    for key, value in shared.items():
        if key not in known:
            raise unknown(f"task.{key}", key, [*entries, *known], "task or key of a task")
        for label, entry in data["task"].items():
            default = entries.get(label, {}).get(key, ...)
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


def _hydra(lines: Sequence[str], groups: Groups) -> tuple[dict[str, Any], str | None]:
    """Compose; returns the plain data and the name of the experiment."""
    search = ",".join(f"'file://{folder}'" for folder in groups.config_dirs)
    lines = [f"hydra.searchpath=[{search}]", *lines] if groups.config_dirs else list(lines)
    try:
        with _without_environment(), initialize_config_module("kvbench.conf", version_base="1.3"):
            cfg = hydra_compose("config", overrides=lines, return_hydra_config=True)
        name = cfg.hydra.runtime.choices.get("experiment")
        with open_dict(cfg):
            del cfg["hydra"]
        with _without_environment():
            data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise _no_such_option(error, groups) from None
    except HydraException as error:
        raise _translate(error, groups) from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(_one_line(error)) from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}, name


@contextmanager
def _without_environment() -> Iterator[None]:
    """Refuses `${oc.env:NAME}` while the context lasts: the value, maybe a key, would be stored with every result."""
    OmegaConf.register_new_resolver("oc.env", _refused, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _refused(name: object, *_: object) -> NoReturn:
    raise UserError(
        f"${{oc.env:{name}}} reads the environment, whose values would be stored with the results; give the value "
        "itself, a key by the name of its variable (serving.api_key_env)"
    )


def _no_such_option(error: MissingConfigException, groups: Groups) -> UserError:
    group, _, name = (error.missing_cfg_file or "").partition("/")
    if group == "model" and "/" in name:
        return UserError(f"model: {name!r} looks like a folder; give it as model.path={name}")
    return unknown(group, name, groups.options(group), group)


def _translate(error: HydraException, groups: Groups) -> UserError:
    cause = error.__cause__
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return UserError(_one_line(cause or error))
    key, word = str(cause.full_key), str(cause.key)
    group = key.split(".")[0]
    parent = cause.parent_node
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    if key == f"{group}.{word}" and word in groups.options(group):
        return UserError(f"{key}: {word} is not selected ({group}=[{','.join(siblings)}]); add it there")
    if key == word:
        siblings = sorted({*siblings, "experiment", "method", "task"} - {"hydra"})
    return unknown(key, word, siblings, "key")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OmegaConfBaseException):
        first = str(error).splitlines()[0].removeprefix("UserError raised while resolving interpolation: ")
        return f"{error.full_key or 'config'}: {first}"
    return f"config: {' '.join(str(error).split())}"
