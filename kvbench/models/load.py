"""Loads a model and its tokenizer: the embedded one, one from the local Hugging Face cache, or a folder."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.models import embedded
from kvbench.models.checkpoint import WEIGHTS, check_loaded, read_entries, read_json, reading, weight_files
from kvbench.models.fingerprint import fingerprint
from kvbench.models.tokens import check_tokens, end_tokens, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BIG_CHECKPOINT = 2 * 10**9  # bytes; smaller 16-bit checkpoints run in float32 on a CPU


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to run, and how.

    The model is at `path` if set, else `hub_id`, else it is the embedded one, by its name.

    Attributes:
        name: the model's name in results.
        path: Hugging Face folder: config.json, safetensors, tokenizer.
        hub_id: repository on the Hugging Face hub, in the local cache.
        download: whether missing files of `hub_id` may be downloaded.
        dtype: dtype of weights and KV cache. auto = the checkpoint's; on a CPU, 16 bits become float32 up to 2 GB and
            bfloat16 beyond.
        attention: the attention of the dense prefill.
        device: auto = cuda if available.
        prefill_chunk: prompt tokens per forward pass of the prefill.
        chat_template: whether prompts go through the tokenizer's chat template.
        system: the system turn; null = the chat template's default.
    """

    name: str = embedded.NAME
    path: str | None = None
    hub_id: str | None = None
    download: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    device: str = "auto"
    prefill_chunk: int = 1024
    chat_template: bool = True
    system: str | None = None

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        if not (self.device in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdecimal())):
            raise UserError(f"model.device={self.device}: not one of auto, cpu, cuda, cuda:N")
        if self.prefill_chunk < 1:
            raise UserError(f"model.prefill_chunk={self.prefill_chunk}: must be a whole number of at least 1")
        if not (self.path or self.hub_id or self.name == embedded.NAME):
            raise UserError(
                f"model.name={self.name}: needs model.path or model.hub_id; without one: {embedded.NAME}"
            )
        if self.path and self.name == embedded.NAME:
            # the path replaces the default model, name included
            object.__setattr__(self, "name", Path(self.path).expanduser().resolve().name)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode, on its device, with its identity.

    Attributes:
        model: the causal language model, without gradients.
        tokenizer: its tokenizer.
        name: as in the config.
        fingerprint: 16 hex digits, see `kvbench.models.fingerprint`.
        device: the model's device.
        dtype: dtype of weights and KV cache.
        attention: name of the attention implementation.
        eos_ids: tokens that end an answer: all that config, generation config or tokenizer name.
        eos_agreed: whether those that name any name the same.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    fingerprint: str
    device: "torch.device"
    dtype: "torch.dtype"
    attention: str
    eos_ids: frozenset[int]
    eos_agreed: bool = True


