"""Damages of a checkpoint: what each does to the folder of a sound one (a tiny Llama, fp32, tied to no other file)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Spoil = Callable[[Path], object]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DEEP = 100_000


def bytes_of(name: str, content: bytes) -> Spoil:
    """Another content of a file."""
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, keep: float | int) -> Spoil:
    """A file's first bytes: a share of them, or so many; of a negative number, all but so many."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])

    return change


def keys_of(name: str, **entries: Any) -> Spoil:
    """Other values of some keys of a JSON file."""

    def change(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | entries))

    return change


def within(name: str, change: Callable[[Any], object]) -> Spoil:
    """A change of what a JSON file holds."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return spoil


def head(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """A change of the head of the weights' file; the tensors' bytes stay."""

    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        content = json.loads(data[8:end])
        changed = change(content)
        text = json.dumps(content).encode() if not isinstance(changed, bytes) else changed
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return spoil


def first(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a tensor that the model needs."""
    return content["model.layers.0.self_attn.q_proj.weight"]


def tensors(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Other tensors in a well-formed file."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, {"format": "pt"})

    return spoil


def index(**entries: Any) -> Spoil:
    """An index in place of the one file."""
    return keys_of(INDEX, **entries)


def sharded(name: str) -> Spoil:
    """An index whose tensors are in a file of some name."""

    def spoil(folder: Path) -> None:
        (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))

    return spoil


def several(*spoils: Spoil) -> Spoil:
    """One damage after the other."""
    return lambda folder: [spoil(folder) for spoil in spoils]


def without(name: str) -> Spoil:
    """A file that is missing."""
    return lambda folder: (folder / name).unlink()


def _put(key: str, value: Any) -> Callable[[Any], object]:
    return lambda content: content.__setitem__(key, value)


_Q = "model.layers.0.self_attn.q_proj.weight"

SAFETENSORS: dict[str, Spoil] = {
    **{
        f"weights cut to {keep}": cut(WEIGHTS, keep) for keep in (3, 8, 9, 100, 0.1, 0.5, 0.99, -1)
    },
    "weights with a byte more": lambda folder: (folder / WEIGHTS).write_bytes(
        (folder / WEIGHTS).read_bytes() + b"\0"
    ),
    "weights with a huge head": bytes_of(WEIGHTS, (2**62).to_bytes(8, "little") + b"{}"),
    "weights with a negative head": bytes_of(WEIGHTS, b"\xff" * 8 + b"{}"),
    "weights of another format": bytes_of(WEIGHTS, b"PK\x03\x04" + b"\0" * 100),
    "weights as a web page": bytes_of(WEIGHTS, b"<!DOCTYPE html><html><body>Access denied</body></html>"),
    **{
        f"head {name}": head(lambda _, text=text: text)
        for name, text in {
            "empty": b"", "a list": b"[]", "half": b'{"a": ', "not utf-8": b'{"\xff": 1}', "deep": b"[" * DEEP,
            "deep metadata": b'{"__metadata__": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, "no tensors": b"{}",
            "NaN": b'{"a": NaN}', "null": b"null",
        }.items()
    },
    **{
        f"tensor {key}={value!r}": head(lambda content, key=key, value=value: first(content).__setitem__(key, value))
        for key, values in {
            "dtype": ("F4", "I64", "BOOL", 3, None, "", "F64"),
            "shape": ([1], [-1, 48], [1.5, 48], ["a"], None, [2**40, 2**40], [], [10**30], {"a": 1}),
            "data_offsets": ([0, 1], [5, 4], [-1, 10], [0], None, ["a", "b"], [0, 2**60], [0.5, 1.5], [10**30, 10**31]),
        }.items()
        for value in values
    },
    "tensor without a shape": head(lambda content: first(content).pop("shape") and None),
    "tensor that is a number": head(_put(_Q, 3)),
    "metadata of numbers": head(_put("__metadata__", {"format": 3})),
    "metadata of another framework": head(_put("__metadata__", {"format": "tf"})),
}  # fmt: skip

TENSORS: dict[str, Spoil] = {
    "a tensor less": tensors(lambda found: found.pop(_Q)),
    "a tensor more": tensors(lambda found: found.__setitem__("other", found[_Q].clone())),
    "no tensor at all": tensors(lambda found: found.clear()),
    "a tensor turned": tensors(lambda found: found.__setitem__(_Q, found[_Q].T.contiguous())),
    "a tensor of half": tensors(lambda found: found.__setitem__(_Q, found[_Q][:10].clone())),
    "a tensor of integers": tensors(lambda found: found.__setitem__(_Q, found[_Q].int())),
    "a tensor of fp64": tensors(lambda found: found.__setitem__(_Q, found[_Q].double())),
    "a tensor of fp16": tensors(lambda found: found.__setitem__(_Q, found[_Q].half())),
    "a scalar": tensors(lambda found: found.__setitem__(_Q, found[_Q][0, 0].clone())),
    "NaN in a tensor": tensors(lambda found: found[_Q].__setitem__((0, 0), float("nan"))),
    "an infinite tensor": tensors(lambda found: found[_Q].fill_(float("inf"))),
}

