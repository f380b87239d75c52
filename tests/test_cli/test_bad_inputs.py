"""Bad input through the command line: one line that names the key or the file, exit code 2, nothing half written."""

import gzip
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kvbench_testing.damaged_models import DAMAGED, LFS, Spoil, bytes_of, keys_of, without

from kvbench.cli.main import main

CPU_S = 10.0
DEEP = 100_000

# --- overrides: the words of a command, and what the line names

BRACKETS = "[" * DEEP
OVERRIDES: dict[str, str] = {
    # malformed
    **{
        text: text[:12]
        for text in (
            "limit",
            "=3",
            "limit==",
            "limit=[",
            "limit={a",
            "limit=]",
            "a b=c",
            "limit=${",
            "limit='x",
        )
    },
    "": "key=value",
    f"limit={BRACKETS}": "limit",
    f"limit={'(' * DEEP}": "limit",
    f"seeds={'{a:' * 2000}": "seeds",
    f"{'a' * 100_000}=1": "aaaa",
    f"variants={{{','.join(f'k{n}:1' for n in range(3000))}}}": "variants",
    "limit=\u0000": "limit",
    # values of another type or size
    **{
        f"limit={value}": "limit"
        for value in ("0", "-1", "1.5", "nan", "inf", "true", "[1]", "{a:1}", "x", "1e400", "''", "2e3")
    },
    **{
        f"seeds={value}": "seeds"
        for value in ("-1", "[]", "[1,1]", "[x]", "[1.5]", "{a:1}", "null", "[null]", "[[1]]", "nan")
    },
    **{
        f"budget.tokens={value}": "budget.tokens"
        for value in (
            "0",
            "[0]",
            "[-1]",
            "[1.5]",
            "[x]",
            "[1,1]",
            "[nan]",
            "[inf]",
            "[true]",
            "[[1]]",
            "{a:1}",
            "['1']",
        )
    },
    **{
        f"budget.ratio={value}": "budget.ratio"
        for value in ("0", "[1.5]", "[-0.1]", "[nan]", "[inf]", "[x]", "[0.1,0.1]")
    },
    **{f"budget={value}": "budget" for value in ("nothing", "[1]", "null", "{tokens:3}", "3")},
    **{f"decode.block_rows={value}": "decode.block_rows" for value in ("0", "-1", "1.5", "x", "null", "nan")},
    **{f"decode.first_token={value}": "decode.first_token" for value in ("later", "1", "null", "[dense]")},
    **{f"decode.ignore_eos={value}": "decode.ignore_eos" for value in ("1", "maybe", "null")},
    **{
        f"protocol={value}": "protocol" for value in ("aware", "[]", "[query_aware,query_aware]", "1", "null")
    },
    **{f"kl={value}": "kl" for value in ("1", "yes!", "null", "[]")},
    **{
        f"method={value}": "method"
        for value in ("nothing", "[nothing]", "[snapkv,snapkv]", "null", "[1]", "{snapkv:1}")
    },
    **{f"task={value}": "task" for value in ("nothing", "[nothing]", "[ruler_vt,ruler_vt]", "null", "[1]")},
    **{f"experiment={value}": "experiment" for value in ("nothing", "null", "quickstart")},
    **{f"model={value}": "model" for value in ("nothing", "null", "[llama31_8b]", "a/b")},
    **{
        f"model.{key}={value}": f"model.{key}"
        for key, values in {
            "dtype": ("int8", "1", "null"),
            "device": ("tpu", "cuda:x", "cuda:99", "1"),
            "prefill_chunk": ("0", "x", "1.5"),
            "path": ("/nowhere", "''/x", "[a]", "3"),
            "attention": ("eager", "null"),
            "pat": ("/nowhere",),
            "chat_template": ("3", "x"),
            "download": ("x",),
            "system": ("3",),
        }.items()
        for value in values
    },
    **{
        f"method.snapkv.{key}={value}": "method.snapkv"
        for key, values in {
            "window": ("0", "-1", "x", "1.5", "nan", "[1]"),
            "wndow": ("3",),
            "kernel": ("2", "x", "-1"),
            "heads": ("all", "3"),
            "method": ("nothing", "3"),
            "format": ("int3", "[x]"),
        }.items()
        for value in values
    },
    **{f"task.length={value}": "length" for value in ("0", "-1", "x", "[1,1]", "nan", "[null]", "{a:1}")},
    **{f"task.{key}=1": "task" for key in ("lenght", "nothing", "ruler_vt.lenght")},
    **{f"variants={value}": "variants" for value in ("3", "[a]", "{a:3}", "{dense:{method:snapkv}}")},
    **{
        f"ablate={value}": "ablate"
        for value in (
            "3",
            "[a]",
            "{method.snapkv.window:3}",
            "{method.snapkv.window:[]}",
            "{budget:[1]}",
            "{nothing.a:[1]}",
        )
    },
    **{
        f"plugins={value}": "plugins"
        for value in ("nothing_there", "[a-b]", "3", "{a:1}", "[os.nothing]", "'..x'")
    },
    **{
        f"snapshots.{key}={value}": f"snapshots.{key}"
        for key, values in {
            "keep": ("1", "maybe", "null", "[]"),
            "max_gb": ("0", "-1", "nan", "x", "null"),
            "folder": ("[a]", "3", "''"),
            "kep": ("true",),
        }.items()
        for value in values
    },
    "run_dir=/proc/x": "run_dir",
    "run_dir=/dev/null/x": "run_dir",
}


