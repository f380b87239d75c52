"""Fixtures for every test: tiny random models of each supported family, with tokenizer and chat template."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a background job ignores Ctrl-C, and so would the commands that tests stop with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported: one thread for each worker, and for the commands it starts
    os.environ["OMP_NUM_THREADS"] = "1"
# triton reads it once, when something imports it; `make test-gpu` says 0, and its kernels then run compiled
if os.environ.setdefault("TRITON_INTERPRET", "1") == "1":
    # the interpreter copies every tensor to the host: for GPU tests there is `make test-gpu`
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# the last one is what the Qwen2 tokenizer class adds by itself
SPECIAL = ("<|end|>", "<|start|>", "<|endoftext|>")
# query heads per KV head, where the caller does not say
GROUPS = {"llama": 3, "mistral": 1, "qwen2": 4, "qwen3": 4}

TinyModelDir = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> TinyModelDir:
    """`tiny_model_dir(family="llama", group=None, layers=3, seed=0)`: folder of a random model, made once.

    2 KV heads of 16 channels, `group` query heads each, float32, 4096 positions, one token per byte.
    """
    made: dict[tuple, Path] = {}

    def get(family: str = "llama", group: int | None = None, layers: int = 3, seed: int = 0) -> Path:
        key = (family, group or GROUPS[family], layers, seed)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family) / "model"
            save_tiny_model(made[key], *key)
        return made[key]

    return get


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """kvbench's cache folder moved to an empty one, for this test."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def results() -> list[Any]:
    """Every claim checked against the committed results and no other runs."""
    from kvbench import claims
    from kvbench.claims import evidence

    return claims.evaluate(evidence.load(Path(__file__).parents[1] / "results"))


def save_tiny_model(folder: Path, family: str, group: int, layers: int, seed: int, **settings: Any) -> None:
    """Writes config, random weights, tokenizer and chat template; settings are the configuration's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from kvbench.models.quiet import quiet

    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 2 * group,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            # wide enough that attention is far from uniform: methods then keep different tokens
            "initializer_range": 0.3,
            "dtype": "float32",
            **settings,
        },
    )
    if family == "mistral":
        config.sliding_window = None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer():
    """A tokenizer of 256 byte tokens and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=SPECIAL[0], pad_token=SPECIAL[0], model_max_length=4096
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
