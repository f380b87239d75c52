"""Options of the configuration groups: files of conf/, files of the user's folders, and registered classes.

A registered method or task family is an option under its own name with the defaults of its class. It needs a YAML
file only for settings that differ from them.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from kvbench.config import source
from kvbench.config.errors import UserError
from kvbench.config.reading import yaml_file
from kvbench.config.source import Declared


@dataclass(frozen=True)
class _Registered:
    """A group whose options are also registered classes.

    Attributes:
        packages: packages that hold the classes; the first one holds the decorator.
        key: key of an entry that names the class.
        composition: fields that entries leave out, because they compose methods instead of setting one.
    """

    packages: tuple[str, ...]
    key: str
    composition: tuple[str, ...] = ()

    def entry(self, one: Declared) -> dict[str, Any]:
        parameters = {name: value for name, value in one.parameters.items() if name not in self.composition}
        return {self.key: one.name, **parameters}

    def is_complete(self, one: Declared) -> bool:
        """Whether the entry has every parameter of the class."""
        return one.unread <= set(self.composition)


# comments of an option's file that do not describe it
_REMARK = re.compile("@package|kvbench run|group: ")

_REGISTERED = {
    "method": _Registered(
        ("kvbench.methods", "kvbench.formats"), "method", ("eviction", "selection", "format", "keep")
    ),
    "task": _Registered(("kvbench.tasks",), "family"),
}


@dataclass(frozen=True)
class Groups:
    """The configuration groups, those of the user included.

    Attributes:
        config_dirs: the user's folders, laid out as conf/.
        plugins: the user's modules with methods and tasks.
    """

    config_dirs: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    def options(self, group: str) -> list[str]:
        """The names of the options, sorted."""
        folders = [root.joinpath(group) for root in self._roots()]
        entries = [entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()]
        files = {name.removesuffix(".yaml") for name in entries if name.endswith(".yaml")}
        return sorted(files | set(self.declared(group)))

    def file(self, group: str, name: str) -> Traversable | None:
        """The file of an option; None for a registered class without one."""
        files = [root.joinpath(group, f"{name}.yaml") for root in self._roots()]
        return next((file for file in files if file.is_file()), None)

    def entry(self, group: str, name: str) -> dict[str, Any]:
        """The keys of an option with their values before any override."""
        file = self.file(group, name)
        if file is None:
            return _REGISTERED[group].entry(self.declared(group)[name])
        found = yaml_file(file, f"{group}.{name}") or {}
        if not isinstance(found, dict):
            raise UserError(f"{group}.{name}: its file holds no keys but {type(found).__name__}")
        return found

    def description(self, group: str, name: str) -> str:
        """One line about an option: the first comment of its file, or the first sentence of its class."""
        file = self.file(group, name)
        if file is None:
            return self.declared(group)[name].summary
        return next((line for line in _comments(file) if not _REMARK.match(line)), "")

    def remark(self, group: str, name: str, key: str) -> str:
        """The comment `# KEY: VALUE` of an option's file; "" without one."""
        file = self.file(group, name)
        found = (
            [line.removeprefix(f"{key}: ") for line in _comments(file) if line.startswith(f"{key}: ")]
            if file
            else []
        )
        return found[0] if found else ""

    def declared(self, group: str) -> dict[str, Declared]:
        """The registered classes that are options, by name.

        A class with `names`, one line of description by name, is an option under CLASS_NAME for each of them.
        """
        options: dict[str, Declared] = {}
        for label, one in self.registered(group).items():
            if one.constants.get("is_task", True):
                options[label] = one
            for name, about in one.constants.get("names", {}).items():
                options[f"{label}_{name}"] = replace(
                    one, doc=about, parameters={**one.parameters, "name": name}
                )
        return options

    def registered(self, group: str) -> dict[str, Declared]:
        """All registered classes, by name; a plugin's class replaces one of the same name."""
        if group not in _REGISTERED:
            return {}
        found = dict(_shipped(group))
        for plugin in self.plugins:
            found |= source.of_plugin(plugin, _REGISTERED[group].packages[0])
        return found

    @contextmanager
    def nodes(self) -> Iterator[None]:
        """Nodes in Hydra's ConfigStore for the registered classes without a file, while the context lasts."""
        store = ConfigStore.instance()
        before = {group: dict(store.repo.get(group, {})) for group in _REGISTERED}
        for group, registered in _REGISTERED.items():
            for name, one in self.declared(group).items():
                if self.file(group, name) is None:
                    node = OmegaConf.create(registered.entry(one))
                    if not registered.is_complete(one):
                        # every key composes here; the class refuses wrong ones later
                        OmegaConf.set_struct(node, False)
                    store.store(name, node, group=group, package=f"{group}.{name}")
        try:
            yield
        finally:
            store.repo.update(before)

    def _roots(self) -> list[Traversable]:
        return [importlib.resources.files("kvbench.conf"), *map(Path, self.config_dirs)]


def _comments(file: Traversable) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


@functools.cache
def _shipped(group: str) -> dict[str, Declared]:
    packages = _REGISTERED[group].packages
    found = [source.of_package(package, packages[0]) for package in packages]
    return {name: one for part in found for name, one in part.items()}


def module_names(plugins: object) -> tuple[str, ...]:
    """The values of `plugins` that are names of modules; validation reports the others."""
    listed = plugins if isinstance(plugins, list) else [plugins]
    names = [str(name) for name in listed if name is not None]
    return tuple(name for name in names if all(part.isidentifier() for part in name.split(".")))
