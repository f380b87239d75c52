"""The command line: what it prints, its exit codes, and a whole run of a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench import experiments
from kvbench.cli import listing
from kvbench.cli import main as cli
from kvbench.config.groups import Groups
from kvbench.runs.store import Store

EXPERIMENT = """\
# @package _global_
defaults:
  - override /task: [needle]
  - override /method: [snapkv]
"""
NEEDLE = """\
# @package task.needle
# a needle
family: niah
length: [1024]
samples: 1
max_new_tokens: 4
"""
COMMANDS = ("run", "ls", "new", "status", "report", "open", "explain", "compare", "claims", "doctor")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a user's configuration in `mine`."""
    for name, text in {"experiment/tiny": EXPERIMENT, "task/needle": NEEDLE}.items():
        path = tmp_path / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error message of a command, after checking its form."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kvbench: error: ") and err.count("\n") == 1
    return err.removeprefix("kvbench: error: ").rstrip()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rn"], "invalid choice: 'rn' (choose from 'run', 'plan', 'ls', "),
        (
            ["ls", "method"],
            "ls: there is no listing 'method' (did you mean methods?); known: methods, tasks, ",
        ),
        (["ls", "methods", "snapv"], "methods: there is no method 'snapv' (did you mean snapkv?)"),
        (["ls", "runs", "nowhere"], "runs: there is no run 'nowhere'; known: none"),
        (["ls", "--markdown"], "--markdown: there is no page of a bare ls, only of methods"),
        (["status", "a", "--verbose"], "unrecognized arguments: --verbose"),
        (["status", "a", "b"], "unrecognized arguments: b"),
        (["run", "--fast", "limit=2"], "unrecognized arguments: --fast"),
        (["run"], "experiment: missing, give its name first, as kvbench run quickstart; known: "),
        (["run", "limit=2", "quickstart"], "quickstart: not of the form key=value, as experiment=quickstart"),
        (["run", "quikstart"], "there is no experiment 'quikstart' (did you mean quickstart?)"),
        (
            ["run", "quickstart", "experiment=jsonl"],
            "experiment: given twice, as quickstart and jsonl; give one",
        ),
        (["run", "experiment=quikstart"], "there is no experiment 'quikstart' (did you mean quickstart?)"),
        (["run", "experiment=tiny", "--config-dir", "mine", "limit=0"], "limit: 0 is not allowed"),
        (["run", "limit=0", "--config-dir", "mine", "experiment=tiny"], "limit: 0 is not allowed"),
        (["run", "experiment=tiny", "--config-dir=mine", "kind=acuracy"], "(did you mean accuracy?)"),
        (["run", "experiment=tiny", "--config-dir=mine", "model.path=/no"], "model.path=/no: no such folder"),
        (["run", "--config-dir", "nowhere"], "--config-dir: there is no folder 'nowhere'"),
        (["status", "nowhere"], "run: nowhere is not a run folder"),
        (["report", "nowhere"], "run: nowhere is not a run folder"),
        (["compare", "nowhere", "there"], "run: nowhere is not a run folder"),
        (["explain", "nowhere", "abc"], "run: nowhere is not a run folder"),
        (["ls", "methods", "--config-dir", "/nowhere"], "--config-dir: there is no folder '/nowhere'"),
        (["ls", "tasks", "--markdown"], "--markdown: there is no page of tasks, only of methods"),
        (["new", "model", "mine"], "invalid choice: 'model' (choose from 'method', 'task')"),
        (["new", "method"], "required: NAME"),
        (["new", "method", "Mine"], "name: 'Mine' is not a name for a method; give small letters"),
        (["new", "method", "my-own"], "name: 'my-own' is not a name for a method; give small letters"),
        (["new", "method", "lambda"], "name: 'lambda' is not a name for a method; give small letters"),
        (["new", "method", "../up"], "name: '../up' is not a name for a method; give small letters"),
        (["new", "method", "snapkv"], "name: there is a method 'snapkv' already"),
        (["new", "method", "native"], "name: 'native' is the name of a Python module already"),
        (["new", "method", "registry"], "name: 'registry' is the name of a Python module already"),
        (["new", "method", "json"], "name: 'json' is the name of a Python module already"),
        (["new", "task", "Mine"], "name: 'Mine' is not a name for a task; give small letters"),
        (["new", "task", "ruler_vt"], "name: there is a task 'ruler_vt' already"),
        (["new", "task", "niah"], "name: there is a task 'niah' already"),
        (["new", "task", "prompt"], "name: 'prompt' is the name of a Python module already"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in fails(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "experiment=quickstart", "budget.tokens=[-1]"],
        ["run", "experiment=quickstart", "method=[snapv]"],
        ["status", "nowhere"],
        ["bogus"],
    ],
)
def test_no_traceback_from_the_installed_command(here: Path, argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "kvbench.cli.main", *argv], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvbench: error: ") and done.stderr.count("\n") == 1


LIGHT = ("experiments", "models", "tasks", "methods")