#: what runs on a vLLM server, which is looked at before anything slow
SERVED = ("vllm_fp8", "vllm_load", "vllm_prefix_caching", "vllm_rag", "vllm_vs_compression")


def overrides() -> Iterator[tuple[str, list[str], str]]:
    for text, named in OVERRIDES.items():
        yield f"override {text[:60]!r}", ["run", "quickstart", text], named
    for experiment in SERVED:
        for python in ("/nowhere", "/", "/etc/passwd", "/bin/true", "/bin/false"):
            setting = f"serving.python={python}"
            yield f"{experiment} {setting}", ["run", experiment, setting], "serving.python"


# --- YAML in a folder of the user's own

LINES = "\n".join
YAMLS: Mapping[str, bytes] = {
    "not utf-8": b"\xff\xfe\xfa",
    "utf-16": "limit: 3".encode("utf-16"),
    "null byte": b"limit: \0",
    "open list": b"limit: [",
    "tabs": b"limit:\n\t- 3",
    "two documents": b"limit: 1\n---\nlimit: 2",
    "a list": b"- 1",
    "a number": b"3",
    "text": b"only words",
    "deep": f"limit: {BRACKETS}".encode(),
    "deep by lines": LINES(" " * n + "a:" for n in range(300)).encode(),
    "a cycle": b"limit: &a [*a]",
    "a cycle of keys": b"limit: &a {b: *a}",
    "alias bomb": LINES(
        ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    ).encode(),
    "thousands of keys": LINES(f"k{n}: {n}" for n in range(20_000)).encode(),
    "too large": b"limit: 3 # " + b"x" * 3_000_000,
    "a key twice": b"limit: 1\nlimit: 2",
    "unknown alias": b"limit: *nothing",
    "a python object": b"limit: !!python/object/apply:os.system ['true']",
    "no date": b"limit: 2024-99-99",
    "a list as key": b"? [1]\n: 2",
    "not a number": b"limit: .nan",
    "infinity": b"limit: -.inf",
    "many digits": b"limit: " + b"9" * 6000,
    "wrong type": b"limit: {a: 1}",
    "unknown key": b"lmit: 3",
    "environment": b"model: {path: '${oc.env:HOME}'}",
    "refers to itself": b"limit: ${limit}",
}


def yamls(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    for name, content in YAMLS.items():
        place = folder / name.replace(" ", "_") / "experiment"
        place.mkdir(parents=True)
        (place / "bad_one.yaml").write_bytes(b"# @package _global_\nkind: accuracy\n" + content)
        yield f"YAML: {name}", ["run", "bad_one", "--config-dir", str(place.parent)], ""


# --- checkpoints


def a_folder(name: str) -> Spoil:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
CONTENTS = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"3",
    "half": b'{"a": ',
    "bytes": b"\xff\x00\xfe",
    "lfs": LFS,
    "nan": b'{"a": NaN}',
    "deep": b"[" * DEEP,
    "html": b"<html>not found</html>",
    "digits": b'{"a": ' + b"9" * 6000 + b"}",
}
CHECKPOINTS: Mapping[str, Spoil] = {
    **{f"{file} {kind}": bytes_of(file, content) for file in FILES for kind, content in CONTENTS.items()},
    **{f"no {file}": without(file) for file in ("config.json", "model.safetensors", "tokenizer.json")},
    **{f"{file} a folder": a_folder(file) for file in FILES},
    **{
        f"config {key}={value!r}": keys_of("config.json", **{key: value})
        for key, values in {
            "model_type": ("gpt2", None, 3, [], {}),
            "num_hidden_layers": ("x", -1, 1.5, None, [], 10**9),
        }.items()
        for value in values
    },
    **DAMAGED,
}
#: some files may be missing, empty or without keys that matter
SOUND = {
    "generation_config.json digits",
    "metadata of another framework",
    "tokenizer_config tokenizer_class='None'",
    *(f"config architectures={value!r}" for value in ("x", "3", "[3]")),
}
PATIENT = "task=[ruler_niah_single_2] task.length=[512] method=[snapkv] budget.tokens=[64] limit=1".split()


