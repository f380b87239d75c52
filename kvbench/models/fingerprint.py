"""The identity of a model in cell ids: equal for equal files in any folder on any machine."""

import contextlib
import hashlib
import json
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.kernels.build import cache_dir
from kvbench.models.embedded import MANIFEST

VERSION = 1  # part of every fingerprint; raised when the rule below changes
BLOCK = 64 * 1024  # bytes
BLOCKS = 64  # number of blocks read of a larger file
SUFFIXES = {".json", ".safetensors", ".model", ".jinja", ".txt"}
# keys of a config that do not change the model
VOLATILE = {"_name_or_path", "_model_name_or_path", "transformers_version"}


def fingerprint(folder: Path) -> str:
    """16 hex digits over config, safetensors headers and sampled blocks of every file.

    The result is cached under the files' paths, sizes and modification times.

    Args:
        folder: a Hugging Face model folder; only files that the loader may read count.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"model: there is no folder {folder}")
    files = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.name != MANIFEST and f.is_file())
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps([VERSION, stats]).encode()).hexdigest()[:32]
    known = cache_dir() / "fingerprints" / key
    if known.is_file() and len(text := known.read_text()) == 16:
        return text
    total = hashlib.sha256(f"kvbench model {VERSION}".encode())
    for file in files:
        total.update(f"\n{file.name} {_digest(file)}".encode())
    text = total.hexdigest()[:16]
    # a cache that cannot be written costs time only
    with contextlib.suppress(UserError):
        write(known, text)
    return text


def _digest(file: Path) -> str:
    if file.name in ("config.json", "generation_config.json"):
        entries = {k: v for k, v in json.loads(file.read_text()).items() if k not in VOLATILE}
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= BLOCK * BLOCKS:
            digest.update(stream.read())
        else:
            if file.suffix == ".safetensors":
                digest.update(stream.read(int.from_bytes(stream.read(8), "little")))
            for i in range(BLOCKS):
                stream.seek((size - BLOCK) * i // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()
