"""End tokens: the union of what config, generation config and tokenizer name."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvbench.config.errors import UserError
from kvbench.models.load import ModelConfig, load_model
from kvbench.models.tokens import end_tokens

SIZE = 259
MISSING = "missing"


@pytest.fixture(autouse=True)
def _private(private_cache) -> None:
    """Fingerprints of spoilt copies stay out of the user's cache."""


@pytest.fixture
def folder(tiny_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_dir("llama", layers=1), tmp_path / "model"))


def write(folder: Path, config, generation, tokenizer) -> None:
    """Give each file its end tokens; None is a null, MISSING no such key (of the generation config: no such file)."""
    content = json.loads((folder / "config.json").read_text())
    content.pop("eos_token_id", None)
    (folder / "config.json").write_text(
        json.dumps(content | ({} if config == MISSING else {"eos_token_id": config}))
    )
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    if generation != MISSING:
        file.write_text(json.dumps({"eos_token_id": generation}))
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content["eos_token"] = tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def ids(value) -> set[int]:
    if isinstance(value, list):
        return set(value)
    return (
        {"<|end|>": {256}, "<|endoftext|>": {258}}.get(value, set())
        if not isinstance(value, int)
        else {value}
    )


CASES = list(
    itertools.product([7, [7, 9], None, MISSING], [7, 8, [9, 10], [], None, MISSING], ["<|end|>", None])
)


@pytest.mark.parametrize(("config", "generation", "tokenizer"), CASES)
def test_every_combination_gives_the_union(folder, config, generation, tokenizer):
    write(folder, config, generation, tokenizer)
    loaded = load_model(ModelConfig(path=str(folder), device="cpu"))
    assert loaded.eos_ids == ids(config) | ids(generation) | ids(tokenizer)
    named = {frozenset(ids(value)) for value in (config, generation, tokenizer)} - {frozenset()}
    assert loaded.eos_agreed == (len(named) <= 1)


@pytest.mark.parametrize("eos", ["<|end|>", 2.0, True, -1, SIZE, [7, None], [[7]], {"id": 7}])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_what_is_no_token_is_one_line(folder, file, eos):
    write(folder, 7, 7, None)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {"eos_token_id": eos}))
    with pytest.raises(UserError) as error:
        load_model(ModelConfig(path=str(folder), device="cpu"))
    assert ("\n" not in str(error.value) and file in str(error.value)) or "eos_token_id" in str(error.value)


class Tokenizer:
    """The part of a tokenizer that counts here."""

    def __init__(self, eos: int | None) -> None:
        self.eos_token_id = eos

    def __len__(self) -> int:
        return SIZE


TOKEN = st.integers(0, SIZE - 1)
EOS = st.one_of(st.none(), TOKEN, st.lists(TOKEN, max_size=4))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=EOS, generation=EOS, eos=st.one_of(st.none(), TOKEN))
def test_the_union_of_any_sets(tmp_path, config, generation, eos):
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    found = end_tokens(tmp_path, Tokenizer(eos), "model")
    assert frozenset().union(*found.values()) == ids(config) | ids(generation) | ids(eos)
