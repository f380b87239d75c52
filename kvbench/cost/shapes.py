"""Shapes of models: bytes of weights and caches, without loading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.config.reading import json_file
from kvbench.config.text import one_line
from kvbench.config.typed import build, unknown

GROUP = "shape"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Llama-style decoder: grouped-query attention, gated MLP, RMS norms.

    Attributes:
        name: its name in conf/shape.
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        heads: query heads Q.
        kv_heads: KV heads H.
        head_dim: channels per head D.
        vocab: rows of the embedding.
        tied: whether the output head is the embedding.
        qkv_bias: whether the query, key and value projections have biases.
        qk_norm: whether queries and keys are normalised per head.
        positions: context length.
        source: where the numbers come from.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    positions: int
    source: str

    def __post_init__(self) -> None:
        for key in (
            "layers",
            "hidden",
            "intermediate",
            "heads",
            "kv_heads",
            "head_dim",
            "vocab",
            "positions",
        ):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not a positive whole number")
        if self.heads % self.kv_heads:
            raise UserError(f"heads: {self.heads} is not a multiple of kv_heads ({self.kv_heads})")

    @property
    def group(self) -> int:
        """Query heads per KV head, G."""
        return self.heads // self.kv_heads

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding; the output head has as many."""
        return self.vocab * self.hidden

    @property
    def layer_params(self) -> int:
        """Parameters of all layers and the last norm."""
        projected = (self.heads + 2 * self.kv_heads) * self.head_dim
        attention = self.hidden * (projected + self.heads * self.head_dim)
        attention += projected * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        return self.layers * (attention + 3 * self.hidden * self.intermediate + 2 * self.hidden) + self.hidden

    @property
    def params(self) -> int:
        """All parameters."""
        return self.layer_params + self.embedding_params * (1 if self.tied else 2)

    def weight_bytes(self, element: float = 2) -> float:
        """Bytes of the weights."""
        return element * self.params

    def weights_read(self, element: float = 2) -> float:
        """Bytes of weights that a decode step reads: layers and output head, without the embedding table."""
        return element * (self.layer_params + self.embedding_params)

    def kv_bytes(self, tokens: int, element: float = 2) -> float:
        """Bytes of the dense keys and values of one sequence."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * element


def model_shape(name: str, config_dirs: Sequence[str] = ()) -> ModelShape:
    """Load the shape of a model.

    Args:
        name: a file in conf/shape, the embedded model, or a folder that holds a Hugging Face config.json.
        config_dirs: the user's configuration folders.

    Raises:
        UserError: an unknown name or an invalid file.
    """
    from kvbench.models import embedded

    groups = Groups(tuple(config_dirs))
    known = groups.options(GROUP)
    if name in known:
        return build(ModelShape, {"name": name, **groups.entry(GROUP, name)}, f"{GROUP}.{name}")
    folder = embedded.ensure() if name == embedded.NAME else Path(name)
    if not (folder / "config.json").is_file():
        raise unknown(GROUP, name, [*known, embedded.NAME, "a folder with config.json"], "model shape")
    config = json_file(folder / "config.json", f"{GROUP}={name}: config.json")
    if not isinstance(config, dict):
        raise UserError(f"{GROUP}={name}: config.json holds no object")
    return from_config(config, name if name == embedded.NAME else folder.name)


def from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape described by a Hugging Face configuration.

    Args:
        config: content of its config.json; families llama, mistral, qwen2 and qwen3.
        name: name of the shape.

    Raises:
        UserError: a key is missing, or has another type.
    """
    try:
        return _from_config(config, name)
    except KeyError as error:
        raise UserError(f"{GROUP}={name}: config.json has no {error.args[0]}") from None
    except (ArithmeticError, TypeError) as error:
        raise UserError(f"{GROUP}={name}: config.json: {one_line(error)}") from None


def _from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    heads, hidden, family = config["num_attention_heads"], config["hidden_size"], config["model_type"]
    values = {
        "name": name,
        "layers": config["num_hidden_layers"],
        "hidden": hidden,
        "intermediate": config["intermediate_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or hidden // heads,
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings")),
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "positions": config["max_position_embeddings"],
        "source": "its config.json",
    }
    return build(ModelShape, values, f"{GROUP}={name}")
