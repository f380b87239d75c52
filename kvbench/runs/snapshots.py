"""Prefills that are kept on disk, so that a sweep that is extended, or goes on elsewhere, does none of them again.

A file is named by all that its numbers depend on (model, tokens, dtype, attention, chunk, kernels, protocol, packages,
device) and by what is in it: the number of last queries, and whether there are attention sums. It serves methods that
need no more than that. What is not as it was written is set aside, and the prompt is prefilled anew; so is what cannot
be kept, which costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.config.numbers import NotFiniteError
from kvbench.engine.finite import check_snapshot
from kvbench.engine.prefill import Snapshot, complete, needed
from kvbench.engine.snapshot_file import DamagedError, load, save, size
from kvbench.kernels.operations import forms_for, operations
from kvbench.methods import Method
from kvbench.models.load import LoadedModel
from kvbench.runs import provenance
from kvbench.runs.config import RunConfig
from kvbench.runs.plan import ENGINE_VERSION
from kvbench.runs.probe import heads_of

#: what follows a damaged file's name
ASIDE = ".damaged"
_NAME = re.compile(r"[0-9a-f]{32}-last(\d+)(-sums)?\.safetensors")


@dataclass(frozen=True)
class _File:
    path: Path
    used: float
    bytes: int


class Snapshots:
    """The kept prefills of a run.

    Args:
        cfg: of the run; `snapshots.keep` is true.
        loaded: its model.

    Attributes:
        folder: where they are.
        most: bytes that they may take together.
    """

    def __init__(self, cfg: RunConfig, loaded: LoadedModel) -> None:
        self.folder = cfg.snapshots.place(cfg.run_dir)
        self.most = int(cfg.snapshots.max_gb * 1e9)
        self._loaded = loaded
        self._setting = _setting(cfg, loaded)
        self._told = False

    def get(
        self, ids: list[int], protocol: str, methods: Sequence[Method], turn: int | None,
        prefill: Callable[[], Snapshot],
    ) -> Snapshot:  # fmt: skip
        """The kept snapshot of some tokens, with all that the methods need; else a new one, which is kept.

        Args:
            ids: the compressed tokens.
            protocol: whether the question is among them.
            methods: of the cells.
            turn: see `LayerSnapshot.turn`.
            prefill: makes the snapshot.
        """
        needs, window = needed(methods)
        window = len(ids) if "queries" in needs else min(window, len(ids))
        sums = "attention_sum" in needs
        key = _key({**self._setting, "protocol": protocol, "tokens": ids})
        for path in self._serving(key, window, sums):
            if (found := self._read(path, key)) is not None:
                complete(found, methods, self._loaded.model, self._loaded.tokenizer, ids, turn)
                return found
        made = prefill()
        self._keep(self.folder / f"{key}-last{window}{'-sums' * sums}.safetensors", made, key)
        return made

    def _serving(self, key: str, window: int, sums: bool) -> Iterator[Path]:
        """Files of these tokens that hold enough."""
        for path in sorted(self.folder.glob(f"{key}-*.safetensors")):
            name = _NAME.fullmatch(path.name)
            if name and int(name[1]) >= window and (name[2] or not sums):
                yield path

    def _read(self, path: Path, key: str) -> Snapshot | None:
        try:
            # also so that no other worker removes it now
            os.utime(path)
            return load(path, self._loaded.model, key)
        except FileNotFoundError:
            # removed meanwhile, to make room
            return None
        except OSError as error:
            self._tell(f"cannot read {path}: {error.strerror or error}; its prompt is prefilled anew")
        except DamagedError as error:
            with contextlib.suppress(OSError):
                os.replace(path, path.with_name(path.name + ASIDE))
            text = f"snapshots: {path.name} is damaged ({error}); set aside as *{ASIDE}, its prompt is prefilled anew"
            warnings.warn(text, stacklevel=2)
        return None

    def _keep(self, path: Path, snapshot: Snapshot, key: str) -> None:
        try:
            check_snapshot(snapshot.layers, snapshot.logits)
        except NotFiniteError:
            # the prompt fails; who retries it wants another prefill
            return
        try:
            if self._has_room(size(snapshot)):
                save(path, snapshot, key)
        except (UserError, OSError) as error:
            self._tell(f"{error}; prefills are not kept")

    def _has_room(self, own: int) -> bool:
        """Whether so many bytes fit, once the files that were not used for longest are removed."""
        if own > self.most:
            self._tell(f"one takes {own / 1e9:.2g} GB, and snapshots.max_gb={self.most / 1e9:g}: not kept")
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self._files(), key=lambda file: file.used)
        held = sum(file.bytes for file in files)
        while held + own > self.most:
            file = files.pop(0)
            file.path.unlink(missing_ok=True)
            held -= file.bytes
        # what is left is for the rows, which are worth more
        if (free := shutil.disk_usage(self.folder).free) < 2 * own:
            self._tell(
                f"one takes {own / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free in {self.folder}: not kept"
            )
            return False
        return True

    def _files(self) -> Iterator[_File]:
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name.removesuffix(ASIDE)):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    yield _File(path, stat.st_mtime, stat.st_size)

    def _tell(self, why: str) -> None:
        """Warn once: the same will be true of the next prompts."""
        if not self._told:
            warnings.warn(f"snapshots: {why}", stacklevel=4)
        self._told = True


def _setting(cfg: RunConfig, loaded: LoadedModel) -> dict[str, object]:
    """What the numbers of a prefill depend on besides the tokens."""
    heads = heads_of(loaded)
    forms = forms_for(loaded.device, loaded.dtype, heads.group, heads.dim)
    packages = provenance.versions()
    return {
        "engine": ENGINE_VERSION,
        "model": loaded.fingerprint,
        "dtype": str(loaded.dtype),
        "attention": cfg.model.attention,
        "prefill_chunk": cfg.model.prefill_chunk,
        "kernels": {name: [forms.get(name), what.VERSION] for name, what in operations().items()},
        # libraries choose their kernels by these, and last digits with them
        "device": provenance.device_name(loaded.device),
        "packages": {name: text for name, text in packages.items() if name not in ("kvbench", "python")},
    }


def _key(payload: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:32]
