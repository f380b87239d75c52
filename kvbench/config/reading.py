"""The one way to read a text file that was made elsewhere: limits of size and depth, encoding, JSON and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import yaml

from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json
from kvbench.config.text import printable

#: bytes of a file that is read whole: configurations, indices of checkpoints; tokenizers have a few MB
LARGEST = 64 * 2**20
#: characters of a YAML text, levels of its nesting, and values in it where every alias counts what it stands for
YAML_LARGEST, YAML_DEPTH, YAML_VALUES = 2 * 2**20, 60, 200_000


class LimitError(ValueError):
    """A file that is well formed as far as it was read, but too large, nested too deeply, or refers to itself."""


class Readable(Protocol):
    """A file of a folder or of a package."""

    def read_bytes(self) -> bytes: ...


def file_text(file: Readable, most: int = LARGEST) -> str:
    """The text of a file.

    Args:
        file: the file.
        most: bytes that are allowed.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is too large, or not UTF-8.
    """
    if isinstance(file, Path):
        if file.exists() and not file.is_file():
            raise ValueError("not a file")
        if file.is_file() and (size := file.stat().st_size) > most:
            raise LimitError(f"{size:,} bytes, at most {most:,} are read")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None


def read_yaml(text: str, most: int = YAML_VALUES) -> Any:
    """The value of a YAML text, of plain types.

    Args:
        text: the text.
        most: values that are allowed in it.

    Raises:
        ValueError: one line; it is not YAML, or refers to itself, is nested too deeply, holds too much (aliases count
            what they stand for), or gives a key twice.
    """
    if len(text) > YAML_LARGEST:
        raise LimitError(f"{len(text):,} characters, at most {YAML_LARGEST:,} are read")
    try:
        loader = _Loader(text)
        loader.most = most
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(
            printable(f"{where}{' '.join((error.problem or error.context or '').split())}")
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(printable(" ".join(str(error).split()))) from None
    except RecursionError:
        raise LimitError("nested too deeply") from None
    # of a constructor: a date that is none, a number of thousands of digits, a key that is a list
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def yaml_file(file: Readable, named: str) -> Any:
    """The value of a YAML file.

    Args:
        file: the file.
        named: key and file, for the message.

    Raises:
        UserError: it cannot be read, see `file_text` and `read_yaml`.
    """
    return _read(file, named, read_yaml)


def json_file(file: Readable, named: str) -> Any:
    """The value of a JSON file; arguments and errors as for `yaml_file`."""
    return _read(file, named, read_json)


def _read(file: Readable, named: str, parse: Any) -> Any:
    try:
        return parse(file_text(file))
    except OSError as error:
        raise UserError(f"{named}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{named}: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """Counts what a document stands for before anything is made of it."""

    most = YAML_VALUES

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._values(node, 0, {}, set())
        return node

    def _values(self, node: yaml.Node, depth: int, known: dict[int, int], above: set[int]) -> int:
        """Values in a node, each alias with all that it stands for."""
        if id(node) in above:
            raise LimitError(f"{_line(node)}: it refers to itself")
        if depth > YAML_DEPTH:
            raise LimitError(f"{_line(node)}: nested too deeply")
        if id(node) in known:
            return known[id(node)]
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise ValueError(f"{_line(node)}: the key {twice[:80]!r} is given twice")
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        count = 1 + sum(self._values(part, depth + 1, known, above | {id(node)}) for part in parts)
        if count > self.most:
            raise LimitError(f"{_line(node)}: more than {self.most:,} values, aliases counted")
        known[id(node)] = count
        return count


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