def load_model(cfg: ModelConfig, attn_implementation: str | None = None) -> LoadedModel:
    """Load the model of `cfg`; safetensors only, and without running code of the checkpoint.

    Args:
        cfg: the model's configuration.
        attn_implementation: name registered with transformers; None = `cfg.attention`.

    Raises:
        UserError: the model is missing, its family is not supported, its files are damaged or do not fit together,
            or it cannot run as configured.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from kvbench.models.quiet import quiet

    device = pick_device(cfg.device)
    where = locate(cfg)
    named = f"model.name={cfg.name}"
    if cfg.path or cfg.hub_id:
        named = f"model.path={cfg.path}" if cfg.path else f"model.hub_id={cfg.hub_id} in {where}"
    check_folder(where, named)
    check_plain(where, named)
    entries = read_entries(where, named)
    check_layers(where, len(entries), named)
    source = {"pretrained_model_name_or_path": where, "local_files_only": True, "trust_remote_code": False}
    with quiet():
        with reading(f"{named}: config.json"):
            config = AutoConfig.from_pretrained(**source)
        tokenizer = load_tokenizer(where, named)
        if cfg.chat_template and not tokenizer.chat_template:
            raise UserError(
                f"model.chat_template=true: {named} has no chat template; give model.chat_template=false"
            )
        dtype = pick_dtype(cfg, config, where, device)
        check_attention(cfg.attention, device, dtype)
        attention = attn_implementation or cfg.attention
        with reading(f"{named}: the model cannot be loaded"):
            loader: Any = AutoModelForCausalLM  # its annotation leaves out the report
            model, report = loader.from_pretrained(
                **source,
                use_safetensors=True,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=attention,
                output_loading_info=True,
                # reported below, with everything else that does not fit
                ignore_mismatched_sizes=True,
            )
        check_loaded(model, report, entries, named)
        check_tokens(model, tokenizer, named)
        ends = end_tokens(where, tokenizer, named)
    return LoadedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        name=cfg.name,
        fingerprint=fingerprint(where),
        device=device,
        dtype=dtype,
        attention=attention,
        eos_ids=frozenset[int]().union(*ends.values()),
        eos_agreed=len(set(ends.values())) < 2,
    )


def locate(cfg: ModelConfig) -> Path:
    """The folder of a model.

    Raises:
        UserError: it is missing; the message states where it was expected and how to get it.
    """
    if cfg.path:
        path = Path(cfg.path).expanduser()
        if not path.is_dir():
            raise UserError(f"model.path={cfg.path}: no such folder; give a Hugging Face model folder")
        return path
    if cfg.hub_id:
        return locate_hub(cfg.hub_id, download=cfg.download)
    return embedded.ensure()


def locate_hub(hub_id: str, *, download: bool) -> Path:
    """The snapshot of a hub repository in the local cache; downloaded if allowed."""
    from huggingface_hub import constants, snapshot_download

    cache = constants.HF_HUB_CACHE
    try:
        return Path(
            snapshot_download(
                hub_id,
                local_files_only=not download,
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
                ignore_patterns=["original/*"],
            )
        )
    except (OSError, ValueError) as error:
        if download:
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"model.hub_id={hub_id}: not in {cache} and could not be downloaded: {first}"
            ) from error
        raise UserError(
            f"model.hub_id={hub_id}: looked in the Hugging Face cache {cache}, not there; get it with"
            f" 'hf download {hub_id}' or model.download=true, or give model.path=FOLDER"
        ) from error


def check_folder(where: Path, named: str) -> None:
    """Refuse a folder that is not a safetensors checkpoint of a supported family, before transformers reads it."""
    family = read_json(where / "config.json", named).get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{named}: model family '{family}'; supported are {', '.join(FAMILIES)}")
    weight_files(where, named)


def check_plain(where: Path, named: str) -> None:
    """Refuse quantised weights, weights in a file of the config's choice, and a damaged generation config."""
    config = read_json(where / "config.json", named)
    for key in ("quantization_config", "compression_config"):
        if entry := config.get(key):
            kind = entry.get("quant_method", "unknown") if isinstance(entry, dict) else entry
            raise UserError(
                f"{named}: its weights are quantised ({kind}; {key} in config.json); give the unquantised model"
            )
    if config.get("transformers_weights"):
        raise UserError(f"{named}: transformers_weights in config.json is not supported; allowed: {WEIGHTS}")
    # transformers goes on without a generation config that it cannot read
    if (where / "generation_config.json").exists():
        read_json(where / "generation_config.json", named)


def check_layers(where: Path, tensors: int, named: str) -> None:
    """Refuse more layers than there are tensors, before transformers makes them."""
    layers = read_json(where / "config.json", named).get("num_hidden_layers")
    if type(layers) is int and layers > tensors:
        raise UserError(
            f"{named}: config.json says num_hidden_layers {layers}, the weights are {counted(tensors, 'tensor')}"
        )


def pick_device(device: str) -> "torch.device":
    """The device of `model.device`; checks that this machine has it."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UserError(
            f"model.device={device}: this machine has {count} usable CUDA devices; allowed here: auto, cpu"
            + "".join(f", cuda:{i}" for i in range(count))
        )
    if chosen.type != "cuda":
        return chosen
    # streams, graphs, events and Triton's launches use the current device
    torch.cuda.set_device(chosen.index or 0)
    return torch.device("cuda", chosen.index or 0)


def pick_dtype(cfg: ModelConfig, config: Any, where: Path, device: "torch.device") -> "torch.dtype":
    """The dtype of `model.dtype`; see `ModelConfig` for what auto means."""
    import torch

    if cfg.dtype != "auto":
        return getattr(torch, cfg.dtype)
    stored = config.dtype or torch.float32
    allowed = (torch.float32, torch.bfloat16, torch.float16)
    if stored not in allowed:
        raise UserError(
            f"model.dtype=auto: config.json says dtype '{str(stored).removeprefix('torch.')}'; give model.dtype"
            " float32, bfloat16 or float16"
        )
    if device.type == "cpu" and stored != torch.float32:
        size = sum(f.stat().st_size for f in where.glob("*.safetensors"))
        return torch.bfloat16 if size > BIG_CHECKPOINT else torch.float32
    return stored


def check_attention(attention: str, device: "torch.device", dtype: "torch.dtype") -> None:
    """Refuse flash-attn if it cannot run."""
    if attention != "flash_attention_2":
        return
    import torch

    if importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attention=flash_attention_2: flash-attn is not installed (pip install 'kvbench[flash]'),"
            " or give model.attention=sdpa"
        )
    if device.type != "cuda" or dtype == torch.float32:
        raise UserError(
            f"model.attention=flash_attention_2: needs a CUDA device and 16 bits, not {device} and {dtype};"
            " give model.dtype=bfloat16 or model.attention=sdpa"
        )
