"""The tokenizer of a model, and whether both mean the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.config.errors import UserError
from kvbench.models.checkpoint import read_json, reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(where: Path, named: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Args:
        where: the folder.
        named: the model, for messages.

    Raises:
        UserError: its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (where / name).exists():
            read_json(where / name, named)
    with reading(f"{named}: the tokenizer (tokenizer.json, tokenizer_config.json) cannot be loaded"):
        return AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, named: str) -> None:
    """Check that the model has an embedding for every token that a text can have.

    A padding token is none of them: some checkpoints add one to the tokenizer alone.

    Raises:
        UserError: it does not.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    ids = {index: token for token, index in tokenizer.get_vocab().items()}
    largest = max((index for index in ids if index != tokenizer.pad_token_id), default=-1)
    if largest >= rows:
        raise UserError(
            f"{named}: the tokenizer is of another model: token {ids[largest]!r} is number {largest}, the model has"
            f" {rows} embeddings"
        )


def end_tokens(where: Path, tokenizer: PreTrainedTokenizerBase, named: str) -> dict[str, frozenset[int]]:
    """Tokens that end an answer, by the file that names them; files that name none are left out.

    They often differ: the tokenizer may name the end of a turn, the config only the end of a text. Each of them ends
    an answer. What transformers fills in for a key that a config does not have names nothing.

    Raises:
        UserError: a file names a token that the tokenizer does not have.
    """
    named_by: dict[str, Any] = {"tokenizer_config.json": tokenizer.eos_token_id}
    for file in ("config.json", "generation_config.json"):
        if (where / file).exists():
            named_by[file] = read_json(where / file, named).get("eos_token_id")
    size = len(tokenizer)
    found: dict[str, frozenset[int]] = {}
    for file, eos in named_by.items():
        ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
        for index in ids:
            if type(index) is not int or not 0 <= index < size:
                raise UserError(f"{named}: eos_token_id {index!r} in {file} is no token of the tokenizer")
        if ids:
            found[file] = frozenset(ids)
    return found