@pytest.mark.parametrize("argv", [["--help"], *(["ls", what] for what in LIGHT)])
def test_light_commands_do_not_import_torch(argv: list[str]) -> None:
    code = f"import sys, kvbench.cli.main\ntry: kvbench.cli.main.main({argv})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("methods", "rocketkv\tmethod\tKeeps C1 - M tokens "),
        ("methods", "adakv_expected_attention\teviction\tAdaKV over expected attention "),
        ("methods", "fp16\tformat\tStores all tokens as float16"),
        ("models", "smollm2_135m\tSmolLM2-135M-Instruct "),
        ("experiments", "tiny\t"),
        ("tasks", "needle\ta needle"),
        ("tasks", "jsonl\t"),
    ],
)
def test_ls(here: Path, capsys: pytest.CaptureFixture[str], what: str, line: str) -> None:
    assert cli.main(["ls", what, "--config-dir", "mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("name\t")
    assert any(text.startswith(line) for text in lines)
    assert len({text.count("\t") for text in lines}) == 1


def test_ls_says_everything_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    for what in cli.KINDS[:-1]:
        assert cli.main(["ls", what, "--json"]) == 0
        entries = json.loads(capsys.readouterr().out)
        assert all(entry["name"] and entry["description"] for entry in entries), what
    assert cli.main(["ls", "methods", "snapkv", "--json"]) == 0
    (snapkv,) = json.loads(capsys.readouterr().out)
    assert snapkv["family"] == "eviction"
    assert snapkv["parameters"] == {
        "mode": "paper", "heads": "kv_head", "window": 32, "pool": "max", "kernel": 7,
    }  # fmt: skip


def test_a_bare_command_shows_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "kvbench run quickstart" in capsys.readouterr().out
    assert cli.main(["ls"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[:7]] == list(cli.KINDS)


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("what", ["methods", "experiments", "tasks"])
def test_a_listing_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str, columns: int
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["ls", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    shown = {line.split()[0] for line in lines if line.startswith("  ")}
    assert shown == set(Groups().options(what.removesuffix("s")))


def test_every_shipped_experiment_has_a_group() -> None:
    groups = {name: Groups().remark("experiment", name, "group") for name in Groups().options("experiment")}
    assert {name for name, group in groups.items() if group not in listing.GROUPS[:-1]} == set()


def test_ctrl_c_names_the_kept_results(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(composed: object, progress: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run", interrupted)
    assert cli.main(["run", "experiment=tiny", "--config-dir", "mine"]) == 130
    assert capsys.readouterr().err == (
        "kvbench: interrupted; what is done is kept in results/runs/tiny, the same command resumes\n"
    )


def test_a_run_from_command_to_report(here: Path, tiny_model_dir, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "experiment=tiny", "--config-dir", "mine", f"model.path={tiny_model_dir()}"]
    command += ["ablate.snapkv.kernel=[5,7]"]
    assert cli.main([*command, "budget.tokens=[64]"]) == 0
    out = capsys.readouterr().out
    assert "cells 0/3, prompt 1/1, 0:00: needle 1024 #0\n" in out
    assert out.endswith("report: results/runs/tiny/report.html\n")
    rows, _ = Store("results/runs/tiny").scan()
    assert [row["method"] for row in rows] == ["dense", "snapkv[kernel=5]", "snapkv[kernel=7]"]

    # another budget extends the same folder, nothing is done twice
    assert cli.main([*command, "budget.tokens=[64,128]"]) == 0
    assert "cells 0/2, prompt 1/1" in capsys.readouterr().out
    assert cli.main(["status", "tiny"]) == 0
    assert "5 of 5 cells done" in capsys.readouterr().out
    assert cli.main(["report", "results/runs/tiny"]) == 0
    assert capsys.readouterr().out == "results/runs/tiny/report.html\n"
    assert cli.main(["compare", "tiny", "tiny"]) == 0
    assert capsys.readouterr().out == "A = tiny, B = tiny: scores equal 5 of 5, KL within 0.0001\n"
    # nothing is left to do; the end of a run is its finding, and all tables only where they are asked for
    assert cli.main([*command, "budget.tokens=[64,128]"]) == 0
    short = capsys.readouterr().out
    assert short.startswith("nothing to do: all 5 cells are done already\n")
    assert "kvbench best tiny judges every task and budget" in short and "###" not in short
    assert cli.main([*command, "budget.tokens=[64,128]", "--table"]) == 0
    assert Path("results/runs/tiny/table.md").read_text() in capsys.readouterr().out
    assert cli.main(["best", "tiny"]) == 0
    assert "snapkv[kernel=5]" in capsys.readouterr().out

    assert cli.main(["status"]) == 0
    listed = capsys.readouterr().out
    assert listed.splitlines()[-1].split("\t")[:2] == ["tiny", "5/5"]

    assert fails(capsys, "explain", "tiny", "nothing").startswith("cell: no cell's id begins with 'nothing'")
    assert fails(capsys, "explain", "tiny", "methd=x") == (
        "cell: there is no field 'methd'; take method, budget, task, length, sample, protocol or seed"
    )
    assert fails(capsys, "explain", "tiny", "method=dense", "budget=7").startswith(
        "cell: no cell has budget=7, but "
    )
    assert fails(capsys, "explain", "tiny", "budget=64") == "cell: 2 cells match budget=64; add method=..."
    assert (
        fails(capsys, "explain", "tiny", "method=dense", "budget=64")
        == "cell: no cell has method=dense budget=64"
    )
    assert (
        cli.main(["explain", "tiny", "method=snapkv[kernel=5]", "budget=64", "sample=0", "--no-tokens"]) == 0
    )
    assert f"cell {rows[1]['cell']} of" in capsys.readouterr().out
    assert cli.main(["explain", "tiny", rows[1]["cell"][:8], "--no-tokens"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].lstrip().startswith("kvbench run ")
