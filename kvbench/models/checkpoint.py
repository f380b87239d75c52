"""Checks of a checkpoint: its files before transformers reads them, its tensors after it has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.config import numbers
from kvbench.config.errors import UserError
from kvbench.config.reading import file_text
from kvbench.config.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: of tensors; others are quantised or no weights
DTYPES = {"F32": 32, "BF16": 16, "F16": 16}
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its file and dtype."""

    file: str
    dtype: str


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Report what other packages raise inside the context as a fault of the file or setting `what`, in one line.

    Raises:
        UserError: something was raised that is no `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    # transformers, safetensors and tokenizers raise exceptions of every kind on a damaged file
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}") from error
    except BaseException as error:
        # where Rust code gives up
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {one_line(error)}") from error


def read_json(file: Path, named: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: the file.
        named: the model, for messages.

    Raises:
        UserError: it is missing or damaged, holds no object, or holds a number that is not finite.
    """

    try:
        content = file_text(file)
        if content.startswith(LFS.decode()):
            raise ValueError("it is a pointer of Git LFS, get the file with 'git lfs pull'")
        found = numbers.read_json(content)
        if not isinstance(found, dict):
            raise ValueError(f"it holds no object but {type(found).__name__}")
    except OSError as error:
        raise UserError(
            f"{named}: no readable {file.name} there ({error.strerror}); give a Hugging Face model folder"
        ) from None
    except ValueError as error:
        raise UserError(f"{named}: {file.name} is damaged ({one_line(error)}); get the model again") from None
    return found


def weight_files(where: Path, named: str) -> dict[str, set[str] | None]:
    """Names of the safetensors files, each with the tensors that the index says are in it (None without an index).

    Raises:
        UserError: files are missing, the index is damaged, or there is an adapter or a second set of weights.
    """
    for adapter in sorted(where.glob("adapter_*")):
        raise UserError(
            f"{named}: {adapter.name} is an adapter; merge it into the model and give that folder"
        )
    files: dict[str, set[str] | None] = {WEIGHTS: None}
    if (where / INDEX).is_file():
        weight_map = read_json(where / INDEX, named).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise UserError(f"{named}: {INDEX} is damaged (no weight_map of file names); get the model again")
        files = {file: {k for k, v in weight_map.items() if v == file} for file in set(weight_map.values())}
        for file in sorted(files):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise UserError(
                    f"{named}: {INDEX} names {file!r}, which is no safetensors file in that folder"
                )
    missing = sorted(name for name in files if not (where / name).is_file())
    if missing or not files:
        raise UserError(
            f"{named}: {(missing or [WEIGHTS])[0]} is missing ({len(missing)} of {len(files)} safetensors files);"
            " get the model again, or save it as safetensors: pickled weights are not loaded"
        )
    if WEIGHTS not in files and (where / WEIGHTS).is_file():
        # transformers would read it instead of the files that the index names
        raise UserError(f"{named}: has both {WEIGHTS} and {INDEX}; remove one of them")
    return files


def read_entries(where: Path, named: str) -> dict[str, Entry]:
    """All tensors of a checkpoint, from the heads of its files.

    Raises:
        UserError: a file is damaged or disagrees with the index, a tensor is in two files, or its dtype is not that
            of weights, or narrower than the others'.
    """
    from safetensors import safe_open

    found: dict[str, Entry] = {}
    for file, listed in sorted(weight_files(where, named).items()):
        with (where / file).open("rb") as stream:
            if stream.read(len(LFS)) == LFS:
                raise UserError(f"{named}: {file} is a pointer of Git LFS; get the file with 'git lfs pull'")
        with (
            reading(f"{named}: {file} is damaged or cut off; get it again"),
            safe_open(where / file, "pt") as opened,
        ):
            names = opened.keys()
            entries = {name: Entry(file, opened.get_slice(name).get_dtype()) for name in names}
        if listed is not None and (odd := sorted(listed ^ entries.keys())):
            place = f"lists {odd[0]} in {file}, which does not hold it"
            if odd[0] in entries:
                place = f"does not list {odd[0]}, which {file} holds"
            raise UserError(f"{named}: {INDEX} {place}; get the model again")
        for name, entry in entries.items():
            if name in found:
                raise UserError(
                    f"{named}: {name} is in {found[name].file} and in {file}; get the model again"
                )
            found[name] = entry
    check_dtypes(found, named)
    return found


def check_dtypes(entries: Mapping[str, Entry], named: str) -> None:
    """Refuse tensors whose dtype is not that of weights, and rounded ones among others."""
    held = [entry.dtype for entry in entries.values()]
    common = max(sorted(DTYPES), key=held.count)
    for name, entry in sorted(entries.items()):
        if entry.dtype not in DTYPES:
            raise UserError(f"{named}: {name} in {entry.file} is {entry.dtype}; allowed: {', '.join(DTYPES)}")
        if entry.dtype != common and DTYPES[entry.dtype] <= DTYPES[common]:
            raise UserError(f"{named}: {name} in {entry.file} is {entry.dtype}, the other tensors {common}")


def check_loaded(
    model: PreTrainedModel, report: Mapping[str, Any], entries: Mapping[str, Entry], named: str
) -> None:
    """Check that every weight of a model is that of the checkpoint, and that the checkpoint holds no other.

    Args:
        model: the loaded model.
        report: transformers' loading report. It leaves out what follows from the model itself: tied weights,
            and the rotary frequencies of older checkpoints.
        entries: the checkpoint's tensors.
        named: the model, for messages.

    Raises:
        UserError: they differ.
    """
    files = sorted({entry.file for entry in entries.values()})
    where = files[0] if len(files) == 1 else f"{len(files)} files"
    family = model.config.model_type

    def file_of(name: str) -> str:
        return entries[name].file if name in entries else where

    shapes = [
        f"{name} in {file_of(name)} has shape {list(found)}, config.json asks for {list(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    missing = [f"{name} is missing in {where}" for name in sorted(report["missing_keys"])]
    unknown = [f"{name} in {file_of(name)} is unknown" for name in sorted(report["unexpected_keys"])]
    if shown := shapes[:1] + missing[:1] + unknown[:1]:
        more = len(shapes) + len(missing) + len(unknown) - len(shown)
        raise UserError(
            f"{named}: weights and config.json ('{family}') do not fit: {'; '.join(shown)}"
            + (f"; and {more} more" if more else "")
        )
    if report["error_msgs"]:
        raise UserError(f"{named}: {' '.join(str(report['error_msgs'][0]).split())}")
    prefix = model.base_model_prefix + "."
    for name in sorted(entries):
        if name.startswith(prefix) and name.removeprefix(prefix) in entries:
            raise UserError(f"{named}: {where} holds both {name} and {name.removeprefix(prefix)}")
    for copy, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if model.get_parameter(copy) is not model.get_parameter(source):
            raise UserError(
                f"{named}: config.json ties {copy} to {source} (tie_word_embeddings), but {file_of(copy)} holds"
                " other values for it"
            )
