"""Every command of README and docs runs, in a short form; what a test cannot run is named, with the reason."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path

import pytest
from kvbench_testing.docs import PAGES, ROOT, need, pages_commands, shortened

from kvbench.cli import main as cli
from kvbench.cli import scaffold
from kvbench.config.compose import compose
from kvbench.runs.store import Store

COMMANDS = pages_commands()
# begins of commands that no test runs; they are parsed and composed
EXCUSED = {
    "kvbench run quickstart model=llama31_8b": "a GPU",
    "kvbench run vllm_prefix_caching": "vLLM",
    "kvbench run experiment=quickstart model=llama31_8b": "a GPU",
    "kvbench run rocketkv_longbench model=llama31_8b": "a GPU",
    **{
        f"kvbench run experiment={name} model=llama31_8b": "a GPU"
        for name in (
            "rocketkv_longbench",
            "rocketkv_table2",
            "rocketkv_scbench",
            "chunkkv_longbench",
            "chunkkv_gsm8k",
            "chunkkv_gsm8k_50",
            "chunkkv_jailbreakv",
        )
    },
    "kvbench run experiment=reference model=llama31_8b": "a GPU",
    "kvbench run experiment=efficiency model=llama31_8b": "a GPU",
    "kvbench run experiment=rocketkv_fig_efficiency model=llama31_8b": "a GPU",
    "kvbench run experiment=rocketkv_ablation_split model=llama31_8b": "a GPU",
    "kvbench run experiment=rocketkv_ablation_hsa model=llama31_8b": "a GPU",
    "kvbench run experiment=rocketkv_needle model=llama31_8b": "a GPU",
    "kvbench run experiment=chunkkv_table10 model=llama31_8b": "a GPU",
    "kvbench run experiment=chunkkv_needle model=llama31_8b": "a GPU",
    "kvbench run experiment=chunkkv_latency model=llama31_8b": "a GPU",
    "kvbench run vllm_fp8": "vLLM",
    "kvbench run vllm_vs_compression": "vLLM",
    "kvbench run vllm_load": "vLLM",
    "kvbench run vllm_rag": "vLLM",
}
# begins of commands whose short form takes long
SLOW = (
    "kvbench claims",
    "kvbench doctor --bandwidth",
    "kvbench run bench_ablation",
    "kvbench run chunkkv_table10",
    "kvbench run claude_rag_cost",
    "kvbench run compositions",
    "kvbench run conversation",
    "kvbench run dense_only",
    "kvbench run efficiency",
    "kvbench run needle_grid",
    "kvbench run quickstart 'method=",
    "kvbench run quickstart 'protocol=",
    "kvbench run quickstart model.path=",
    "kvbench run reference",
    "kvbench run roofline '",
    "kvbench run roofline --config-dir",
    "kvbench run roofline_check",
    "kvbench run two_layer",
    "kvbench run verdict",
)
RUN = {text: words for text, words in COMMANDS.items() if not text.startswith(tuple(EXCUSED))}


def mistakes(commands: dict[str, list[str]], excused: dict[str, str]) -> set[str]:
    """Commands whose excuse is not what they need, and excuses of no command."""
    wrong = set()
    for text, words in commands.items():
        if need(words) != next((reason for begin, reason in excused.items() if text.startswith(begin)), None):
            wrong.add(text)
    return wrong | {begin for begin in excused if not any(text.startswith(begin) for text in commands)}


def requests() -> list[dict]:
    """Two recorded requests to Claude."""
    block = {"tier": "system", "kind": "text", "hash": "07", "tokens": 5_733, "source": "usage"}
    usage = {"read": 0, "write_5m": 5_733, "write_1h": 0, "uncached": 0, "output": 0}
    row = {"session": "s", "model": "claude-sonnet-4-6", "blocks": [block], "automatic": "5m", "usage": usage}
    return [{**row, "id": f"r{k}", "t": 1.7955e9 + 30 * k} for k in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_dir) -> Path:
    """A folder with what the commands name: a run and a copy of it, questions, a trace, and folders for results."""
    folder = tmp_path_factory.mktemp("docs")
    asked = {"context": "The sky is blue.", "question": "Which colour?", "answers": ["blue"]}
    (folder / "questions.jsonl").write_text(f"{json.dumps(asked)}\n" * 2)
    scaffold.new("method", "mymethod", folder)
    (folder / "trace").mkdir()
    (folder / "trace" / "trace.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in requests()))
    hardware = (ROOT / "conf" / "hardware" / "l4.yaml").read_text(encoding="utf-8")
    (folder / "mine" / "hardware").mkdir(parents=True)
    (folder / "mine" / "hardware" / "this_machine.yaml").write_text(hardware)
    before = Path.cwd()
    os.chdir(folder)
    try:
        first = ["kvbench", "run", "quickstart", "method=[snapkv]", "budget.tokens=[128]"]
        runs = folder / "results" / "runs"
        assert cli.main(shortened(first, {"tiny": str(tiny_model_dir())}, runs / "quickstart")) == 0
        shutil.copytree(runs / "quickstart", runs / "other-run")
        for shared in ("shared", "extended"):
            shutil.copytree(runs / "quickstart", folder / shared)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def values(folder, tiny_model_dir, monkeypatch) -> dict[str, str]:
    """What stands for the placeholders of commands."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    (row, *_), _ = Store(folder / "results" / "runs" / "quickstart").scan()
    trace = str(folder / "trace")
    run = dict.fromkeys(("NAME", "RUN"), "quickstart")
    # shared folders of docs/sweeps.md
    run |= {"/shared/sweep": str(folder / "shared"), "/shared/extended": str(folder / "extended")}
    files = dict.fromkeys(("FOLDER", "FOLDER_OR_FILE", "$HOME/.claude/projects"), trace)
    tiny = str(tiny_model_dir())
    return {**run, **files, "CELL": row["cell"][:8], "tiny": tiny, "/models/Qwen3-8B": tiny}


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=pytest.mark.slow) if text.startswith(SLOW) else text for text in RUN]
)
def test_a_command_runs(text, values, tmp_path, capsys):
    arguments = shortened(RUN[text], values, tmp_path / "run")
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            cli.main(arguments)
    elif hasattr(cli._parse(arguments), "port"):
        assert "http://127.0.0.1:" in served([*arguments, "--port", "0"])
        return
    else:
        assert cli.main(arguments) == 0
    assert capsys.readouterr().out


