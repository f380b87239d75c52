"""The typed configuration of a run, from `experiment=NAME` and overrides or from a run folder."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kvbench.config.compose import Composed, compose, run_dir
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups, module_names
from kvbench.config.reading import read_yaml
from kvbench.config.typed import as_yaml, build, unknown
from kvbench.models.load import ModelConfig
from kvbench.runs.launchers import LAUNCHERS
from kvbench.runs.stopping import seconds

#: settings that say how a run is done, not what is asked of it
HOW = frozenset(
    "retry_failed workers launcher launch shard lease stop_after snapshots report run_dir overrides config_dirs".split()
)


def _check_each(name: str, values: Sequence[Any], allowed: Any, advice: str) -> None:
    for value in values:
        if not allowed(value):
            raise UserError(f"{name}: {value} is not allowed, {advice}")
        if values.count(value) > 1:
            raise UserError(f"{name}: {value} is given twice")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Budgets of each method.

    Attributes:
        tokens: tokens per layer and KV head.
        ratio: retained fraction of the prompt, in (0, 1].
    """

    tokens: tuple[int, ...] = ()
    ratio: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_each("tokens", self.tokens, lambda n: n > 0, "give positive whole numbers")
        _check_each("ratio", self.ratio, lambda r: 0 < r <= 1, "give fractions above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How answers are generated.

    Attributes:
        block_rows: rows of a decode step of cells whose answers differ from dense's, on devices where the last digits
            depend on their number; fewer are padded to it.
        ignore_eos: whether to always generate max_new_tokens.
        first_token: whether the first answer token comes from the compressed cache or from the dense prefill.
    """

    block_rows: int = 32
    ignore_eos: bool = False
    first_token: Literal["compressed", "dense"] = "compressed"

    def __post_init__(self) -> None:
        _check_each("block_rows", (self.block_rows,), lambda n: n > 0, "give a positive whole number")


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """Settings of an efficiency run.

    Attributes:
        batch: numbers of identical sequences decoded together.
        warmup: decode steps before the measured ones.
        steps: measured decode steps.
    """

    batch: tuple[int, ...] = (1, 2, 4, 8)
    warmup: int = 3
    steps: int = 20

    def __post_init__(self) -> None:
        if not self.batch:
            raise UserError("batch: empty, give efficiency.batch=[...]")
        _check_each("batch", self.batch, lambda n: n > 0, "give positive whole numbers")
        _check_each("warmup", (self.warmup,), lambda n: n >= 0, "give 0 or more")
        _check_each("steps", (self.steps,), lambda n: n > 0, "give a positive whole number")


@dataclass(frozen=True, kw_only=True)
class SnapshotsConfig:
    """Prefills that are kept on disk.

    Attributes:
        keep: whether prefills are kept, and kept ones used.
        folder: where; None for `snapshots` in the run's folder. Several runs may share one.
        max_gb: 10^9 bytes that they may take; what was not used for longest is removed.
    """

    keep: bool = False
    folder: str | None = None
    max_gb: float = 100.0

    def __post_init__(self) -> None:
        _check_each("max_gb", (self.max_gb,), lambda n: n > 0, "give a number of GB above 0")
        if self.folder is not None and not self.folder.strip():
            raise UserError("folder: empty, give a path or null")

    def place(self, run_dir: str) -> Path:
        """The folder, for a run's folder."""
        return Path(run_dir) / "snapshots" if self.folder is None else Path(self.folder).expanduser()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of one run.

    Attributes:
        name: name of the experiment.
        kind: the package of kvbench.experiments that runs it.
        model: the model.
        task: entries for `kvbench.tasks.build` by label.
        method: entries for `kvbench.methods.build` by label; variants and ablations are expanded.
        budget: budgets of the methods that take one.
        protocol: whether the question is part of the compressed prompt.
        seeds: seeds of the task samples.
        decode: how answers are generated.
        efficiency: settings for kind=efficiency.
        kl: whether to measure the KL divergence from dense.
        limit: maximum number of samples per task, length and seed.
        retry_failed: whether cells that failed before run again.
        workers: processes that share the work, on this machine or by `launcher`.
        launcher: what starts the workers: submitit_slurm, submitit_local, ray or joblib; None for this process.
        launch: settings for it.
        shard: `i/N` for the i-th of N equal parts of the prompts, from 1; None for all.
        lease: seconds after which the prompts of a worker that gives no sign of life are taken over.
        stop_after: duration after which no further prompt is begun, as `3h30m`; None for no limit.
        snapshots: prefills that are kept on disk.
        report: whether to write the report at the end.
        run_dir: the run's folder.
        plugins: modules that register methods and tasks.
        overrides: the user's overrides.
        config_dirs: the user's configuration folders.
    """

    name: str
    kind: str
    model: ModelConfig
    task: dict[str, dict[str, Any]]
    method: dict[str, dict[str, Any]]
    budget: BudgetConfig = BudgetConfig()
    protocol: tuple[Literal["query_aware", "query_agnostic"], ...] = ("query_aware",)
    seeds: tuple[int, ...] = (0,)
    decode: DecodeConfig = DecodeConfig()
    efficiency: EfficiencyConfig = EfficiencyConfig()
    kl: bool = True
    limit: int | None = None
    retry_failed: bool = False
    workers: int = 1
    launcher: str | None = None
    launch: dict[str, Any] = field(default_factory=dict)
    shard: str | None = None
    lease: float = 60.0
    stop_after: str | None = None
    snapshots: SnapshotsConfig = SnapshotsConfig()
    report: bool = True
    run_dir: str
    plugins: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("task", "method", "protocol", "seeds"):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, give {name}=[...]")
        _check_each("protocol", self.protocol, lambda _: True, "")
        _check_each("seeds", self.seeds, lambda n: n >= 0, "give 0 or positive whole numbers")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: {self.limit} is not allowed, give a positive whole number or null")
        _check_each("workers", (self.workers,), lambda n: n > 0, "give a positive whole number")
        _check_each("lease", (self.lease,), lambda s: s >= 1, "give a second or more")
        _ = self.part, self.stop_seconds
        if self.launcher is not None and self.launcher not in LAUNCHERS:
            raise unknown("launcher", self.launcher, LAUNCHERS, "launcher")
        if self.launch and self.launcher is None:
            raise UserError("launch: its settings are for a launcher, give launcher=NAME")
        if self.snapshots.keep and self.kind == "efficiency":
            raise UserError("snapshots.keep: an efficiency run measures its prefills; allowed: false")
        if self.shard is not None and (self.workers > 1 or self.launcher is not None):
            raise UserError("shard: workers share the prompts already; give shard=i/N or workers=N")

    @property
    def part(self) -> tuple[int, int]:
        """The part of the prompts to run, from 0, and the number of parts."""
        if self.shard is None:
            return 0, 1
        first, slash, last = self.shard.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise UserError(f"shard: {self.shard} is not i/N with i from 1 to N, as shard=1/4")
        return int(first) - 1, int(last)

    @property
    def stop_seconds(self) -> float | None:
        """Seconds of `stop_after`."""
        return None if self.stop_after is None else seconds(self.stop_after)

    @property
    def request(self) -> dict[str, Any]:
        """What is asked for, apart from how, where and in how many parts it is run."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in HOW}


def load(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> RunConfig:
    """The configuration of `kvbench run OVERRIDES`.

    Args:
        overrides: `experiment=NAME` and any other `key=value`.
        config_dirs: the user's configuration folders, laid out as `conf/`.

    Raises:
        UserError: a name, key or value is not allowed.
    """
    return validate(compose(overrides, config_dirs))


def validate(composed: Composed) -> RunConfig:
    """Expand variants and ablations, and check all values; see `load`."""
    data, dirs = dict(composed.data), composed.config_dirs
    methods, budget = expanded(data, dirs)
    tasks = chosen("task", data, dirs)
    data = {key: value for key, value in data.items() if key not in ("variants", "ablate")}
    data |= {"name": composed.name, "overrides": list(composed.overrides), "config_dirs": list(dirs)}
    data |= {"task": tasks, "method": methods, "budget": budget}
    data["run_dir"] = str(run_dir(composed))
    return _typed(data)


def resolved_yaml(cfg: RunConfig) -> str:
    """The configuration as YAML, for the run folder; `from_yaml` reads it back."""
    return as_yaml(cfg)


def from_yaml(text: str) -> RunConfig:
    """The configuration that `resolved_yaml` wrote.

    Raises:
        UserError: the text is not the configuration of a run.
    """
    try:
        data = read_yaml(text)
    except ValueError as error:
        raise UserError(f"config.yaml: {error}") from None
    if not isinstance(data, dict):
        raise UserError("config.yaml: not the configuration of a run")
    _import_plugins(data.get("plugins"))
    return _typed(data)


def _typed(data: dict[str, Any]) -> RunConfig:
    from kvbench import methods, tasks

    cfg = build(RunConfig, data)
    labels: dict[str, str] = {}
    for label, entry in cfg.task.items():
        config = tasks.build(label, entry).config
        if (twin := labels.setdefault(repr(config), label)) != label:
            raise UserError(f"task.{label}: the same as {twin}, leave one of them out")
    for label, entry in cfg.method.items():
        method = methods.build(entry, f"method.{label}")
        if (twin := labels.setdefault(repr(method), label)) != label:
            raise UserError(f"method.{label}: the same as {twin}, leave one of them out")
        if method.needs_budget and not (cfg.budget.tokens or cfg.budget.ratio):
            raise UserError(f"budget: {label} needs one, give budget.tokens=[...] or budget.ratio=[...]")
    return cfg


def _import_plugins(names: object) -> None:
    names = [names] if isinstance(names, str) else names or []
    if not isinstance(names, list):
        raise UserError(f"plugins: {names!r} is not a list of Python modules")
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"plugins: {name!r} is not the name of a Python module")
        import_module(name, "plugins")


def import_module(name: str, key: str) -> None:
    """Import a module of the user's, also from the working folder.

    Args:
        name: its dotted name.
        key: what named it, for messages.

    Raises:
        UserError: it cannot be imported.
    """
    if os.getcwd() not in sys.path:
        # like `python -m`, so that modules in the working folder are found
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{key}: cannot import {name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        # importing a user's module can raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
        text = " ".join(str(error).split())
        raise UserError(f"{key}: cannot import {name!r}: {type(error).__name__}: {text}{where}") from error


def expanded(
    data: Mapping[str, Any], config_dirs: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Import the plugins; return entries of chosen methods, variants and ablations by label, and the budget."""
    _import_plugins(data.get("plugins"))
    budget = dict(_mapping("budget", data.get("budget")))
    variants, ablate = (_mapping(key, data.get(key)) for key in ("variants", "ablate"))
    entries = _expand(chosen("method", data, config_dirs), variants, ablate, budget)
    return {label: _filled(entry, f"method.{label}") for label, entry in entries.items()}, budget


def _filled(entry: Any, key: str) -> Any:
    from kvbench import methods

    has_null = any(value is None for _, value in _leaves(entry)) if isinstance(entry, Mapping) else False
    return methods.filled(entry, key) if has_null else entry


def chosen(group: str, data: Mapping[str, Any], config_dirs: Sequence[str]) -> dict[str, Any]:
    """The entries of the chosen names; settings that an experiment gives for other names are dropped."""
    # only entries of chosen names have the key of their class
    class_key = {"task": "family", "method": "method"}[group]
    groups = Groups(tuple(config_dirs), module_names(data.get("plugins")))
    found: dict[str, Any] = {}
    for label, value in _mapping(group, data.get(group)).items():
        entry = _mapping(f"{group}.{label}", value)
        if class_key in entry:
            found[label] = dict(entry)
        elif label not in (known := groups.options(group)):
            raise unknown(f"{group}.{label}", label, known, group)
    return found


def _expand(
    chosen: dict[str, Any], variants: Mapping[str, Any], ablate: Mapping[str, Any], budget: dict[str, Any]
) -> dict[str, Any]:
    """Chosen methods and variants; those in `ablate` become the product of their settings.

    Settings of `ablate` under `budget` replace those in `budget`.
    """
    for label in variants:
        if label in chosen:
            raise UserError(f"variants.{label}: {label} is the name of a chosen method; give it another name")
        # the command that reruns a cell gives dense as a variant
        if label == "dense" and variants[label] != {"method": "dense"}:
            raise UserError("variants.dense: dense is the reference of every method; give it another name")
    entries = chosen | {label: _mapping(f"variants.{label}", entry) for label, entry in variants.items()}
    products: dict[str, dict[str, list[Any]]] = {}
    for key, values in _leaves(ablate):
        label, _, name = key.removeprefix("method.").partition(".")
        if not isinstance(values, list):
            raise UserError(f"ablate.{key}: {values!r} is not a list of values")
        if not values:
            raise UserError(f"ablate.{key}: empty, give one or more values")
        for i, value in enumerate(values):
            # 1 and true are equal
            if any(type(other) is type(value) and other == value for other in values[:i]):
                raise UserError(f"ablate.{key}: {value} is given twice")
        if not name and (label == "budget" or label in entries):
            known = "tokens" if label == "budget" else "PARAMETER"
            raise UserError(f"ablate.{key}: give one of its keys, ablate.{label}.{known}=[...]")
        if label == "budget":
            budget[name] = values
        elif label not in entries:
            raise unknown(f"ablate.{key}", label, entries, "chosen method or variant")
        else:
            products.setdefault(label, {})[name] = values
    expanded: dict[str, Any] = {}
    for label, entry in entries.items():
        for setting in _product(products.get(label, {})):
            expanded[_label(label, setting)] = _with(entry, setting, f"ablate.{label}")
    return expanded


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: {value!r} is not a set of keys")
    return value


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _product(settings: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*settings.values()):
        yield dict(zip(settings, values, strict=True))


def _label(label: str, setting: dict[str, Any]) -> str:
    text = ",".join(f"{name}={value}" for name, value in setting.items())
    return f"{label}[{text}]" if text else label


def _with(entry: Any, setting: dict[str, Any], where: str) -> Any:
    """A copy of the entry with dotted settings in it."""
    entry = copy.deepcopy(entry)
    for key, value in setting.items():
        *path, last = key.split(".")
        part = entry
        for name in path:
            if isinstance(part.get(name), str):
                part[name] = {"name": part[name]}
            part = part.setdefault(name, {})
            if not isinstance(part, dict):
                raise UserError(f"{where}.{key}: {name} has no keys")
        part[last] = value
    return entry