INDICES: dict[str, Spoil] = {
    **{
        f"index {name}": bytes_of(INDEX, content)
        for name, content in {
            "empty": b"", "null": b"null", "a list": b"[]", "deep": b'{"weight_map":' * 20_000, "lfs": LFS,
            "half": b'{"we', "bytes": b"\xff\xfe\x00",
        }.items()
    },
    **{
        f"weight_map {value!r}": index(weight_map=value)
        for value in ({}, [], None, 3, {"a": 3}, {"a": None}, {"a": ["b"]})
    },
    **{
        f"index to {name!r}": sharded(name)
        for name in ("../x.safetensors", "/etc/passwd", "", ".", "x.bin", "none.safetensors", "a/b.safetensors",
                     "a\0b.safetensors")
    },
    "index beside the one file": sharded("model-00001-of-00002.safetensors"),
    "only pickled weights": several(without(WEIGHTS), bytes_of("pytorch_model.bin", b"\x80\x02.")),
    "an adapter": keys_of("adapter_config.json", r=8),
}  # fmt: skip

CONFIG: dict[str, Spoil] = {
    f"config {key}={str(value)[:40]!r}": keys_of("config.json", **{key: value})
    for key, values in {
        "hidden_size": ("x", 0, -48, 1.5, None, 47, [48], True),
        "num_attention_heads": ("x", 0, -6, 5, None, 1.5, []),
        "num_key_value_heads": ("x", 0, 4, -2, 1.5, [2]),
        "head_dim": ("x", 0, 15, -16, 1.5),
        "vocab_size": ("x", 0, -1, 5, 10**12, None, 1.5),
        "intermediate_size": ("x", 0, -96, 95, None),
        "max_position_embeddings": ("x", 0, -1, 64, None, 1.5),
        "rms_norm_eps": ("x", None, []),
        "rope_parameters": ("x", 3, [], {"rope_type": "none"}, {"rope_type": "yarn"},
                            {"rope_type": "llama3", "factor": "x"}, {"rope_theta": "x"}),
        "hidden_act": ("none", 3, None, []),
        "dtype": ("int8", "x", 3, []),
        "tie_word_embeddings": (True, "x"),
        "quantization_config": ({"quant_method": "gptq"}, {"quant_method": "none"}, "x"),
        "eos_token_id": ("x", -1, 10**9, 1.5, [[1]], {}),
        "attention_bias": (True,),
        "architectures": ("x", 3, [3]),
        "transformers_weights": ("x.bin",),
        "pad_token_id": ("x", 10**9),
        "attention_dropout": ("x",),
    }.items()
    for value in values
}  # fmt: skip

TOKENIZER: dict[str, Spoil] = {
    **{f"tokenizer.json cut to {keep}": cut("tokenizer.json", keep) for keep in (1, 20, 0.5, -1)},
    **{
        f"tokenizer.json {key}={str(value)[:30]!r}": keys_of("tokenizer.json", **{key: value})
        for key, values in {
            "model": (None, 3, [], {}, {"type": "None"}, {"type": "BPE"},
                      {"type": "BPE", "vocab": {"a": -1}, "merges": []},
                      {"type": "BPE", "vocab": {"a": 10**12}, "merges": []},
                      {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
                      {"type": "BPE", "vocab": [], "merges": {}},
                      {"type": "WordLevel", "vocab": {}, "unk_token": "u"}),
            "added_tokens": (3, [3], [{"id": 0}], [{"id": "x", "content": 3}], {}),
            "pre_tokenizer": (3, {"type": "None"},
                              {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
            "decoder": ({"type": "None"}, 3, []),
            "normalizer": ({"type": "None"}, 3),
            "post_processor": ({"type": "None"}, 3),
            "truncation": (3,),
        }.items()
        for value in values
    },
    "tokenizer.json model deep": bytes_of("tokenizer.json", b'{"model": ' * 50_000),
    "tokenizer.json of other ids": within(
        "tokenizer.json", lambda content: content["model"]["vocab"].update({"other": 5_000})
    ),
    **{
        f"tokenizer_config {key}={str(value)[:40]!r}": keys_of("tokenizer_config.json", **{key: value})
        for key, values in {
            "tokenizer_class": ("None", 3, []),
            "eos_token": (3, {}, []),
            "added_tokens_decoder": (3, {"x": {}}, {"0": 3}, []),
            "extra_special_tokens": (3,),
        }.items()
        for value in values
    },
    **{
        f"chat template {text[:40]!r}": bytes_of("chat_template.jinja", text.encode("utf-8", "surrogatepass"))
        for text in (
            "{% for", "{{ x", "{{ messages.nothing.more }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}",
            "{% include 'x' %}", "{{ messages[99].content }}", "{% for m in messages %}{{ m.none() }}{% endfor %}",
            "{{ ''.__class__.__mro__ }}", "{{ 'x' * 10**10 }}", "{% for i in range(10**10) %}{% endfor %}",
            "{% set x = cycler(*range(9)) %}{{ x.y.z }}", "", "the same for every text",
            "{{ messages[0]['content'][::-1] }}", "{{ 10**10000000 }}",
        )
    },
    "chat template not utf-8": bytes_of("chat_template.jinja", b"\xff\xfe{{ messages }}"),
}  # fmt: skip

GENERATION: dict[str, Spoil] = {
    f"generation {key}={value!r}": keys_of("generation_config.json", **{key: value})
    for key, values in {"eos_token_id": ("x", -1, 10**9, 1.5, [[1]], {}, [None])}.items()
    for value in values
}

DAMAGED: dict[str, Spoil] = {**SAFETENSORS, **TENSORS, **INDICES, **CONFIG, **TOKENIZER, **GENERATION}