def checkpoints(folder: Path, sound: Path) -> Iterator[tuple[str, list[str], str]]:
    for number, (name, spoil) in enumerate(CHECKPOINTS.items()):
        if name in SOUND:
            continue
        place = folder / f"model{number}"
        shutil.copytree(sound, place)
        spoil(place)
        yield f"checkpoint: {name}", ["run", "quickstart", *PATIENT, f"model.path={place}"], "model"


# --- run folders

STORES: dict[str, tuple[str, bytes]] = {
    **{
        f"config.yaml {name}": ("config.yaml", YAMLS[name])
        for name in ("not utf-8", "open list", "deep", "a cycle", "alias bomb", "a list")
    },
    **{
        f"plan {name}": ("plan.json", content)
        for name, content in CONTENTS.items()
        if name not in ("lfs", "html")
    },
    "packed cells": ("cells-packed.jsonl.gz", b"no gzip"),
    "cut packed cells": ("cells-packed.jsonl.gz", gzip.compress(b'{"cell": "a"}\n' * 100)[:-9]),
}


def stores(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    for number, (name, (file, content)) in enumerate(STORES.items()):
        place = folder / f"run{number}"
        place.mkdir()
        (place / "cells-w.jsonl").write_text("")
        (place / file).write_bytes(content)
        for command in ("status", "report", "best"):
            # status reads the plan and no configuration, the others the other way round
            if (command == "status") != (file == "config.yaml") and (
                file != "plan.json" or command == "status"
            ):
                yield f"{command}: {name}", [command, str(place)], "run"


# --- traces

TRACES: dict[str, bytes] = {
    **CONTENTS,
    "a row": b'{"a": 1}\n',
    "rows of nothing": b"[]\n" * 5,
    "mooncake without ids": b'{"hash_ids": 3}\n',
    "session": b'{"block_size": 0, "requests": 3}',
    "recorded": b'{"blocks": 3}\n',
    "long line": b"x" * 1_000_000,
}


def traces(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    for number, (name, content) in enumerate(TRACES.items()):
        for suffix, stored in ((".jsonl", content), (".jsonl.gz", gzip.compress(content)[:-3])):
            file = folder / f"trace{number}{suffix}"
            file.write_bytes(stored)
            for experiment in ("claude_bill", "claude_replay"):
                yield f"{experiment}{suffix}: {name}", ["run", experiment, f"trace={file}"], "trace"
    for path in ("/nowhere", str(folder), "3", "''"):
        yield f"claude_bill: {path}", ["run", "claude_bill", f"trace={path}"], "trace"


# --- names

NAMES = (
    "nothing",
    "../..",
    "a\0b",
    "",
    " ",
    "~nobody/x",
    "x" * 3000,
    "/etc/passwd",
    "\udcff",
    "-",
    "\x1b[31m",
    "%s",
    "a\nb",
)


def names() -> Iterator[tuple[str, list[str], str]]:
    for name in NAMES:
        for command in ("status", "report", "open", "best", "explain", "compare"):
            more = {"explain": ["x"], "compare": ["x"]}.get(command, [])
            if not name.startswith("-") and (name or command != "open"):
                yield (
                    f"{command} {name[:20]!r}",
                    [command, name, *more],
                    name[:20] if len(name) > 255 else "run",
                )
    for name in ("a-b", "1a", "class", "os", "snapkv", "../x", "", "\0"):
        yield f"new {name!r}", ["new", "method", name], "name"
    for words in (
        ["ls", "nothing"],
        ["ls", "methods", "nothing"],
        ["ls", "hardware", "nothing"],
        ["ls", "--markdown"],
    ):
        yield " ".join(words), words, ""
    for words in (
        ["nothing"],
        ["run"],
        ["run", "--nothing"],
        ["status", "a", "b"],
        ["best", "x", "--within", "y"],
        ["new"],
    ):
        yield " ".join(words), words, ""
    for words in (["--source", "nothing"], ["--verdict", "x"], ["--run", "nothing"]):
        yield f"claims {' '.join(words)}", ["claims", *words], ""
    for words in (["--command", "x"], ["--vllm", "--command", "ls"], ["--vllm", "--command", "'"]):
        yield f"doctor {' '.join(words)}", ["doctor", *words], "--command"


# --- what is asserted


def everything(folder: Path, sound: Path) -> list[tuple[str, list[str], str]]:
    """Name, words and what the line names, of every case."""
    for name in ("yaml", "models", "stores", "traces"):
        (folder / name).mkdir()
    return [
        *overrides(),
        *yamls(folder / "yaml"),
        *checkpoints(folder / "models", sound),
        *stores(folder / "stores"),
        *traces(folder / "traces"),
        *names(),
    ]


def faults(words: list[str], named: str, code: int, err: str, cpu: float) -> Iterator[str]:
    """What is wrong with how a command ended."""
    lines = [line for line in err.splitlines() if not line.startswith("kvbench: warning: ")]
    if code != 2:
        yield f"exit code {code}"
    if len(lines) != 1 or not lines[0].startswith("kvbench: error: "):
        yield f"not one line: {err[:300]!r}"
    elif not lines[0].isprintable():
        yield f"not printable: {lines[0][:300]!r}"
    elif named not in lines[0]:
        yield f"does not name {named}: {lines[0][:300]}"
    elif len(lines[0]) > 4000:
        yield f"{len(lines[0])} characters"
    if cpu > CPU_S:
        yield f"{cpu:.1f} s of CPU"


def tried(cases: list[tuple[str, list[str], str]], capsys, here: Path) -> list[str]:
    found = []
    for name, words, named in cases:
        if words[0] == "run" and not any(word.startswith("run_dir=") for word in words):
            words = [*words, f"run_dir={here / 'out'}"]
        started = time.process_time()
        try:
            code = main(words)
        except BaseException as error:
            code = -1
            found.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        err = capsys.readouterr().err
        if code != -1:
            found += [
                f"{name}: {fault}" for fault in faults(words, named, code, err, time.process_time() - started)
            ]
        left = [path.name for path in (here / "out").rglob("*")] if (here / "out").exists() else []
        if any(path.endswith(".tmp") or path.startswith("cells-") for path in left):
            found.append(f"{name}: left {left}")
        shutil.rmtree(here / "out", ignore_errors=True)
    return found


@pytest.fixture
def cases(tmp_path, tiny_model_dir, private_cache, monkeypatch) -> list[tuple[str, list[str], str]]:
    monkeypatch.chdir(tmp_path)
    return everything(tmp_path, tiny_model_dir("llama", layers=1))


def test_the_table_has_at_least_300_rows_of_every_kind(cases):
    assert len(cases) >= 300 and len({name for name, _, _ in cases}) == len(cases)


def test_a_share_of_the_table_is_one_line_each(cases, capsys, tmp_path):
    found = tried(cases[::40], capsys, tmp_path)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_the_whole_table_is_one_line_each(cases, capsys, tmp_path):
    found = tried(cases, capsys, tmp_path)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_processes_of_their_own(cases, tmp_path):
    step = len(cases) // 20
    for name, words, named in cases[step // 2 :: step]:
        words = [*words, f"run_dir={tmp_path / 'out'}"] if words[0] == "run" else words
        if any("\0" in word or len(word) > 100_000 for word in words):
            continue
        command = [sys.executable, "-m", "kvbench.cli.main", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert not list(faults(words, named, done.returncode, done.stderr, 0)), name


@pytest.mark.parametrize(
    ("code", "err", "cpu"),
    [
        (1, "kvbench: error: limit: x\n", 0),
        (2, "Traceback\n", 0),
        (2, "", 0),
        (2, "kvbench: error: other\n", 0),
        (2, "kvbench: error: limit\nmore\n", 0),
        (2, "kvbench: error: limit \x1b[31m\n", 0),
        (2, "kvbench: error: limit\n", 11),
    ],
)
def test_every_fault_is_found(code, err, cpu):
    assert list(faults(["run"], "limit", code, err, cpu))
    assert not list(faults(["run"], "limit", 2, "kvbench: warning: x\nkvbench: error: limit: 3\n", 1))
