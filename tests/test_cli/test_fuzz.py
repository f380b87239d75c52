"""Whatever the bytes of a file are, each loader takes it or refuses it with one line, within a time limit."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.tokens import FixtureCounter
from kvbench.claude.traces.open import open_trace
from kvbench.claude.usage.open import read_calls
from kvbench.config.errors import UserError
from kvbench.config.reading import read_yaml
from kvbench.cost.hardware import hardware
from kvbench.cost.shapes import model_shape
from kvbench.models.checkpoint import read_entries, read_json
from kvbench.runs.config import from_yaml
from kvbench.runs.store import Store
from kvbench.tasks.lines import read_records

LIMIT_S = 5.0
PRICES = PriceBook.load()

# JSON and YAML that have the words of real files, in places of any type
words = st.sampled_from(
    "cell schema method task model models sources requests block_size hash_ids input_length output_length timestamp"
    " blocks usage input_tokens type message id t context question answers turns weight_map metadata dtype shape"
    " data_offsets F32 model_type llama hidden_size num_attention_heads num_hidden_layers vocab_size"
    " max_position_embeddings intermediate_size memory_mib bandwidth_gb_s tflops claude-sonnet-4-6"
    " assistant session spans".split()
)  # fmt: skip
numbers = st.integers() | st.integers(-(10**400), 10**400) | st.floats()
scalars = st.none() | st.booleans() | numbers | words | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(words, values, max_size=8)
texts = st.one_of(
    objects.map(json.dumps),
    values.map(json.dumps),
    st.lists(objects, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows))),
    st.text(alphabet="[]{}:,&*a!<-?'\"|>%@ \n\t0.e\\#", max_size=60),
    st.text(max_size=40),
)
contents = st.one_of(
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(texts, st.integers(0, 60)).map(
        lambda both: both[0].encode("utf-8", "surrogatepass")[: both[1]]
    ),
    st.binary(max_size=60),
    st.integers(1, 5).map(lambda n: b"[" * 10**n),
    st.integers(1, 5).map(lambda n: b'{"a":' * 10**n),
)


def as_store(folder: Path, content: bytes) -> None:
    (folder / "cells-w.jsonl").write_bytes(content)
    Store(folder).scan()
    Store(folder).failures()


def as_config(folder: Path, content: bytes) -> None:
    (folder / "config.yaml").write_bytes(content)
    Store(folder).config()


def as_trace(folder: Path, content: bytes) -> None:
    (folder / "trace.jsonl").write_bytes(content)
    for _ in open_trace(folder / "trace.jsonl", PRICES).requests(Assumptions()):
        pass


def as_checkpoint(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    read_entries(folder, "model")


def as_shape(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    model_shape(str(folder))


def from_file(load: Callable[[Path], object], name: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        load(folder / name)

    return read


LOADERS: dict[str, Callable[[Path, bytes], None]] = {
    "store": as_store,
    "config of a run": as_config,
    "trace": as_trace,
    "checkpoint": as_checkpoint,
    "shape": as_shape,
    "usage": from_file(lambda file: read_calls(file, PRICES), "usage.jsonl"),
    "questions": from_file(lambda file: read_records(str(file), False), "questions.jsonl"),
    "patterns": from_file(lambda file: read_records(str(file), True), "questions.jsonl"),
    "prices": from_file(PriceBook.load, "prices.yaml"),
    "hardware": from_file(lambda file: hardware(str(file)), "mine.yaml"),
    "counts": from_file(FixtureCounter.load, "counts.json"),
    "checkpoint's JSON": from_file(lambda file: read_json(file, "model"), "config.json"),
    "run's YAML": lambda _, content: from_yaml(content.decode("utf-8", "replace")) and None,
}


def check(load: Callable[[Path, bytes], None], folder: Path, content: bytes) -> None:
    started = time.process_time()
    try:
        load(folder, content)
    except UserError as error:
        told = str(error)
    else:
        told = "taken"
    assert len(told.splitlines()) == 1 and len(told) < 5000
    assert time.process_time() - started < LIMIT_S


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_takes_or_refuses_any_bytes(name, tmp_path):
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(contents)
    def fuzz(content: bytes) -> None:
        check(LOADERS[name], tmp_path, content)

    fuzz()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_takes_or_refuses_many_bytes(name, tmp_path):
    @settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(contents)
    def fuzz(content: bytes) -> None:
        check(LOADERS[name], tmp_path, content)

    fuzz()


def test_yaml_is_read_or_refused_with_a_value_error():
    @settings(max_examples=60, deadline=None)
    @given(texts)
    def fuzz(text: str) -> None:
        told = ""
        try:
            read_yaml(text)
        except ValueError as error:
            told = str(error)
        assert len(told.splitlines()) <= 1

    fuzz()


def test_a_loader_with_a_traceback_or_two_lines_is_found(tmp_path):
    def fails(_: Path, __: bytes) -> None:
        raise TypeError

    def tells(_: Path, __: bytes) -> None:
        raise UserError("two\nlines")

    with pytest.raises(TypeError):
        check(fails, tmp_path, b"")
    with pytest.raises(AssertionError):
        check(tells, tmp_path, b"")