def served(arguments: list[str]) -> str:
    """What a command that serves until Ctrl-C prints, up to its address; it is stopped then."""
    command = [sys.executable, "-m", "kvbench.cli.main", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        assert process.stdout
        # whatever becomes of it, the test ends
        ended = threading.Timer(60, process.kill)
        ended.start()
        for line in process.stdout:
            lines.append(line)
            if "http://127.0.0.1:" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
        ended.cancel()
    return "".join(lines)


@pytest.mark.parametrize("text", sorted(set(COMMANDS) - set(RUN)))
def test_an_excused_command_is_parsed_and_composed(text):
    compose(cli._parse(COMMANDS[text][1:]).overrides)


def test_only_what_needs_more_is_excused():
    assert mistakes(COMMANDS, EXCUSED) == set()
    assert [begin for begin in SLOW if not any(text.startswith(begin) for text in COMMANDS)] == []


def test_an_excuse_that_is_none_is_found():
    runs = ["kvbench run roofline", "kvbench run quickstart model=smollm2_135m", "kvbench doctor --vllm"]
    for line in runs:
        words = {line: shlex.split(line)}
        assert mistakes(words, {}) == set()
        assert mistakes(words, {line: "vLLM"}) == {line}
    needy = {
        "kvbench run vllm_load": "vLLM",
        "kvbench run experiment=vllm_rag": "vLLM",
        "kvbench run quickstart model=llama31_8b": "a GPU",
        "kvbench run claude_rag_cost live=true": "a key",
        "kvbench run quickstart model.path=a model.download=true": "a download",
    }
    words = {line: shlex.split(line) for line in needy}
    assert mistakes(words, needy) == set()
    assert mistakes(words, {}) == set(needy)
    assert mistakes({}, needy) == set(needy)


def test_a_command_that_fails_is_found(values, tmp_path):
    assert cli.main(shortened(["kvbench", "explain", "NAME", "budget=7"], values, tmp_path)) == 2


@pytest.mark.slow
def test_the_benchmark_of_kernels_runs(tmp_path):
    assert any("`python -m kvbench.kernels.dev.bench`" in page.read_text() for page in PAGES)
    short = ["--lengths", "256", "--budgets", "64", "--repeats", "1", "--limit", "1"]
    command = [sys.executable, "-m", "kvbench.kernels.dev.bench", *short]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_targets_of_make_can_be_made():
    """Parsed by make; what they run installs packages."""
    targets = {
        word
        for page in PAGES
        for line in page.read_text(encoding="utf-8").replace("`", "\n").splitlines()
        if line.startswith("make ")
        for word in line.partition("#")[0].split()[1:2]
    }
    assert {"demo", "setup", "vllm"} <= targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
