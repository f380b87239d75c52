"""A snapshot in a file: safetensors, with a checksum over all that is read of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.files import replacing
from kvbench.config.numbers import read_json
from kvbench.config.text import one_line
from kvbench.engine.prefill import Snapshot, check_window
from kvbench.engine.rope import settle_rope
from kvbench.methods.base import LayerSnapshot

#: version of the form of the files
FORM = 1


class DamagedError(ValueError):
    """A file that is not what was written."""


def save(path: Path, snapshot: Snapshot, key: str) -> None:
    """Write what a prefill left: keys, values, queries, attention sums and logits.

    What methods get besides follows from the model and the tokens, or from further passes, and is not in the file.

    Args:
        path: the file, replaced as a whole.
        snapshot: as `prefill` makes it.
        key: names all that its numbers depend on.

    Raises:
        UserError: it cannot be written.
    """
    facts = json.dumps(
        {
            "form": FORM,
            "key": key,
            "length": snapshot.length,
            "seconds": snapshot.seconds,
            "rope_until": snapshot.rope_until,
            "scaling": [layer.scaling for layer in snapshot.layers],
        }
    )
    # one copy in the host's memory, which a CPU's tensors are already
    tensors = {name: x.cpu().contiguous() for name, x in _tensors(snapshot)}
    with replacing(path) as draft:
        try:
            save_file(tensors, draft, {"facts": facts, "sha256": _checksum(facts, tensors)})
        except SafetensorError as error:
            raise OSError(one_line(error)) from None
        with open(draft, "rb") as file:
            os.fsync(file.fileno())


def load(path: Path, model: PreTrainedModel, key: str) -> Snapshot:
    """Read a snapshot, and leave the model as its prefill left it.

    Args:
        path: the file.
        model: that made it.
        key: under which it was written.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # copies: what was compared is what is used, and lies in memory as prefill's tensors do
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        facts = metadata["facts"]
        if metadata["sha256"] != _checksum(facts, tensors):
            raise ValueError("its checksum is that of other content")
        found = read_json(facts)
        if found["form"] != FORM:
            raise ValueError(f"its form is {found['form']}, not {FORM}")
        if found["key"] != key:
            raise ValueError("it is that of other tokens or settings")
    except OSError:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(one_line(error)) from None
    check_window(model, found["length"])
    settle_rope(model, found["length"])
    tensors = {name: x.to(model.device) for name, x in tensors.items()}
    layers = [
        LayerSnapshot(
            tensors[f"keys.{n}"],
            tensors[f"values.{n}"],
            tensors[f"queries.{n}"],
            n,
            len(found["scaling"]),
            scaling,
            tensors.get(f"attention_sum.{n}"),
        )
        for n, scaling in enumerate(found["scaling"])
    ]
    return Snapshot(layers, found["length"], tensors["logits"], found["seconds"], found["rope_until"])


def size(snapshot: Snapshot) -> int:
    """Bytes of a snapshot's tensors in a file."""
    return sum(x.nbytes for _, x in _tensors(snapshot))


def _tensors(snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    for layer in snapshot.layers:
        named = {
            "keys": layer.k_HTD,
            "values": layer.v_HTD,
            "queries": layer.q_QWD,
            "attention_sum": layer.attention_sum_QT,
        }
        yield from ((f"{name}.{layer.layer}", x) for name, x in named.items() if x is not None)
    yield "logits", snapshot.logits


def _checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(facts.encode())
    for name, x in sorted(tensors.items()):
        total.update(f"\n{name} {x.dtype} {list(x.shape)}\n".encode())
        total.update(x.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
