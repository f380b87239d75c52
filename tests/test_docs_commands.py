"""Every command of README and docs runs, in a short form; what a test cannot run is named, with the reason."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from kvbench_testing.docs import PAGES, ROOT, need, pages_commands, shortened

from kvbench.cli import main as cli
from kvbench.config.compose import compose
from kvbench.runs.store import Store

COMMANDS = pages_commands()
# commands that no test runs; they are parsed and composed
EXCUSED = {
}
# begins of commands whose short form takes long
SLOW = (
    "kvbench claims", "kvbench doctor --bandwidth", "kvbench run reference", "kvbench run compositions",
    "kvbench run conversation", "kvbench run two_layer", "kvbench run bench_ablation", "kvbench run roofline_check",
)  # fmt: skip
RUN = {text: words for text, words in COMMANDS.items() if text not in EXCUSED}


def excuses(commands: dict[str, list[str]]) -> dict[str, str]:
    """What commands need that a test does not have, by command; without those that need nothing."""
    return {text: reason for text, words in commands.items() if (reason := need(words))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_dir) -> Path:
    """A folder with what the commands name: a run and a copy of it, questions, a trace, and folders for results."""
    folder = tmp_path_factory.mktemp("docs")
    asked = {"context": "The sky is blue.", "question": "Which colour?", "answers": ["blue"]}
    (folder / "questions.jsonl").write_text(f"{json.dumps(asked)}\n" * 2)
    before = Path.cwd()
    os.chdir(folder)
    try:
        first = ["kvbench", "run", "quickstart", "method=[snapkv]", "budget.tokens=[128]"]
        runs = folder / "results" / "runs"
        assert cli.main(shortened(first, {"tiny": str(tiny_model_dir())}, runs / "quickstart")) == 0
        shutil.copytree(runs / "quickstart", runs / "other-run")
        assert cli.main(["run", "claude_rag_cost", "turns=1", "placements=[automatic]", "run_dir=rag"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def values(folder, tiny_model_dir, monkeypatch) -> dict[str, str]:
    """What stands for the placeholders of commands."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    (row, *_), _ = Store(folder / "results" / "runs" / "quickstart").scan()
    trace = str(next((folder / "rag" / "traces").glob("append_only*.jsonl")))
    run = {name: "quickstart" for name in ("NAME", "RUN")}
    files = {name: trace for name in ("FOLDER", "FOLDER_OR_FILE", "~/.claude/projects")}
    tiny = str(tiny_model_dir())
    return {**run, **files, "CELL": row["cell"][:8], "tiny": tiny, "/models/Qwen3-8B": tiny}


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=pytest.mark.slow) if text.startswith(SLOW) else text for text in RUN]
)
def test_a_command_runs(text, values, tmp_path, capsys):
    arguments = shortened(RUN[text], values, tmp_path / "run")
    try:
        assert cli.main(arguments) == 0
    except SystemExit as stop:
        assert stop.code == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("text", EXCUSED)
def test_an_excused_command_is_parsed_and_composed(text):
    args = cli._parse(COMMANDS[text][1:])
    compose(args.overrides)


def test_only_what_needs_more_is_excused():
    assert excuses(COMMANDS) == EXCUSED


def test_an_excuse_has_a_reason():
    lines = ["kvbench run roofline", "kvbench open", "kvbench run quickstart model=smollm2_135m", "kvbench doctor --vllm"]
    assert excuses({line: shlex.split(line) for line in lines}) == {}
    needy = {
        "kvbench run vllm_load": "vLLM", "kvbench run experiment=vllm_rag": "vLLM",
        "kvbench run quickstart model=llama31_8b": "a GPU", "kvbench run claude_rag_cost live=true": "a key",
        "kvbench run quickstart model.path=a model.download=true": "a download",
    }  # fmt: skip
    assert excuses({line: shlex.split(line) for line in needy}) == needy


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
